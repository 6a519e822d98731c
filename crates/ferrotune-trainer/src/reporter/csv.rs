//! Numbers as a table.

use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Reporter, log_file::LogFile, wall_time};

/// Writes the scalars into `log.csv`, one a line: `wall_time,step,tag,value`. Texts and histograms have no place there. A file that is
/// there is gone on with.
#[derive(Debug)]
pub struct CsvReporter {
    file: LogFile,
}

impl CsvReporter {
    /// Writes into `directory`, which is made if it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { file: LogFile::new(directory.into().join("log.csv")) }
    }
}

impl Reporter for CsvReporter {
    fn name(&self) -> &str {
        "csv"
    }

    fn start(&mut self, _hparams: &Map<String, Value>) -> io::Result<()> {
        if self.file.open()? { self.file.line("wall_time,step,tag,value") } else { Ok(()) }
    }

    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()> {
        let tag = match tag.contains(['"', ',', '\n', '\r']) {
            true => format!("\"{}\"", tag.replace('"', "\"\"")),
            false => tag.to_owned(),
        };
        self.file.line(format_args!("{:.3},{step},{tag},{value}", wall_time()))
    }

    fn text(&mut self, _step: usize, _tag: &str, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn histogram(&mut self, _step: usize, _tag: &str, _values: &[f64]) -> io::Result<()> {
        Ok(())
    }

    fn rewind(&mut self, step: usize) -> io::Result<()> {
        self.file.keep(|line| {
            let mut cells = line.split(',');
            let is_head = cells.next() == Some("wall_time");
            is_head || cells.next().and_then(|cell| cell.parse().ok()).is_some_and(|of: usize| of <= step)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.close()
    }
}
