//! How a run goes on: a bar for people at a terminal, a line now and then for a log, JSON for other programs.
//!
//! [`Progress`] writes for people and never fails: a terminal that is gone must not end a run of hours.
//! [`EventWriter`] writes one JSON object a line.

mod bars;
mod events;
mod pace;
mod people;

use std::collections::BTreeMap;

pub use events::{Event, EventWriter};
pub use people::Progress;

/// An optimizer step that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The step, from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The mean loss of a target token.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of prompts and completions a second.
    pub tokens_per_s: f64,
    /// Share of the step's time that its matrix products take where nothing comes between them; `None` where that was not measured,
    /// and for the first step, after which the rate of the machine is.
    pub gemm_share: Option<f64>,
    /// Passes over the training data that are done, as a fraction.
    pub epoch: f64,
    /// Passes that the run begins.
    pub total_epochs: usize,
    /// Whether the step is one of those that the recipe wants logged.
    pub is_logged: bool,
    /// The memory that the process holds, in MiB, where the system tells.
    pub memory_mib: Option<f64>,
}

/// How far an evaluation of the validation loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evaluating {
    /// Examples that are done.
    pub examples: usize,
    /// Examples of the validation data.
    pub total_examples: usize,
}

/// How far a pass of generation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generating {
    /// Prompts whose answers are known to be done; those of the last batch count when the pass ends.
    pub prompts: usize,
    /// Prompts of the whole pass.
    pub total_prompts: usize,
    /// Tokens that were generated so far.
    pub new_tokens: usize,
    /// Seconds since the pass began.
    pub seconds: f64,
}

/// The validation loss after some step.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// Steps done; 0 before the first.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The mean loss of a target token of the validation data.
    pub loss: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// The scores of the answers to its prompts, by metric; none where these are not answered.
    pub metrics: BTreeMap<String, f64>,
    /// Measurements that are still to come in this run.
    pub evaluations_left: usize,
}

/// A step of a learning-rate range test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RangeStep {
    /// The step, from 1.
    pub step: usize,
    /// Steps of the whole test, which may end before.
    pub total_steps: usize,
    /// The rate that the step was done with.
    pub learning_rate: f64,
    /// The loss before it.
    pub loss: f64,
    /// The exponential mean of the losses so far.
    pub smoothed_loss: f64,
}

/// The training went back to a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RolledBack {
    /// The steps that are done now.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// What the schedule's learning rate is multiplied by from here on.
    pub learning_rate_factor: f64,
}

impl Generating {
    fn new_tokens_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate of three digits")]
        let tokens = self.new_tokens as f64;
        if self.seconds > 0.0 { tokens / self.seconds } else { 0.0 }
    }
}

/// A step as the tests of both forms tell it.
#[cfg(test)]
fn step(step: usize) -> Step {
    Step {
        step,
        total_steps: 80,
        loss: 2.3456,
        learning_rate: 9.5e-4,
        grad_norm: 1.5,
        tokens_per_s: 165.6,
        gemm_share: Some(0.875),
        epoch: step as f64 / 40.0,
        total_epochs: 2,
        is_logged: false,
        memory_mib: Some(1617.0),
    }
}
