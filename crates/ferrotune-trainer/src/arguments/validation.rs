//! Which values no run can use.

use super::TrainingArguments;
use crate::{Error, IntervalStrategy, OptimizerName, Result, SaveStrategy, SchedulerType};

impl TrainingArguments {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the name of the first such argument, its value, and what would be accepted;
    /// [`Error::UnknownName`] for a name in `optim_args` or `report_to` that is not known.
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
        self.eval_steps.map_or(Ok(()), |steps| steps_or_share("eval_steps", steps, true))?;
        steps_or_share("save_steps", self.save_steps, false)?;
        non_negative("eval_delay", self.eval_delay)?;
        check(
            (0.0..=1.0).contains(&self.label_smoothing_factor),
            "label_smoothing_factor",
            self.label_smoothing_factor.to_string(),
            "a number from 0 to 1",
        )?;
        self.neftune_noise_alpha.map_or(Ok(()), |alpha| non_negative("neftune_noise_alpha", alpha))?;
        let positive = |field, value: f64| {
            check(value.is_finite() && value > 0.0, field, value.to_string(), "a finite number above 0")
        };
        self.loraplus_lr_ratio.map_or(Ok(()), |ratio| positive("loraplus_lr_ratio", ratio))?;
        non_negative("loraplus_lr_embedding", self.loraplus_lr_embedding)?;
        self.save_total_limit.map_or(Ok(()), |limit| positive_count("save_total_limit", limit))?;
        self.early_stopping_patience
            .map_or(Ok(()), |patience| positive_count("early_stopping_patience", patience))?;
        non_negative("early_stopping_threshold", self.early_stopping_threshold)?;
        check(
            !(self.fp16 && self.bf16),
            "fp16",
            "true, with bf16 = true".into(),
            "at most one of fp16 and bf16",
        )?;
        self.check_optim_args()?;
        self.validate_choices()
    }

    /// Refuses what is contradictory.
    fn validate_choices(&self) -> Result<()> {
        if let Some(name) = self.report_to.iter().find(|name| !REPORTERS.contains(&name.as_str())) {
            return Err(Error::unknown_name("report_to", name, &REPORTERS));
        }
        let refuse = |field, found, expected| Err(Error::InvalidArgument { field, found, expected });
        let defaults = Self::default();
        for (field, value, default) in [
            ("adam_beta1", self.adam_beta1, defaults.adam_beta1),
            ("adam_beta2", self.adam_beta2, defaults.adam_beta2),
            ("adam_epsilon", self.adam_epsilon, defaults.adam_epsilon),
        ] {
            if self.optim == OptimizerName::Sgd && value != default {
                return refuse(field, value.to_string(), "an optim of adamw_torch: sgd does not read it");
            }
        }
        if self.loraplus_lr_ratio.is_none() && self.loraplus_lr_embedding != defaults.loraplus_lr_embedding {
            let found = self.loraplus_lr_embedding.to_string();
            return refuse(
                "loraplus_lr_embedding",
                found,
                "a loraplus_lr_ratio, without which there is no LoRA+",
            );
        }
        if self.early_stopping_patience.is_none() && self.early_stopping_threshold != 0.0 {
            let found = self.early_stopping_threshold.to_string();
            return refuse(
                "early_stopping_threshold",
                found,
                "an early_stopping_patience, without which no run stops early",
            );
        }
        if self.eval_strategy == IntervalStrategy::No {
            let expected = "an eval_strategy of steps or epoch, whose evaluations it needs";
            if self.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau {
                return refuse("lr_scheduler_type", "reduce_lr_on_plateau".into(), expected);
            }
            if let Some(patience) = self.early_stopping_patience {
                return refuse("early_stopping_patience", patience.to_string(), expected);
            }
            if self.load_best_model_at_end {
                return refuse("load_best_model_at_end", "true".into(), expected);
            }
            if self.save_strategy == SaveStrategy::Best {
                return refuse("save_strategy", "best".into(), expected);
            }
        }
        let matching = match self.save_strategy {
            SaveStrategy::Best => true,
            SaveStrategy::No => false,
            SaveStrategy::Epoch => self.eval_strategy == IntervalStrategy::Epoch,
            SaveStrategy::Steps => {
                let eval_steps = self.eval_steps.unwrap_or(self.logging_steps);
                self.eval_strategy == IntervalStrategy::Steps && is_multiple(self.save_steps, eval_steps)
            }
        };
        if self.load_best_model_at_end && !matching {
            return refuse(
                "load_best_model_at_end",
                format!(
                    "true, with save_strategy {}, eval_strategy {}",
                    self.save_strategy, self.eval_strategy
                ),
                "a checkpoint of each best evaluation: save_strategy = best, or that of eval_strategy, with save_steps a \
                 multiple of eval_steps",
            );
        }
        Ok(())
    }
}

/// What `report_to` takes, beside `none` and `all` where it is read.
pub const REPORTERS: [&str; 3] = ["tensorboard", "csv", "jsonl"];

/// Whether `steps` is a multiple of `of`, both whole or both shares.
fn is_multiple(steps: f64, of: f64) -> bool {
    // As whole millionths, in which shares are exact.
    let scale = if steps < 1.0 && of < 1.0 { 1e6 } else { 1.0 };
    (steps < 1.0) == (of < 1.0) && (steps * scale) % (of * scale) == 0.0
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
        let cases: [(&str, Change); 38] = [
            ("loraplus_lr_embedding", |a| a.loraplus_lr_embedding = 1e-4),
            ("early_stopping_threshold", |a| a.early_stopping_threshold = 0.1),
            ("per_device_eval_batch_size", |a| a.per_device_eval_batch_size = 0),
            ("gradient_accumulation_steps", |a| a.gradient_accumulation_steps = 0),
            ("learning_rate", |a| a.learning_rate = f64::NAN),
            ("learning_rate", |a| a.learning_rate = f64::INFINITY),
            ("weight_decay", |a| a.weight_decay = -0.1),
            ("adam_beta1", |a| a.adam_beta1 = 1.0),
            ("adam_beta2", |a| a.adam_beta2 = f64::NAN),
            ("adam_epsilon", |a| a.adam_epsilon = -1e-8),
            ("adam_beta2", |a| (a.optim, a.adam_beta2) = (OptimizerName::Sgd, 0.99)),
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
            ("eval_delay", |a| a.eval_delay = -1.0),
            ("save_steps", |a| a.save_steps = 1.5),
            ("label_smoothing_factor", |a| a.label_smoothing_factor = 1.5),
            ("neftune_noise_alpha", |a| a.neftune_noise_alpha = Some(f64::NAN)),
            ("loraplus_lr_ratio", |a| a.loraplus_lr_ratio = Some(0.0)),
            ("loraplus_lr_embedding", |a| a.loraplus_lr_embedding = -1.0),
            ("save_total_limit", |a| a.save_total_limit = Some(0)),
            ("early_stopping_patience", |a| a.early_stopping_patience = Some(0)),
            ("early_stopping_patience", |a| a.early_stopping_patience = Some(1)),
            ("early_stopping_threshold", |a| a.early_stopping_threshold = f64::NAN),
            ("fp16", |a| (a.fp16, a.bf16) = (true, true)),
            ("lr_scheduler_type", |a| a.lr_scheduler_type = SchedulerType::ReduceLrOnPlateau),
            ("save_strategy", |a| a.save_strategy = SaveStrategy::Best),
            ("load_best_model_at_end", |a| a.load_best_model_at_end = true),
            ("load_best_model_at_end", |a| {
                (a.load_best_model_at_end, a.eval_strategy) = (true, IntervalStrategy::Epoch);
            }),
        ];
        for (field, change) in cases {
            let message = refusal(change);
            assert!(message.starts_with(&format!("training argument {field} = ")), "{message}");
        }
    }

    #[test]
    fn names_that_do_not_exist_are_refused_with_the_nearest() {
        let message = refusal(|a| a.report_to = vec!["tensorbord".into()]);
        assert!(
            message.contains("report_to") && message.contains("did you mean \"tensorboard\"?"),
            "{message}"
        );
    }

    #[test]
    fn the_best_model_needs_a_checkpoint_of_each_evaluation() {
        let accepted = |eval_steps, save_steps| {
            let arguments = TrainingArguments {
                load_best_model_at_end: true,
                eval_strategy: IntervalStrategy::Steps,
                eval_steps,
                save_steps,
                ..Default::default()
            };
            arguments.validate().is_ok()
        };
        assert!(accepted(Some(50.0), 500.0) && accepted(Some(0.1), 0.3) && accepted(None, 1000.0));
        assert!(!accepted(Some(300.0), 500.0) && !accepted(Some(0.1), 500.0) && !accepted(Some(0.2), 0.3));
    }
}
