//! What a run knows of itself, for a checkpoint.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use ferrotune_precision::GradScalerState;

use crate::{Evaluation, EvaluationRecord, Finding, LogRecord, PlateauState, TrainPlan, Watchers};

/// All that a run must know to go on, beside the parameters and the optimizer's state; `trainer_state.json` of a checkpoint.
///
/// Randomness and the order of the data are functions of the seed, the epoch and the step, so that no generator's state is in it.
/// Fields that `transformers.TrainerState` has are called as there.
///
/// ```
/// use ferrotune_trainer::TrainerState;
/// let state: TrainerState = serde_json::from_str(r#"{"global_step": 500, "best_metric": 1.25}"#)?;
/// assert_eq!((state.global_step, state.best_metric), (500, Some(1.25)));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # References
/// `transformers.TrainerState` 5.23.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrainerState {
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Optimizer steps done.
    pub global_step: usize,
    /// Optimizer steps of the run.
    pub max_steps: usize,
    /// Epochs that the run begins.
    pub num_train_epochs: usize,
    /// Examples of a micro-batch.
    pub train_batch_size: usize,
    /// Prompt and completion tokens of the steps done, no padding.
    pub num_input_tokens_seen: usize,
    /// The log and the evaluations, in order.
    pub log_history: Vec<LogEntry>,
    /// The best value of the metric that evaluations are judged by.
    pub best_metric: Option<f64>,
    /// The step after which it was measured.
    pub best_global_step: Option<usize>,
    /// The checkpoint of that step, if there is one.
    pub best_model_checkpoint: Option<PathBuf>,
    /// Evaluations in a row that were not better than the best, as `EarlyStoppingCallback` counts them.
    pub early_stopping_patience_counter: usize,
    /// What `reduce_lr_on_plateau` remembers; other schedules need the number of steps alone.
    pub lr_scheduler: Option<PlateauState>,
    /// What the scaler of the loss under `fp16` remembers; `None` without one, or before the first step.
    pub grad_scaler: Option<GradScalerState>,
    /// Where the next step takes its examples.
    pub data_position: DataPosition,
    /// Sum of the losses of the steps done.
    pub total_loss: f64,
    /// Losses of the steps since the last log record.
    pub unlogged_losses: Vec<f64>,
    /// Seconds of the steps done, without evaluations and checkpoints.
    pub train_seconds: f64,
    /// Seconds from the start of the loop to the end of the first step.
    pub time_to_first_step: Option<f64>,
    /// Steps among those done that were left out: the learning-rate schedule does not count them.
    pub skipped_steps: usize,
    /// How the run went back to checkpoints; each time halves the rate of the steps that follow.
    pub roll_backs: Vec<RollBack>,
    /// What the watchers remember.
    pub watchers: Watchers,
    /// What they found, in order.
    pub findings: Vec<Finding>,
}

/// A run went back from a fault to a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBack {
    /// The step at which the fault was found.
    pub from: usize,
    /// The steps of the checkpoint; 0: the start.
    pub to: usize,
}

/// A place in the order of the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// The epoch, counted from 0.
    pub epoch: usize,
    /// Micro-batches of it that are done.
    pub batches: usize,
}

impl DataPosition {
    /// The place after `batches` more micro-batches.
    pub(crate) fn advanced(self, batches: usize, batches_per_epoch: usize) -> Self {
        let batches = self.batches + batches;
        if batches >= batches_per_epoch {
            Self { epoch: self.epoch + 1, batches: 0 }
        } else {
            Self { batches, ..self }
        }
    }
}

/// An entry of [`TrainerState::log_history`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogEntry {
    /// An evaluation: its numbers have `eval_` before their names.
    Evaluation(
        #[serde(serialize_with = "write_evaluation", deserialize_with = "read_evaluation")] EvaluationRecord,
    ),
    /// A log record.
    Train(LogRecord),
}

impl TrainerState {
    pub(crate) fn of(plan: &TrainPlan) -> Self {
        let mut state = Self { train_batch_size: plan.per_device_train_batch_size, ..Self::default() };
        state.fit(plan);
        state
    }

    /// The log records.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &LogRecord> {
        self.log_history.iter().filter_map(|entry| match entry {
            LogEntry::Train(record) => Some(record),
            LogEntry::Evaluation(_) => None,
        })
    }

    /// The evaluations.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &EvaluationRecord> {
        self.log_history.iter().filter_map(|entry| match entry {
            LogEntry::Evaluation(record) => Some(record),
            LogEntry::Train(_) => None,
        })
    }

    /// What the schedule's learning rate is multiplied by: a half for each of `roll_backs`.
    pub fn learning_rate_factor(&self) -> f64 {
        0.5_f64.powi(i32::try_from(self.roll_backs.len()).unwrap_or(i32::MAX))
    }

    /// Takes over what a plan says. With other batches the position is the first batch that holds no example already seen.
    pub(crate) fn fit(&mut self, plan: &TrainPlan) {
        let size = plan.per_device_train_batch_size;
        let position = &mut self.data_position;
        if self.train_batch_size != size {
            position.batches = (position.batches * self.train_batch_size).div_ceil(size);
        }
        *position = position.advanced(0, plan.batches_per_epoch);
        self.train_batch_size = size;
        self.max_steps = plan.max_steps;
        self.num_train_epochs = plan.epochs;
    }
}

#[derive(Serialize, Deserialize)]
struct EvaluationNames {
    step: usize,
    epoch: f64,
    eval_loss: f64,
    eval_nll: f64,
    eval_target_tokens: usize,
    eval_examples: usize,
    eval_runtime: f64,
    evaluations_left: usize,
    /// With `eval_` before their names.
    #[serde(flatten)]
    metrics: BTreeMap<String, f64>,
}

fn write_evaluation<S: Serializer>(record: &EvaluationRecord, serializer: S) -> Result<S::Ok, S::Error> {
    let EvaluationRecord { step, epoch, evaluation, evaluations_left } = record.clone();
    let Evaluation { loss, nll, target_tokens, examples, seconds, metrics } = evaluation;
    EvaluationNames {
        step,
        epoch,
        eval_loss: loss,
        eval_nll: nll,
        eval_target_tokens: target_tokens,
        eval_examples: examples,
        eval_runtime: seconds,
        evaluations_left,
        metrics: metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect(),
    }
    .serialize(serializer)
}

fn read_evaluation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EvaluationRecord, D::Error> {
    let names = EvaluationNames::deserialize(deserializer)?;
    let metrics = names.metrics.into_iter();
    let metrics = metrics.filter_map(|(name, value)| Some((name.strip_prefix("eval_")?.to_owned(), value)));
    Ok(EvaluationRecord {
        step: names.step,
        epoch: names.epoch,
        evaluation: Evaluation {
            loss: names.eval_loss,
            nll: names.eval_nll,
            target_tokens: names.eval_target_tokens,
            examples: names.eval_examples,
            seconds: names.eval_runtime,
            metrics: metrics.collect(),
        },
        evaluations_left: names.evaluations_left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TrainerState {
        let evaluation = Evaluation {
            loss: 0.1 + 0.2,
            nll: 3.3,
            target_tokens: 11,
            examples: 2,
            seconds: 0.25,
            metrics: [("rougeL".to_owned(), 100.0 / 3.0)].into(),
        };
        TrainerState {
            epoch: 1.0 / 3.0,
            global_step: 5,
            log_history: vec![
                LogEntry::Train(LogRecord {
                    step: 5,
                    epoch: 1.0 / 3.0,
                    loss: std::f64::consts::PI / 3.0,
                    learning_rate: 1e-3 * (1.0 - 5.0 / 7.0),
                    grad_norm: 2.0_f64.sqrt(),
                }),
                LogEntry::Evaluation(EvaluationRecord {
                    step: 5,
                    epoch: 1.0 / 3.0,
                    evaluation,
                    evaluations_left: 3,
                }),
            ],
            best_metric: Some(0.1 + 0.2),
            grad_scaler: Some(GradScalerState { scale: 1.0 / 3.0, growth_tracker: 7, ..Default::default() }),
            unlogged_losses: vec![1.0 / 7.0, 1e-300],
            ..TrainerState::default()
        }
    }

    #[test]
    fn json_keeps_every_bit_under_the_names_of_transformers() {
        let state = state();
        let text = serde_json::to_string(&state).unwrap();
        for name in ["\"log_history\":[{\"step\":5", "\"eval_loss\":0.30000000000000004", "\"eval_runtime\""]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert_eq!(serde_json::from_str::<TrainerState>(&text).unwrap(), state);
        assert_eq!((state.history().count(), state.evaluations().count()), (1, 1));
    }

    #[test]
    fn a_position_moves_into_the_next_epoch_and_to_other_batches() {
        let start = DataPosition::default();
        assert_eq!(start.advanced(3, 4), DataPosition { epoch: 0, batches: 3 });
        assert_eq!(start.advanced(4, 4), DataPosition { epoch: 1, batches: 0 });
        let arguments = crate::TrainingArguments { per_device_train_batch_size: 4, ..Default::default() };
        let plan = arguments.plan(20).unwrap();
        for (batches, expected) in [(0, 0), (1, 1), (2, 1), (3, 2), (9, 5)] {
            let mut state = TrainerState {
                train_batch_size: 2,
                data_position: DataPosition { epoch: 1, batches },
                ..TrainerState::default()
            };
            state.fit(&plan);
            let expected = DataPosition { epoch: 1, batches: expected }.advanced(0, 5);
            assert_eq!(state.data_position, expected, "{batches} batches of 2 done");
        }
    }
}
