//! What is done about a fault.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is done when a watcher finds its fault, in order of gravity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Only says it.
    Say,
    /// Leaves this optimizer step out, and the learning-rate schedule where it is.
    Skip,
    /// Ends the run, so that it is begun again from the last good checkpoint with a lower rate. Whoever called the trainer does that.
    RollBack,
    /// Ends the run.
    Stop,
}

/// The fault that a watcher looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WatcherKind {
    /// See [`NonFinite`](super::NonFinite).
    NonFinite,
    /// See [`LossSpike`](super::LossSpike).
    LossSpike,
    /// See [`Plateau`](super::Plateau).
    Plateau,
    /// See [`Overfitting`](super::Overfitting).
    Overfitting,
    /// See [`DeadParameter`](super::DeadParameter).
    DeadParameter,
    /// See [`LearningRate`](super::LearningRate).
    LearningRate,
}

impl WatcherKind {
    /// The name, as it is serialised.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonFinite => "non_finite",
            Self::LossSpike => "loss_spike",
            Self::Plateau => "plateau",
            Self::Overfitting => "overfitting",
            Self::DeadParameter => "dead_parameter",
            Self::LearningRate => "learning_rate",
        }
    }
}

impl fmt::Display for WatcherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault that was found in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// Who found it.
    pub watcher: WatcherKind,
    /// The step at which it was found.
    pub step: usize,
    /// What is done about it.
    pub action: Action,
    /// What was seen, with its numbers.
    pub what: String,
    /// What helps, in plain words.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}; {}", self.step, self.what, self.advice)
    }
}
