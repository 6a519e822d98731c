//! A log of lines, as CSV and JSONL have it.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// A file of lines that is opened when the run begins, and gone on with if it is there.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl LogFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Opens the file, in a folder that is made if it is not there; whether it is new.
    pub fn open(&mut self) -> io::Result<bool> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let is_new = file.metadata()?.len() == 0;
        self.file = Some(BufWriter::new(file));
        Ok(is_new)
    }

    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("nothing was started"))?;
        writeln!(file, "{line}")
    }

    /// Keeps those lines alone that `is_kept`. The last one of a run that was killed may be cut short.
    pub fn keep(&mut self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        self.close()?;
        let text = String::from_utf8_lossy(&fs::read(&self.path)?).into_owned();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let kept: String = whole.filter(|line| is_kept(line.trim_end())).collect();
        let beside = self.path.with_extension("rewound");
        fs::write(&beside, kept)?;
        fs::rename(&beside, &self.path)?;
        self.open().map(|_| ())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }

    pub fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file = None;
        Ok(())
    }
}
