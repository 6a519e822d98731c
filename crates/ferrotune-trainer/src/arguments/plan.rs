//! What a run will do, as arithmetic.

use serde::Serialize;

use super::TrainingArguments;
use crate::{Error, IntervalStrategy, Result, SaveStrategy};

/// What a run will do, known before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainPlan {
    /// Examples of the data set.
    pub examples: usize,
    /// Micro-batches of an epoch.
    pub batches_per_epoch: usize,
    /// Optimizer steps of an epoch; the last one may have fewer micro-batches.
    pub steps_per_epoch: usize,
    /// Optimizer steps of the run.
    pub max_steps: usize,
    /// Epochs that are begun.
    pub epochs: usize,
    /// Steps of the warm-up.
    pub warmup_steps: usize,
    /// When the loss is logged.
    pub logging_strategy: IntervalStrategy,
    /// Steps between two log records; those of the whole run for [`IntervalStrategy::No`].
    pub logging_steps: usize,
    /// Whether the first step is logged, too.
    pub logging_first_step: bool,
    /// When the validation set is evaluated, if there is one.
    pub eval_strategy: IntervalStrategy,
    /// Steps between two evaluations of the validation set; those of the whole run for [`IntervalStrategy::No`].
    pub eval_steps: usize,
    /// Steps or epochs, as `eval_strategy` counts, before which there is none.
    pub eval_delay: f64,
    /// Whether there is an evaluation before the first step.
    pub eval_on_start: bool,
    /// When a checkpoint is written, if there is a folder for it.
    pub save_strategy: SaveStrategy,
    /// Steps between two checkpoints; those of the whole run where the number of steps does not say when.
    pub save_steps: usize,
    /// Examples of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Trainable elements of the model (0 in a plan made without one).
    pub trainable_parameters: usize,
}

impl TrainPlan {
    /// Epochs that are done after `step` steps, as a fraction.
    pub fn epoch_after(&self, step: usize) -> f64 {
        let (epochs, steps) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        epochs as f64 + (steps * self.gradient_accumulation_steps) as f64 / self.batches_per_epoch as f64
    }

    /// Whether the loss is logged after `step` steps: every `logging_steps`, after the last one, and after the first if
    /// `logging_first_step` says so.
    pub fn logs_after(&self, step: usize) -> bool {
        self.is_due(step, self.logging_steps) || (step == 1 && self.logging_first_step)
    }

    /// Whether a checkpoint is written after `step` steps: every `save_steps`, and after the last one. That of
    /// [`SaveStrategy::Best`] comes after an evaluation that is the best so far, which no plan knows.
    pub fn saves_after(&self, step: usize) -> bool {
        matches!(self.save_strategy, SaveStrategy::Steps | SaveStrategy::Epoch)
            && self.is_due(step, self.save_steps)
    }

    /// Whether a validation set is evaluated after `step` steps: every `eval_steps` and after the last one, but not before
    /// `eval_delay`; and before the first step if `eval_on_start` says so.
    pub fn evaluates_after(&self, step: usize) -> bool {
        if step == 0 {
            return self.eval_on_start;
        }
        let delay_is_over = match self.eval_strategy {
            IntervalStrategy::No => true,
            IntervalStrategy::Steps => step as f64 >= self.eval_delay,
            IntervalStrategy::Epoch => self.epoch_after(step) >= self.eval_delay,
        };
        delay_is_over && self.is_due(step, self.eval_steps)
    }

    /// How many evaluations of a validation set are still to come after `step` steps and the evaluation that follows them.
    pub fn evaluations_left(&self, step: usize) -> usize {
        if step >= self.max_steps {
            return 0;
        }
        let unit = if self.eval_strategy == IntervalStrategy::Epoch { self.steps_per_epoch } else { 1 };
        let delay = match self.eval_strategy {
            IntervalStrategy::No => 0,
            // A float to an integer saturates.
            _ => (self.eval_delay.ceil() as usize).saturating_mul(unit).saturating_sub(1),
        };
        let whole = (self.max_steps / self.eval_steps).saturating_sub(step.max(delay) / self.eval_steps);
        let last = !self.max_steps.is_multiple_of(self.eval_steps) && self.evaluates_after(self.max_steps);
        whole + usize::from(last)
    }

    fn is_due(&self, step: usize, every: usize) -> bool {
        step > 0 && (step == self.max_steps || step.is_multiple_of(every))
    }
}

impl TrainingArguments {
    /// What a run over `examples` examples will do.
    ///
    /// With `B = ceil(examples / per_device_train_batch_size)` micro-batches an epoch (the whole ones alone if
    /// `dataloader_drop_last`), an epoch has `U = ceil(B / gradient_accumulation_steps)` optimizer steps: the last one takes what is
    /// left. The run has `max_steps` steps if that is given, else `ceil(num_train_epochs * U)`.
    ///
    /// # Errors
    /// What [`TrainingArguments::validate`] refuses; [`Error::EmptyDataset`] without examples; [`Error::InvalidArgument`] if
    /// `dataloader_drop_last` leaves none of them.
    pub fn plan(&self, examples: usize) -> Result<TrainPlan> {
        self.validate()?;
        if examples == 0 {
            return Err(Error::EmptyDataset { split: "train" });
        }
        let batches_per_epoch = if self.dataloader_drop_last {
            examples / self.per_device_train_batch_size
        } else {
            examples.div_ceil(self.per_device_train_batch_size)
        };
        if batches_per_epoch == 0 {
            return Err(Error::InvalidArgument {
                field: "dataloader_drop_last",
                found: format!("true, with {examples} examples"),
                expected: "at least per_device_train_batch_size examples, or false",
            });
        }
        let steps_per_epoch = batches_per_epoch.div_ceil(self.gradient_accumulation_steps);
        let (max_steps, epochs) = match usize::try_from(self.max_steps) {
            Ok(max_steps) => (max_steps, max_steps.div_ceil(steps_per_epoch)),
            // A float to an integer saturates, and `validate` bounds the epochs.
            Err(_) => (
                (self.num_train_epochs * steps_per_epoch as f64).ceil() as usize,
                self.num_train_epochs.ceil() as usize,
            ),
        };
        let steps = |value: f64| {
            if value < 1.0 { (max_steps as f64 * value).ceil() as usize } else { value as usize }
        };
        let every = |strategy, value: f64| {
            let interval = match strategy {
                IntervalStrategy::No => max_steps,
                IntervalStrategy::Steps => steps(value),
                IntervalStrategy::Epoch => steps_per_epoch,
            };
            interval.max(1)
        };
        Ok(TrainPlan {
            examples,
            batches_per_epoch,
            steps_per_epoch,
            max_steps,
            epochs,
            warmup_steps: steps(self.warmup_steps),
            logging_strategy: self.logging_strategy,
            logging_steps: every(self.logging_strategy, self.logging_steps),
            logging_first_step: self.logging_first_step,
            eval_strategy: self.eval_strategy,
            eval_steps: every(self.eval_strategy, self.eval_steps.unwrap_or(self.logging_steps)),
            eval_delay: self.eval_delay,
            eval_on_start: self.eval_on_start,
            save_strategy: self.save_strategy,
            save_steps: match self.save_strategy {
                SaveStrategy::No | SaveStrategy::Best => every(IntervalStrategy::No, 0.0),
                SaveStrategy::Steps => every(IntervalStrategy::Steps, self.save_steps),
                SaveStrategy::Epoch => every(IntervalStrategy::Epoch, 0.0),
            },
            per_device_train_batch_size: self.per_device_train_batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            trainable_parameters: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_left_are_those_that_come() {
        for (eval_strategy, eval_steps) in [
            (IntervalStrategy::No, None),
            (IntervalStrategy::Epoch, None),
            (IntervalStrategy::Steps, Some(3.0)),
            (IntervalStrategy::Steps, Some(0.4)),
            (IntervalStrategy::Steps, Some(100.0)),
            (IntervalStrategy::Steps, None),
        ] {
            for (max_steps, eval_delay, eval_on_start) in [
                (1, 0.0, true),
                (7, 0.0, false),
                (8, 1.5, true),
                (9, 0.8, false),
                (9, 3.0, false),
                (7, 50.0, true),
            ] {
                let arguments = TrainingArguments {
                    max_steps,
                    eval_strategy,
                    eval_steps,
                    eval_delay,
                    eval_on_start,
                    per_device_train_batch_size: 1,
                    gradient_accumulation_steps: 2,
                    logging_steps: 4.0,
                    ..Default::default()
                };
                let plan = arguments.plan(5).unwrap();
                for step in 0..=plan.max_steps {
                    let to_come = (step + 1..=plan.max_steps).filter(|&step| plan.evaluates_after(step));
                    assert_eq!(plan.evaluations_left(step), to_come.count(), "{plan:?} after {step}");
                }
                assert!(plan.eval_delay > 40.0 || plan.evaluates_after(plan.max_steps), "{plan:?}");
                assert_eq!(plan.evaluates_after(0), eval_on_start);
            }
        }
    }

    #[test]
    fn what_does_not_fill_a_batch_is_left_out_on_request() {
        let arguments = TrainingArguments { dataloader_drop_last: true, ..Default::default() };
        assert_eq!(arguments.plan(23).unwrap().batches_per_epoch, 2);
        let message = arguments.plan(7).unwrap_err().to_string();
        assert!(message.contains("dataloader_drop_last = true, with 7 examples"), "{message}");
        assert!(matches!(arguments.plan(0), Err(Error::EmptyDataset { split: "train" })));
    }

    #[test]
    fn max_steps_makes_the_number_of_epochs_irrelevant() {
        let arguments = TrainingArguments { max_steps: 7, num_train_epochs: f64::NAN, ..Default::default() };
        let plan = arguments.plan(17).unwrap();
        assert_eq!((plan.steps_per_epoch, plan.max_steps, plan.epochs), (3, 7, 3));
    }
}
