//! The lines of a JSONL file: numbered, checked for UTF-8, and bad ones collected.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use crate::json::{self, Node, Problem};
use crate::{Error, LineProblem, OnError, Problems, Result, Source, file, foreign};

/// A line longer than this is refused, so that a file that is no JSONL cannot fill the memory.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// As much of the first line shows what kind of file it is.
const MAX_HEAD_BYTES: usize = 4096;

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
    let (records, _) = read_lines(path, limit, OnError::Strict, |source, node, text| {
        let json::Json::Object(_) = node.value else {
            return Err(Problem::new(node.at, "a JSON object", node.value.kind()));
        };
        let value = serde_json::from_str(text)
            .map_err(|error| Problem::new(node.at, "numbers that fit 64 bits", error.to_string()))?;
        Ok((source, value))
    })?;
    Ok(records)
}

/// Reads a file line by line through `convert`, and collects results and problems.
pub(crate) fn read_lines<T>(
    path: &Path,
    limit: Option<usize>,
    on_error: OnError,
    mut convert: impl FnMut(Source, Node<'_>, &str) -> std::result::Result<T, Problem>,
) -> Result<(Vec<T>, Problems<LineProblem>)> {
    let io_error = |cause| Error::Io { path: path.to_path_buf(), cause };
    let mut reader = BufReader::new(file::open(path)?.0);
    let file: Arc<Path> = path.into();
    let limit = limit.unwrap_or(usize::MAX);
    let (mut values, mut problems) = (Vec::new(), Problems::default());
    // Blank lines count only once something follows them: at the end of a file they mean nothing.
    let (mut blank, mut pending_blank) = (0usize, 0usize);
    let mut bytes = Vec::new();
    let mut line = 0;
    while values.len() + problems.total < limit {
        bytes.clear();
        let read =
            (&mut reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes).map_err(io_error)?;
        if read == 0 {
            break;
        }
        line += 1;
        // Before the first line that is not blank.
        if values.is_empty() && problems.is_empty() {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_HEAD_BYTES)]);
            if let Some((found, help)) = foreign::recognise(&bytes, &text) {
                return Err(Error::NotJsonLines { path: path.to_path_buf(), found, help });
            }
        }
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
                problems.push(LineProblem { source, column, expected, found });
            }
        }
    }
    if !problems.is_empty() && (on_error == OnError::Strict || values.is_empty()) {
        let bad = Error::BadLines { problems: problems.first, total: problems.total };
        return Err(if on_error == OnError::Strict { bad } else { bad.nothing_left(path) });
    }
    if values.is_empty() && limit > 0 {
        return Err(Error::EmptyFile { path: path.to_path_buf() });
    }
    if blank > 0 {
        tracing::warn!(file = %path.display(), blank, "skipped blank lines between examples");
    }
    Ok((values, problems))
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
