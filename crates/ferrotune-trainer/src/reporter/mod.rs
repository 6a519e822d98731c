//! Where the numbers of a run go.

mod csv;
mod jsonl;
mod log_file;
mod logging_dir;
mod protobuf;
mod record;
mod reporting;
mod tensorboard;

use std::io;

use serde_json::{Map, Value};

pub use csv::CsvReporter;
pub use jsonl::JsonlReporter;
pub use logging_dir::default_logging_dir;
pub use reporting::Reporting;
pub use tensorboard::TensorBoardReporter;

/// Writes the numbers of a run somewhere. [`Reporting`] gives it those of a [`Trainer`](crate::Trainer).
pub trait Reporter {
    /// What it is called in a message.
    fn name(&self) -> &str;

    /// Begins, with the arguments of the run.
    ///
    /// # Errors
    /// Whatever cannot be written; so it is with every method.
    fn start(&mut self, hparams: &Map<String, Value>) -> io::Result<()>;

    /// A number at a step.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()>;

    /// A text at a step.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn text(&mut self, step: usize, tag: &str, text: &str) -> io::Result<()>;

    /// How numbers are distributed at a step.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn histogram(&mut self, step: usize, tag: &str, values: &[f64]) -> io::Result<()>;

    /// The run goes on after `step`, from where it was left or went back to: later numbers are those of a course that was given up.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn rewind(&mut self, step: usize) -> io::Result<()>;

    /// Hands what was written to the operating system.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn flush(&mut self) -> io::Result<()>;

    /// Ends, after the last step.
    ///
    /// # Errors
    /// See [`Reporter::start`].
    fn finish(&mut self) -> io::Result<()>;
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
