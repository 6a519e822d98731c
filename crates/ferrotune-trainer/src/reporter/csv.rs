//! Numbers as a table.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Reporter, wall_time};

/// Writes the scalars into `log.csv`, one a line: `wall_time,step,tag,value`. Texts and histograms have no place there. A file that is
/// there is gone on with.
#[derive(Debug)]
pub struct CsvReporter {
    directory: PathBuf,
    file: Option<BufWriter<File>>,
}

impl CsvReporter {
    /// Writes into `directory`, which is made if it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), file: None }
    }
}

impl Reporter for CsvReporter {
    fn name(&self) -> &str {
        "csv"
    }

    fn start(&mut self, _hparams: &Map<String, Value>) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let file = OpenOptions::new().create(true).append(true).open(self.directory.join("log.csv"))?;
        let is_new = file.metadata()?.len() == 0;
        let mut file = BufWriter::new(file);
        if is_new {
            writeln!(file, "wall_time,step,tag,value")?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()> {
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("nothing was started"))?;
        let tag = match tag.contains(['"', ',', '\n', '\r']) {
            true => format!("\"{}\"", tag.replace('"', "\"\"")),
            false => tag.to_owned(),
        };
        writeln!(file, "{:.3},{step},{tag},{value}", wall_time())
    }

    fn text(&mut self, _step: usize, _tag: &str, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn histogram(&mut self, _step: usize, _tag: &str, _values: &[f64]) -> io::Result<()> {
        Ok(())
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
