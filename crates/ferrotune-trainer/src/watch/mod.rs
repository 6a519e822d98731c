//! Watchers: each looks for one fault of a run, and says what it found and what helps.

mod action;
mod dead_parameter;
mod learning_rate;
mod loss_spike;
mod non_finite;
mod overfitting;
mod plateau;
mod robust;
mod run;
mod set;

pub use action::{Action, Finding, WatcherKind};
pub use dead_parameter::DeadParameter;
pub(crate) use dead_parameter::last_name;
pub use learning_rate::LearningRate;
pub use loss_spike::LossSpike;
pub use non_finite::NonFinite;
pub use overfitting::Overfitting;
pub use plateau::Plateau;
pub use set::{WatchActions, Watchers};

use serde::{Deserialize, Serialize};

use crate::{Error, EvaluationRecord};

/// The numbers of a step whose gradients are there and that the optimizer has not done yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSignals {
    /// The step, counted from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub max_steps: usize,
    /// Loss per target token.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The rate that the step is to be done with.
    pub learning_rate: f64,
}

/// How large a trainable parameter is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParameterNorm {
    /// Its name.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// The root of the sum of their squares.
    pub norm: f64,
}

/// Something that a watcher sees.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Observation<'a> {
    /// A step before the optimizer does it.
    Step(StepSignals),
    /// A step that cannot be done, since its loss or a gradient is not finite.
    NonFinite {
        /// The step, counted from 1.
        step: usize,
        /// What is not finite, and on which examples.
        error: &'a Error,
    },
    /// An evaluation of the validation set.
    Evaluation(&'a EvaluationRecord),
    /// The norms of all trainable parameters, at the steps that are logged.
    Norms {
        /// Steps done.
        step: usize,
        /// One for each parameter.
        norms: &'a [ParameterNorm],
    },
}

impl Observation<'_> {
    /// The step that was seen.
    pub fn step(&self) -> usize {
        match self {
            Self::Step(signals) => signals.step,
            Self::NonFinite { step, .. } | Self::Norms { step, .. } => *step,
            Self::Evaluation(record) => record.step,
        }
    }
}

/// What a watcher has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What was seen, with its numbers.
    pub what: String,
    /// What helps, in plain words.
    pub advice: String,
    /// A checkpoint with fewer steps than this is from before the fault; `None`: it began with the step that was seen.
    pub since: Option<usize>,
}

/// Looks for one fault. What it remembers of the run is the value itself, which goes into checkpoints: after the same observations a
/// watcher is the same, and says the same.
pub trait Watcher {
    /// Which one it is.
    const KIND: WatcherKind;

    /// Takes note of an observation; an alarm if it shows the fault.
    fn observe(&mut self, observation: Observation<'_>) -> Option<Alarm>;
}
