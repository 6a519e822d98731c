//! Everything as lines of JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{Reporter, wall_time};

/// Writes `log.jsonl`, one object a line: `{"wall_time": .., "step": .., "tag": .., "value": ..}` with a number (`null` if it is not
/// finite), or with `text` or `values` in place of `value`; the first has the `hparams`. A file that is there is gone on with.
#[derive(Debug)]
pub struct JsonlReporter {
    directory: PathBuf,
    file: Option<BufWriter<File>>,
}

impl JsonlReporter {
    /// Writes into `directory`, which is made if it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), file: None }
    }

    fn line(&mut self, line: &Value) -> io::Result<()> {
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("nothing was started"))?;
        writeln!(file, "{line}")
    }
}

impl Reporter for JsonlReporter {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn start(&mut self, hparams: &Map<String, Value>) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let file = OpenOptions::new().create(true).append(true).open(self.directory.join("log.jsonl"))?;
        self.file = Some(BufWriter::new(file));
        self.line(&json!({"wall_time": wall_time(), "hparams": hparams}))
    }

    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()> {
        self.line(&json!({"wall_time": wall_time(), "step": step, "tag": tag, "value": value}))
    }

    fn text(&mut self, step: usize, tag: &str, text: &str) -> io::Result<()> {
        self.line(&json!({"wall_time": wall_time(), "step": step, "tag": tag, "text": text}))
    }

    fn histogram(&mut self, step: usize, tag: &str, values: &[f64]) -> io::Result<()> {
        self.line(&json!({"wall_time": wall_time(), "step": step, "tag": tag, "values": values}))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file = None;
        Ok(())
    }
}
