//! What a run leaves.

use serde::Serialize;

use crate::{Evaluation, EvaluationRecord, Finding, LogRecord, TrainerState};

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainOutcome {
    /// The steps that were logged.
    pub history: Vec<LogRecord>,
    /// Optimizer steps done, those that were left out among them.
    pub global_step: usize,
    /// Seconds of the steps alone, without the evaluations.
    pub seconds: f64,
    /// Seconds from the start of the loop to the end of the first step, without an evaluation before it; `None` if there was none.
    pub time_to_first_step: Option<f64>,
    /// Prompt and completion tokens of all steps done, no padding.
    pub real_tokens: usize,
    /// Mean of the losses of all steps that were not left out.
    pub train_loss: f64,
    /// The evaluations, in order: those of `eval_on_start` and `eval_strategy`, and the one after the last step.
    pub evaluations: Vec<EvaluationRecord>,
    /// The evaluation after the last step, if there is a validation set and the run was not cancelled.
    pub validation: Option<Evaluation>,
    /// The best value of `metric_for_best_model`, if evaluations are judged.
    pub best_metric: Option<f64>,
    /// The step after which it was measured.
    pub best_global_step: Option<usize>,
    /// Whether the cancellation flag ended the run before its last step. The parameters are those after the last whole step.
    pub cancelled: bool,
    /// What the watchers found, in order.
    pub findings: Vec<Finding>,
    /// The fault that ended the run before its last step, by [`Action::Stop`](crate::Action::Stop).
    pub ended_by: Option<Finding>,
}

impl TrainOutcome {
    pub(crate) fn new(state: &TrainerState, cancelled: bool, ended_by: Option<Finding>) -> Self {
        let last = state.evaluations().next_back().filter(|record| record.step == state.global_step);
        Self {
            history: state.history().copied().collect(),
            global_step: state.global_step,
            seconds: state.train_seconds,
            time_to_first_step: state.time_to_first_step,
            real_tokens: state.num_input_tokens_seen,
            train_loss: state.total_loss / (state.global_step - state.skipped_steps).max(1) as f64,
            evaluations: state.evaluations().cloned().collect(),
            validation: last.filter(|_| !cancelled).map(|record| record.evaluation.clone()),
            best_metric: state.best_metric,
            best_global_step: state.best_global_step,
            cancelled,
            findings: state.findings.clone(),
            ended_by,
        }
    }

    /// Real tokens by the seconds of the loop.
    pub fn tokens_per_s(&self) -> f64 {
        self.real_tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}
