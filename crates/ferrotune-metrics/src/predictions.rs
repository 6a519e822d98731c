//! JSON lines of references and predictions, with a diagnostic for every bad line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::value::RawValue;

use crate::error::BadLine;
use crate::{Error, Result};

/// The field that holds the reference.
const REFERENCE: &str = "reference";

/// No line of text that someone compares is longer; a file without line ends must not fill the memory.
const MAX_LINE_BYTES: usize = 256 << 20;

/// A text that a model wrote, and the one that it should have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// What it should have written.
    pub reference: String,
    /// What it wrote.
    pub prediction: String,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads lines such as `{"reference": "...", "prediction": "..."}`; `prediction_field` names the field of the predictions.
///
/// Other fields are ignored, and so are empty lines. A byte-order mark at the start and CRLF line ends are accepted. Of two
/// fields with the same name the last counts, as in Python.
///
/// # Errors
/// [`Error::BadLines`] with the lines that are not such objects, the first 20 of them and their number; [`Error::NoPredictions`] if there
/// is no line at all;
/// [`Error::Read`] if the file cannot be read.
pub fn read_predictions(path: &Path, prediction_field: &str) -> Result<Vec<Prediction>> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(read_error)?);
    let (mut predictions, mut bad, mut total) = (Vec::new(), Vec::new(), 0);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES as u64 + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(read_error)?;
        if read == 0 {
            break;
        }
        let too_long = read > MAX_LINE_BYTES;
        let parsed = if too_long {
            let expected = format!("a line of at most {MAX_LINE_BYTES} bytes");
            Err(Fault {
                offset: 0,
                field: None,
                expected,
                found: "a longer one; reading stops here".to_owned(),
            })
        } else {
            parse_line(trim_line(&bytes, line == 1), prediction_field)
        };
        match parsed {
            Ok(None) => {}
            Ok(Some((reference, prediction))) => predictions.push(Prediction { reference, prediction, line }),
            Err(fault) => {
                total += 1;
                if bad.len() < BadLine::MAX_SHOWN {
                    bad.push(fault.at(line, trim_line(&bytes, line == 1)));
                }
            }
        }
        if too_long {
            break;
        }
    }
    if total > 0 {
        return Err(Error::BadLines { path: path.to_owned(), lines: bad, total });
    }
    if predictions.is_empty() {
        return Err(Error::NoPredictions {
            path: path.to_owned(),
            prediction_field: prediction_field.to_owned(),
        });
    }
    Ok(predictions)
}

/// A line without its end, and without the byte-order mark of the file.
fn trim_line(mut line: &[u8], first: bool) -> &[u8] {
    line = line.strip_suffix(b"\n").unwrap_or(line);
    line = line.strip_suffix(b"\r").unwrap_or(line);
    if first { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line }
}

/// What is wrong with a line, and the byte at which.
struct Fault {
    offset: usize,
    field: Option<String>,
    expected: String,
    found: String,
}

impl Fault {
    fn at(self, line: usize, bytes: &[u8]) -> BadLine {
        let before = &bytes[..self.offset.min(bytes.len())];
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        BadLine { line, column, field: self.field, expected: self.expected, found: self.found }
    }
}

/// Reference and prediction of a line; nothing if it is blank.
fn parse_line(bytes: &[u8], prediction_field: &str) -> std::result::Result<Option<(String, String)>, Fault> {
    let line = std::str::from_utf8(bytes).map_err(|error| Fault {
        offset: error.valid_up_to(),
        field: None,
        expected: "UTF-8 text".to_owned(),
        found: format!("byte 0x{:02X}", bytes[error.valid_up_to()]),
    })?;
    if line.trim().is_empty() {
        return Ok(None);
    }
    let expected = || format!("a JSON object with the fields {REFERENCE:?} and {prediction_field:?}");
    let start = line.len() - line.trim_start().len();
    // Left as they are written: the place of a value in the line can be told, and other fields cost nothing.
    let fields: BTreeMap<Cow<'_, str>, &RawValue> = match serde_json::from_str(line) {
        Ok(fields) => fields,
        Err(error) if error.is_data() => {
            let found = kind(&line[start..]).to_owned();
            return Err(Fault { offset: start, field: None, expected: expected(), found });
        }
        Err(error) => {
            let (offset, found) = syntax(&error);
            return Err(Fault { offset, field: None, expected: expected(), found });
        }
    };
    let text = |field: &str| {
        let fault = |offset, found| Fault {
            offset,
            field: Some(field.to_owned()),
            expected: "a string".to_owned(),
            found,
        };
        let Some(value) = fields.get(field) else {
            let names: Vec<String> = fields.keys().take(10).map(|name| format!("{name:?}")).collect();
            let found = if names.is_empty() {
                "an empty object".to_owned()
            } else {
                format!("only {}", names.join(", "))
            };
            return Err(fault(start, found));
        };
        let offset = value.get().as_ptr() as usize - line.as_ptr() as usize;
        if !value.get().starts_with('"') {
            return Err(fault(offset, kind(value.get()).to_owned()));
        }
        serde_json::from_str::<String>(value.get()).map_err(|error| {
            let (within, found) = syntax(&error);
            fault(offset + within, found)
        })
    };
    Ok(Some((text(REFERENCE)?, text(prediction_field)?)))
}

/// Byte and message of a syntax error in a single line.
fn syntax(error: &serde_json::Error) -> (usize, String) {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    (error.column().saturating_sub(1), format!("invalid JSON ({message})"))
}

/// The kind of a JSON value, by its first character.
fn kind(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(bytes: &[u8], field: &str) -> Result<Vec<Prediction>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        read_predictions(file.path(), field)
    }

    /// (line, column, field, found) of the bad lines.
    fn faults(bytes: &[u8]) -> Vec<(usize, usize, Option<String>, String)> {
        match read(bytes, "prediction") {
            Err(Error::BadLines { lines, .. }) => {
                lines.into_iter().map(|bad| (bad.line, bad.column, bad.field, bad.found)).collect()
            }
            other => panic!("expected bad lines, found {other:?}"),
        }
    }

    #[test]
    fn byte_order_mark_crlf_blank_lines_and_other_fields_are_accepted() {
        let text = "\u{FEFF}{\"reference\": \"a\\u00e9\", \"after\": \"b\"}\r\n\r\n  \n{\"after\":\"\",\"n\":[1],\"reference\":\"c\"}";
        let found = read(text.as_bytes(), "after").unwrap();
        let expected = [("aé", "b", 1), ("c", "", 4)];
        assert_eq!(
            found,
            expected.map(|(r, p, line)| Prediction { reference: r.into(), prediction: p.into(), line })
        );
    }

    #[test]
    fn every_bad_line_is_named_with_its_column() {
        let text = b"{\"reference\": \"\xC3\xA9\", \"prediction\": 3}\n{\"reference\": \"a\"}\nnot json\n[1]\n{\"reference\":\"\xFF\"}\n\
            {\"reference\":\"a\",\"prediction\":\"b\"}\n{\"prediction\":\"b\",\"reference\":null}\n{\"reference\":\"a\",\"prediction\":\"\\ud800\"}\n{}\n{\"a\n";
        let found = faults(text);
        let places: Vec<_> =
            found.iter().map(|(line, column, field, _)| (*line, *column, field.as_deref())).collect();
        assert_eq!(
            places,
            [
                (1, 34, Some("prediction")),
                (2, 1, Some("prediction")),
                (3, 2, None),
                (4, 1, None),
                (5, 15, None),
                (7, 31, Some("reference")),
                (8, 38, Some("prediction")),
                (9, 1, Some("reference")),
                (10, 3, None),
            ]
        );
        assert_eq!(found[0].3, "a number");
        assert_eq!(found[1].3, "only \"reference\"");
        assert_eq!(found[3].3, "an array");
        assert_eq!(found[5].3, "null");
    }

    #[test]
    fn the_kind_of_line_end_does_not_move_the_column() {
        assert_eq!(faults(b"{\"a\": 1\r\n"), faults(b"{\"a\": 1\n"));
    }

    #[test]
    fn the_message_shows_twenty_lines_and_counts_the_rest() {
        let message = read(&b"1\n".repeat(33), "prediction").unwrap_err().to_string();
        assert_eq!(message.lines().filter(|line| line.contains("found a number")).count(), 20);
        assert!(message.contains("... and 13 more"), "{message}");
        assert!(message.contains("33 bad lines in "), "{message}");
    }

    #[test]
    fn an_empty_file_and_a_missing_file_are_errors() {
        assert!(matches!(read(b"\n\n", "prediction"), Err(Error::NoPredictions { .. })));
        assert!(matches!(
            read_predictions(Path::new("/no/such/file"), "prediction"),
            Err(Error::Read { .. })
        ));
        assert!(matches!(read_predictions(&std::env::temp_dir(), "prediction"), Err(Error::Read { .. })));
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let text = format!("{{\"x\":{},\"reference\":\"a\",\"prediction\":\"b\"}}\n", "[".repeat(1_000_000));
        assert_eq!(faults(text.as_bytes()).len(), 1);
    }
}
