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
    /// Goes back to the last checkpoint from before the fault and on from there with half the rate; further back if the fault comes
    /// again, to the start where there is no checkpoint. After three times the next one ends the run with
    /// [`Error::RollBacksSpent`](crate::Error::RollBacksSpent).
    RollBack,
    /// Ends the run.
    Stop,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 4] = [Self::Say, Self::Skip, Self::RollBack, Self::Stop];

    /// The name, as it is serialised.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Say => "say",
            Self::Skip => "skip",
            Self::RollBack => "roll_back",
            Self::Stop => "stop",
        }
    }
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
    /// Every watcher.
    pub const ALL: [Self; 6] = [
        Self::NonFinite,
        Self::LossSpike,
        Self::Plateau,
        Self::Overfitting,
        Self::DeadParameter,
        Self::LearningRate,
    ];

    /// The name, as it is serialised.
    pub const fn name(self) -> &'static str {
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
    /// A checkpoint with fewer steps than this is from before the fault, and the next step from there comes before it, too.
    #[serde(default)]
    pub since: usize,
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
