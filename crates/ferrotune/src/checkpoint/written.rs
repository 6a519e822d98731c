//! What became of the checkpoints of a run.

use crate::{Error, Result};
use std::path::PathBuf;

/// What is written, and what is not.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The last whole one.
    pub last: Option<PathBuf>,
    /// The step of the last that could not be written, and why. A later one that is written takes it away.
    pub failed: Option<(usize, Error)>,
    /// The step of the last whose writing has begun.
    begun: usize,
    /// What nobody has been told of.
    pub unsaid: Vec<String>,
}

impl Written {
    /// That of a run which goes on from `last`.
    pub fn from(last: Option<PathBuf>) -> Self {
        Self { last, ..Self::default() }
    }

    /// The checkpoint that a run which is left goes on from.
    ///
    /// # Errors
    /// [`Error::NotSaved`] if what it did last is in none.
    pub fn left(self) -> Result<Option<PathBuf>> {
        match self.failed {
            Some((_, error)) => Err(Error::NotSaved { saved: self.last, source: Box::new(error) }),
            None => Ok(self.last),
        }
    }

    /// An error that ends a run, with the checkpoint that is left of it.
    pub fn last_words(&self, error: Error) -> Error {
        match (&self.last, error) {
            // A trained adapter is worth more.
            (_, error @ Error::AfterTraining { .. }) | (None, error) => error,
            (saved, error) => Error::NotSaved { saved: saved.clone(), source: Box::new(error) },
        }
    }

    pub(super) fn begin(&mut self, step: usize) {
        self.begun = step;
    }

    /// Takes note of how an attempt ended; whether there is a checkpoint.
    pub(super) fn end(&mut self, step: usize, result: Result<PathBuf>) -> bool {
        match result {
            Ok(path) => {
                tracing::info!(path = %path.display(), "checkpoint");
                if self.failed.take().is_some_and(|(failed, _)| failed == step) {
                    self.unsaid.push(format!("the checkpoint after step {step} is written now"));
                }
                self.last = Some(path);
                true
            }
            Err(error) => {
                self.fail(step, error, "training goes on, and it is tried again");
                false
            }
        }
    }

    /// Says a failure, the first time.
    pub(super) fn fail(&mut self, step: usize, error: Error, consequence: &str) {
        if self.failed.as_ref().is_none_or(|(failed, _)| *failed != step) {
            tracing::warn!(target: ferrotune_trainer::TOLD, step, %error, "no checkpoint");
            self.unsaid.push(format!("warning: no checkpoint after step {step}: {error}; {consequence}"));
        }
        self.failed = Some((step, error));
    }

    /// The best step has no checkpoint to load.
    pub(super) fn miss_best(&mut self, step: usize) {
        self.unsaid.push(format!(
            "warning: there is no checkpoint of the best step, {step}: the result is the adapter of the last step"
        ));
    }

    /// The writer has ended in the middle of its work.
    pub(super) fn end_without_writer(&mut self, error: Error) {
        if self.failed.is_none() {
            self.fail(self.begun, error, "training goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_ends_a_run_says_what_is_left_of_it() {
        let busy = || Error::OutputBusy { path: "out".into() };
        assert!(matches!(Written::default().last_words(busy()), Error::OutputBusy { .. }));
        let written = Written::from(Some("out/checkpoint-3".into()));
        let error = written.last_words(busy());
        let text = error.to_string();
        assert!(text.ends_with("\nthe last whole checkpoint is out/checkpoint-3"), "{text}");
        assert!(error.is_bad_input(), "as the error itself");
        let kept = Error::AfterTraining { adapter: "unfinished/adapter".into(), source: Box::new(busy()) };
        assert!(matches!(written.last_words(kept), Error::AfterTraining { .. }));
    }
}
