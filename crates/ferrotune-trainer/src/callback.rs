//! What a run reports while it goes on.

use serde::{Deserialize, Serialize};

use crate::error::BoxError;
use crate::{Evaluation, Finding, ParameterNorm, TrainOutcome, TrainPlan, TrainerState};

/// One optimizer step that was done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepRecord {
    /// Steps done, this one included.
    pub global_step: usize,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Negative log-likelihood per target token of this step.
    pub loss: f64,
    /// The rate that this step was done with.
    pub learning_rate: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Target tokens of this step.
    pub target_tokens: usize,
    /// Prompt and completion tokens of this step, no padding.
    pub real_tokens: usize,
    /// Real tokens of this step by its seconds.
    pub tokens_per_s: f64,
    /// Seconds of this step.
    pub seconds: f64,
}

/// One line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogRecord {
    /// Steps done.
    pub step: usize,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean of the steps' losses since the last record.
    pub loss: f64,
    /// The rate of the last step.
    pub learning_rate: f64,
    /// Norm of the last step's gradients before clipping.
    pub grad_norm: f64,
}

/// The `tracing` target of warnings that the plan, a callback, the outcome or [`Reporting::take_failures`](crate::Reporting::take_failures) tells,
/// too: who shows those may pass these over.
pub const TOLD: &str = "ferrotune_trainer::told";

/// An evaluation of the validation set during a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvaluationRecord {
    /// Steps done; 0 before the first.
    pub step: usize,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// What was measured.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Evaluations that are still to come.
    pub evaluations_left: usize,
}

/// Something that is told how a run goes. An error ends the run.
#[expect(
    unused_variables,
    reason = "the defaults do nothing, and their parameters have the names that the docs use"
)]
pub trait Callback {
    /// The name under which an error is reported.
    fn name(&self) -> &str {
        std::any::type_name::<Self>()
    }

    /// Training arguments that it carries out, by their names: `report_to`. Without a callback that does, a run that sets one of those is
    /// refused.
    fn arguments(&self) -> &[&str] {
        &[]
    }

    /// Before the first step. A run that goes on from a checkpoint has a `state` with steps that are done.
    ///
    /// # Errors
    /// Any error ends the run; so it is with every event.
    fn on_train_begin(&mut self, plan: &TrainPlan, state: &TrainerState) -> Result<(), BoxError> {
        Ok(())
    }

    /// After each optimizer step.
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
        Ok(())
    }

    /// After each step that is logged, following its [`Callback::on_step_end`].
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_log(&mut self, record: &LogRecord) -> Result<(), BoxError> {
        Ok(())
    }

    /// Before each batch of an evaluation, with the examples of the validation set that are done and that there are.
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_evaluation_progress(&mut self, done: usize, examples: usize) -> Result<(), BoxError> {
        Ok(())
    }

    /// After an evaluation, which follows the [`Callback::on_step_end`] and the [`Callback::on_log`] of its step; one before the first
    /// step follows [`Callback::on_train_begin`].
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
        Ok(())
    }

    /// After each step that is logged, following its [`Callback::on_log`].
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_norms(&mut self, step: usize, norms: &[ParameterNorm]) -> Result<(), BoxError> {
        Ok(())
    }

    /// When a watcher found a fault, before anything is done about it.
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
        Ok(())
    }

    /// When the run went back to an earlier `state`, from which it goes on: what was told of later steps does not hold any more.
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_roll_back(&mut self, state: &TrainerState) -> Result<(), BoxError> {
        Ok(())
    }

    /// After the last step and the evaluation that follows it; not after an error.
    ///
    /// # Errors
    /// See [`Callback::on_train_begin`].
    fn on_train_end(&mut self, outcome: &TrainOutcome) -> Result<(), BoxError> {
        Ok(())
    }
}

/// So that whoever started the run can use the callback after it.
impl<C: Callback + ?Sized> Callback for &mut C {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn arguments(&self) -> &[&str] {
        (**self).arguments()
    }

    fn on_train_begin(&mut self, plan: &TrainPlan, state: &TrainerState) -> Result<(), BoxError> {
        (**self).on_train_begin(plan, state)
    }

    fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
        (**self).on_step_end(record)
    }

    fn on_log(&mut self, record: &LogRecord) -> Result<(), BoxError> {
        (**self).on_log(record)
    }

    fn on_evaluation_progress(&mut self, done: usize, examples: usize) -> Result<(), BoxError> {
        (**self).on_evaluation_progress(done, examples)
    }

    fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
        (**self).on_evaluate(record)
    }

    fn on_norms(&mut self, step: usize, norms: &[ParameterNorm]) -> Result<(), BoxError> {
        (**self).on_norms(step, norms)
    }

    fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
        (**self).on_finding(finding)
    }

    fn on_roll_back(&mut self, state: &TrainerState) -> Result<(), BoxError> {
        (**self).on_roll_back(state)
    }

    fn on_train_end(&mut self, outcome: &TrainOutcome) -> Result<(), BoxError> {
        (**self).on_train_end(outcome)
    }
}
