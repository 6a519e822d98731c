//! The arguments of a run, under the names and with the defaults of `transformers.TrainingArguments` 5.23.

use serde::{Deserialize, Serialize};

use crate::{Error, EvalStrategy, Evaluation, Result, SaveStrategy, Schedule, SchedulerType};

/// How to train.
///
/// ```
/// use ferrotune_trainer::TrainingArguments;
/// let arguments: TrainingArguments = serde_json::from_str(r#"{"learning_rate": 1e-3, "warmup_steps": 0.1}"#)?;
/// arguments.validate()?;
/// assert_eq!(arguments.num_train_epochs, 3.0); // the default of transformers
/// let plan = arguments.plan(1000)?;
/// assert_eq!((plan.max_steps, plan.warmup_steps), (375, 38));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingArguments {
    /// How often every example is seen; a fraction ends within an epoch.
    pub num_train_epochs: f64,
    /// Optimizer steps to do, whatever `num_train_epochs` says; -1: as many as the epochs hold.
    pub max_steps: i64,
    /// Examples of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Examples of an evaluation batch. It changes the speed, not the result.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// The highest learning rate of the schedule.
    pub learning_rate: f64,
    /// Decoupled weight decay; biases and norms do not decay.
    pub weight_decay: f64,
    /// Decay of the mean of the gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of their squares.
    pub adam_beta2: f64,
    /// Added to the denominator of the update.
    pub adam_epsilon: f64,
    /// Gradients with a larger norm are scaled down to it; 0: never.
    pub max_grad_norm: f64,
    /// How the learning rate moves.
    pub lr_scheduler_type: SchedulerType,
    /// Steps over which the learning rate rises from 0; below 1, a share of all steps.
    pub warmup_steps: f64,
    /// Steps between two log records; below 1, a share of all steps. The last step is always logged.
    pub logging_steps: f64,
    /// When the validation set is evaluated during the run; after the last step it always is.
    pub eval_strategy: EvalStrategy,
    /// Steps between two evaluations of [`EvalStrategy::Steps`]; below 1, a share of all steps; `None`: as `logging_steps`.
    pub eval_steps: Option<f64>,
    /// Whether the validation set is evaluated before the first step, too.
    pub eval_on_start: bool,
    /// When a checkpoint is written.
    pub save_strategy: SaveStrategy,
    /// Steps between two checkpoints of [`SaveStrategy::Steps`]; below 1, a share of all steps.
    pub save_steps: f64,
    /// Whether the run ends with the parameters of the best checkpoint.
    pub load_best_model_at_end: bool,
    /// What an evaluation is judged by: `loss` or `perplexity`, with `eval_` before it or without. `None`: `loss`.
    pub metric_for_best_model: Option<String>,
    /// Whether a greater metric is a better one. `None`: not for `loss` and `perplexity`.
    pub greater_is_better: Option<bool>,
    /// The run ends after so many evaluations in a row that are not better than the best, as with transformers'
    /// `EarlyStoppingCallback`. `None`: never.
    pub early_stopping_patience: Option<usize>,
    /// By how much an evaluation must be better than the best to count as better there.
    pub early_stopping_threshold: f64,
    /// The root of all randomness of the run.
    pub seed: u64,
}

impl Default for TrainingArguments {
    fn default() -> Self {
        Self {
            num_train_epochs: 3.0,
            max_steps: -1,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_steps: 0.0,
            logging_steps: 500.0,
            eval_strategy: EvalStrategy::No,
            eval_steps: None,
            eval_on_start: false,
            save_strategy: SaveStrategy::Steps,
            save_steps: 500.0,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            seed: 42,
        }
    }
}

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
    /// Steps between two log records.
    pub logging_steps: usize,
    /// Steps between two evaluations of the validation set, if there is one; those of the whole run for [`EvalStrategy::No`].
    pub eval_steps: usize,
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
    /// Whether a validation set is evaluated after `step` steps: every `eval_steps`, after the last one, and before the first one if
    /// `eval_on_start` says so.
    pub fn evaluates_after(&self, step: usize) -> bool {
        if step == 0 {
            self.eval_on_start
        } else {
            step == self.max_steps || step.is_multiple_of(self.eval_steps)
        }
    }

    /// Whether a checkpoint is written after `step` steps: every `save_steps`, and after the last one. That of
    /// [`SaveStrategy::Best`] comes after an evaluation that is the best so far, which no plan knows.
    pub fn saves_after(&self, step: usize) -> bool {
        let strategy = matches!(self.save_strategy, SaveStrategy::Steps | SaveStrategy::Epoch);
        strategy && step > 0 && (step == self.max_steps || step.is_multiple_of(self.save_steps))
    }

    /// How many evaluations of a validation set are still to come after `step` steps and the evaluation that follows them.
    pub fn evaluations_left(&self, step: usize) -> usize {
        if step >= self.max_steps {
            0
        } else {
            self.max_steps.div_ceil(self.eval_steps) - step / self.eval_steps
        }
    }
}

impl TrainingArguments {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the name of the first such argument, its value, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let check = |holds: bool, field, found: String, expected| {
            if holds { Ok(()) } else { Err(Error::InvalidArgument { field, found, expected }) }
        };
        let non_negative = |field, value: f64| {
            check(
                value.is_finite() && value >= 0.0,
                field,
                value.to_string(),
                "a finite number of at least 0",
            )
        };
        let positive_count =
            |field, value: usize| check(value > 0, field, value.to_string(), "a whole number of at least 1");
        let beta = |field, value: f64| {
            check((0.0..1.0).contains(&value), field, value.to_string(), "a number of at least 0 and below 1")
        };
        let steps_or_share = |field, value: f64, at_least_some: bool| {
            let whole = value >= 1.0 && value.fract() == 0.0 && value <= 1e15;
            let share = (0.0..1.0).contains(&value) && !(at_least_some && value == 0.0);
            let expected = if at_least_some {
                "a whole number of steps, or a share of all steps above 0 and below 1"
            } else {
                "a whole number of steps, or a share of all steps of at least 0 and below 1"
            };
            check(whole || share, field, value.to_string(), expected)
        };
        positive_count("per_device_train_batch_size", self.per_device_train_batch_size)?;
        positive_count("per_device_eval_batch_size", self.per_device_eval_batch_size)?;
        positive_count("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        check(
            self.max_steps == -1 || self.max_steps > 0,
            "max_steps",
            self.max_steps.to_string(),
            "a whole number of at least 1, or -1 to train for num_train_epochs",
        )?;
        check(
            self.max_steps > 0
                || (self.num_train_epochs.is_finite()
                    && self.num_train_epochs > 0.0
                    && self.num_train_epochs <= 1e9),
            "num_train_epochs",
            self.num_train_epochs.to_string(),
            "a number above 0 and at most 1e9 (or max_steps above 0)",
        )?;
        non_negative("learning_rate", self.learning_rate)?;
        non_negative("weight_decay", self.weight_decay)?;
        beta("adam_beta1", self.adam_beta1)?;
        beta("adam_beta2", self.adam_beta2)?;
        non_negative("adam_epsilon", self.adam_epsilon)?;
        non_negative("max_grad_norm", self.max_grad_norm)?;
        steps_or_share("warmup_steps", self.warmup_steps, false)?;
        steps_or_share("logging_steps", self.logging_steps, true)?;
        steps_or_share("save_steps", self.save_steps, true)?;
        self.eval_steps.map_or(Ok(()), |steps| steps_or_share("eval_steps", steps, true))?;
        check(
            Evaluation::METRICS.contains(&self.metric_name()),
            "metric_for_best_model",
            self.metric_name().to_owned(),
            "eval_loss or eval_perplexity",
        )?;
        check(
            !self.load_best_model_at_end
                || self.save_strategy == SaveStrategy::Best
                || self.eval_strategy.name() == self.save_strategy.name(),
            "load_best_model_at_end",
            format!(
                "true, with eval_strategy {} and save_strategy {}",
                self.eval_strategy, self.save_strategy
            ),
            "the two strategies to be the same, or save_strategy best: what is not saved cannot be loaded",
        )?;
        check(
            self.early_stopping_patience.is_none() || self.eval_strategy != EvalStrategy::No,
            "early_stopping_patience",
            format!("{:?}, with eval_strategy no", self.early_stopping_patience.unwrap_or_default()),
            "an eval_strategy of steps or epoch",
        )?;
        non_negative("early_stopping_threshold", self.early_stopping_threshold)
    }

    /// What an evaluation is judged by, without `eval_`.
    pub fn metric_name(&self) -> &str {
        let name = self.metric_for_best_model.as_deref().unwrap_or("loss");
        name.strip_prefix("eval_").unwrap_or(name)
    }

    /// Whether a greater metric is a better one.
    pub fn greater_is_better(&self) -> bool {
        self.greater_is_better.unwrap_or_else(|| {
            let name = self.metric_name();
            !name.ends_with("loss") && !name.ends_with("perplexity")
        })
    }

    /// What a run over `examples` examples will do.
    ///
    /// With `B = ceil(examples / per_device_train_batch_size)` micro-batches an epoch, an epoch has
    /// `U = ceil(B / gradient_accumulation_steps)` optimizer steps: the last one takes what is left. The run has `max_steps` steps if
    /// that is given, else `ceil(num_train_epochs * U)`.
    ///
    /// # Errors
    /// What [`TrainingArguments::validate`] refuses; [`Error::EmptyDataset`] without examples.
    pub fn plan(&self, examples: usize) -> Result<TrainPlan> {
        self.validate()?;
        if examples == 0 {
            return Err(Error::EmptyDataset { split: "train" });
        }
        let batches_per_epoch = examples.div_ceil(self.per_device_train_batch_size);
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
        let eval_steps = match self.eval_strategy {
            EvalStrategy::No => max_steps,
            EvalStrategy::Steps => steps(self.eval_steps.unwrap_or(self.logging_steps)),
            EvalStrategy::Epoch => steps_per_epoch,
        };
        let save_steps = match self.save_strategy {
            SaveStrategy::No | SaveStrategy::Best => max_steps,
            SaveStrategy::Steps => steps(self.save_steps),
            SaveStrategy::Epoch => steps_per_epoch,
        };
        Ok(TrainPlan {
            examples,
            batches_per_epoch,
            steps_per_epoch,
            max_steps,
            epochs,
            warmup_steps: steps(self.warmup_steps),
            logging_steps: steps(self.logging_steps).max(1),
            eval_steps: eval_steps.max(1),
            eval_on_start: self.eval_on_start,
            save_strategy: self.save_strategy,
            save_steps: save_steps.max(1),
            per_device_train_batch_size: self.per_device_train_batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            trainable_parameters: 0,
        })
    }

    /// The learning rate of every step of the plan.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn schedule(&self, plan: &TrainPlan) -> Result<Schedule> {
        Schedule::new(self.lr_scheduler_type, self.learning_rate, plan.warmup_steps, plan.max_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut TrainingArguments)) -> String {
        let mut arguments = TrainingArguments::default();
        change(&mut arguments);
        arguments.validate().unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_valid() {
        TrainingArguments::default().validate().unwrap();
    }

    #[test]
    fn a_refusal_names_the_argument_its_value_and_what_is_expected() {
        assert_eq!(
            refusal(|a| a.per_device_train_batch_size = 0),
            "training argument per_device_train_batch_size = 0: expected a whole number of at least 1"
        );
        assert_eq!(
            refusal(|a| a.learning_rate = -1e-3),
            "training argument learning_rate = -0.001: expected a finite number of at least 0"
        );
    }

    #[test]
    fn values_that_no_run_can_use_are_refused() {
        type Change = fn(&mut TrainingArguments);
        let cases: [(&str, Change); 20] = [
            ("per_device_eval_batch_size", |a| a.per_device_eval_batch_size = 0),
            ("gradient_accumulation_steps", |a| a.gradient_accumulation_steps = 0),
            ("learning_rate", |a| a.learning_rate = f64::NAN),
            ("learning_rate", |a| a.learning_rate = f64::INFINITY),
            ("weight_decay", |a| a.weight_decay = -0.1),
            ("adam_beta1", |a| a.adam_beta1 = 1.0),
            ("adam_beta2", |a| a.adam_beta2 = f64::NAN),
            ("adam_epsilon", |a| a.adam_epsilon = -1e-8),
            ("max_grad_norm", |a| a.max_grad_norm = f64::NAN),
            ("max_steps", |a| a.max_steps = 0),
            ("max_steps", |a| a.max_steps = -2),
            ("num_train_epochs", |a| a.num_train_epochs = 0.0),
            ("num_train_epochs", |a| a.num_train_epochs = f64::INFINITY),
            ("warmup_steps", |a| a.warmup_steps = -1.0),
            ("warmup_steps", |a| a.warmup_steps = 1.5),
            ("warmup_steps", |a| a.warmup_steps = f64::NAN),
            ("logging_steps", |a| a.logging_steps = 0.0),
            ("logging_steps", |a| a.logging_steps = 2.5),
            ("eval_steps", |a| a.eval_steps = Some(0.0)),
            ("eval_steps", |a| a.eval_steps = Some(1.5)),
        ];
        for (field, change) in cases {
            let message = refusal(change);
            assert!(message.starts_with(&format!("training argument {field} = ")), "{message}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let message =
            serde_json::from_str::<TrainingArguments>(r#"{"learning_rat": 1e-3}"#).unwrap_err().to_string();
        assert!(message.contains("learning_rat") && message.contains("learning_rate"), "{message}");
        let message = serde_json::from_str::<TrainingArguments>(r#"{"lr_scheduler_type": "greedy"}"#)
            .unwrap_err()
            .to_string();
        assert!(message.contains("greedy") && message.contains("inverse_sqrt"), "{message}");
        let message = serde_json::from_str::<TrainingArguments>(r#"{"eval_strategy": "best"}"#)
            .unwrap_err()
            .to_string();
        assert!(message.contains("best") && message.contains("steps"), "{message}");
    }

    #[test]
    fn whole_numbers_are_accepted_where_a_fraction_is_possible() {
        let text = r#"{"num_train_epochs": 2, "warmup_steps": 4, "logging_steps": 1, "max_grad_norm": 1}"#;
        let arguments: TrainingArguments = serde_json::from_str(text).unwrap();
        assert_eq!(
            (arguments.num_train_epochs, arguments.warmup_steps, arguments.logging_steps),
            (2.0, 4.0, 1.0)
        );
        let back = serde_json::to_string(&arguments).unwrap();
        assert_eq!(serde_json::from_str::<TrainingArguments>(&back).unwrap(), arguments);
    }

    #[test]
    fn evaluations_left_are_those_that_come() {
        for (eval_strategy, eval_steps) in [
            (EvalStrategy::No, None),
            (EvalStrategy::Epoch, None),
            (EvalStrategy::Steps, Some(3.0)),
            (EvalStrategy::Steps, Some(0.4)),
            (EvalStrategy::Steps, Some(100.0)),
            (EvalStrategy::Steps, None),
        ] {
            let arguments =
                TrainingArguments { eval_strategy, eval_steps, num_train_epochs: 2.5, ..Default::default() };
            let plan = arguments.plan(32).unwrap();
            assert_eq!(plan.max_steps, 10);
            for step in 0..=10 {
                let coming = (step + 1..=10).filter(|&later| plan.evaluates_after(later)).count();
                assert_eq!(plan.evaluations_left(step), coming, "{eval_strategy:?} {eval_steps:?} {step}");
            }
        }
    }

    #[test]
    fn max_steps_makes_the_number_of_epochs_irrelevant() {
        let arguments = TrainingArguments { max_steps: 7, num_train_epochs: f64::NAN, ..Default::default() };
        let plan = arguments.plan(17).unwrap();
        assert_eq!((plan.steps_per_epoch, plan.max_steps, plan.epochs), (3, 7, 3));
        assert!(matches!(arguments.plan(0), Err(Error::EmptyDataset { split: "train" })));
    }
}
