//! The lines of a JSONL file: numbered, checked for UTF-8, and bad ones collected.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use crate::error::{LineProblem, MAX_LISTED};
use crate::json::{self, Node, Problem};
use crate::{Error, Result, Source};

/// A line longer than this is refused, so that a file that is no JSONL cannot fill the memory.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Reads a JSONL file into values, each with its line; `limit` takes the first `n`.
///
/// This is the plain form, for records of any shape (predictions, scores); [`read_examples`](crate::read_examples) reads
/// training data. The rules for lines are the same.
///
/// # Errors
/// As [`read_examples`](crate::read_examples), except that any JSON object is accepted.
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("scores.jsonl");
/// std::fs::write(&path, "{\"nll\": 1.5}\n{\"nll\": 2.5}\n")?;
/// let records = ferrotune_data::read_records(&path, None)?;
/// assert_eq!(records[1].0.line, 2);
/// assert_eq!(records[1].1["nll"], 2.5);
/// # Ok(()) }
/// ```
pub fn read_records(path: &Path, limit: Option<usize>) -> Result<Vec<(Source, serde_json::Value)>> {
    read_lines(path, limit, |source, node, text| {
        let json::Json::Object(_) = node.value else {
            return Err(Problem::new(node.at, "a JSON object", node.value.kind()));
        };
        let value = serde_json::from_str(text)
            .map_err(|error| Problem::new(node.at, "numbers that fit 64 bits", error.to_string()))?;
        Ok((source, value))
    })
}

/// Reads a file line by line through `convert`, and collects either all results or all problems.
pub(crate) fn read_lines<T>(
    path: &Path,
    limit: Option<usize>,
    mut convert: impl FnMut(Source, Node<'_>, &str) -> std::result::Result<T, Problem>,
) -> Result<Vec<T>> {
    let io_error = |cause| Error::Io { path: path.to_path_buf(), cause };
    let mut reader = BufReader::new(File::open(path).map_err(io_error)?);
    let file: Arc<Path> = path.into();
    let limit = limit.unwrap_or(usize::MAX);
    let (mut values, mut problems, mut bad) = (Vec::new(), Vec::new(), 0usize);
    // Blank lines count only once something follows them: at the end of a file they mean nothing.
    let (mut blank, mut pending_blank) = (0usize, 0usize);
    let mut bytes = Vec::new();
    let mut line = 0;
    while values.len() + bad < limit {
        bytes.clear();
        let read =
            (&mut reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes).map_err(io_error)?;
        if read == 0 {
            break;
        }
        line += 1;
        let source = Source { file: file.clone(), line };
        let outcome = if bytes.len() > MAX_LINE_BYTES {
            if bytes.last() != Some(&b'\n') {
                skip_line(&mut reader).map_err(io_error)?;
            }
            let found = "a longer line: is this a JSONL file?";
            Err((1, Problem::new(0, format!("lines of at most {} MiB", MAX_LINE_BYTES >> 20), found)))
        } else {
            match std::str::from_utf8(&bytes) {
                Err(error) => Err(invalid_utf8(&bytes, error.valid_up_to())),
                Ok(text) => {
                    // A byte order mark at the start of the file is white space to an editor, and to us.
                    let mark =
                        if line == 1 && text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
                    let text = text[mark..].trim_end_matches(['\n', '\r']);
                    if text.trim().is_empty() {
                        pending_blank += 1;
                        continue;
                    }
                    json::parse(text)
                        .and_then(|node| convert(source.clone(), node, text))
                        .map_err(|problem| (column(text, problem.at), problem))
                }
            }
        };
        blank += std::mem::take(&mut pending_blank);
        match outcome {
            Ok(value) => values.push(value),
            Err((column, Problem { expected, found, .. })) => {
                bad += 1;
                if problems.len() < MAX_LISTED {
                    problems.push(LineProblem { source, column, expected, found });
                }
            }
        }
    }
    if bad > 0 {
        return Err(Error::BadLines { problems, total: bad });
    }
    if values.is_empty() && limit > 0 {
        return Err(Error::EmptyFile { path: path.to_path_buf() });
    }
    if blank > 0 {
        tracing::warn!(file = %path.display(), blank, "skipped blank lines between examples");
    }
    Ok(values)
}

/// Characters before `at`, plus one.
fn column(text: &str, at: usize) -> usize {
    text.char_indices().take_while(|(start, _)| *start < at).count() + 1
}

fn invalid_utf8(bytes: &[u8], valid: usize) -> (usize, Problem) {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    let found =
        format!("the byte 0x{:02x}: save the file as UTF-8", bytes.get(valid).copied().unwrap_or_default());
    (before.trim_start_matches('\u{feff}').chars().count() + 1, Problem::new(valid, "valid UTF-8", found))
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                reader.consume(end + 1);
                return Ok(());
            }
            None => {
                let length = buffer.len();
                reader.consume(length);
            }
        }
    }
}
