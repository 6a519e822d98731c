//! Everything as lines of JSON.

use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{Reporter, log_file::LogFile, wall_time};

/// Writes `log.jsonl`, one object a line: `{"wall_time": .., "step": .., "tag": .., "value": ..}` with a number (`null` if it is not
/// finite), or with `text` or `values` in place of `value`; the first has the `hparams`. A file that is there is gone on with.
#[derive(Debug)]
pub struct JsonlReporter {
    file: LogFile,
}

impl JsonlReporter {
    /// Writes into `directory`, which is made if it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { file: LogFile::new(directory.into().join("log.jsonl")) }
    }
}

impl Reporter for JsonlReporter {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn start(&mut self, hparams: &Map<String, Value>) -> io::Result<()> {
        self.file.open()?;
        self.file.line(json!({"wall_time": wall_time(), "hparams": hparams}))
    }

    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()> {
        self.file.line(json!({"wall_time": wall_time(), "step": step, "tag": tag, "value": value}))
    }

    fn text(&mut self, step: usize, tag: &str, text: &str) -> io::Result<()> {
        self.file.line(json!({"wall_time": wall_time(), "step": step, "tag": tag, "text": text}))
    }

    fn histogram(&mut self, step: usize, tag: &str, values: &[f64]) -> io::Result<()> {
        self.file.line(json!({"wall_time": wall_time(), "step": step, "tag": tag, "values": values}))
    }

    fn rewind(&mut self, step: usize) -> io::Result<()> {
        self.file.keep(|line| {
            let line = serde_json::from_str::<Map<String, Value>>(line);
            line.is_ok_and(|line| line.get("step").is_none_or(|of| of.as_u64() <= Some(step as u64)))
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.close()
    }
}
