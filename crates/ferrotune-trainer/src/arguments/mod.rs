//! The arguments of a run, under the names and with the defaults of `transformers.TrainingArguments` 5.23.

mod forward;
mod plan;
mod reading;
mod validation;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use forward::ForwardArguments;
pub use plan::TrainPlan;
pub use reading::{NOT_OFFERED, OLDER_NAMES, chosen_reporters};
pub use validation::REPORTERS;

use crate::{
    IntervalStrategy, OptimizerName, Result, SaveStrategy, Schedule, SchedulerKwargs, SchedulerType,
};

/// How to train.
///
/// Read from JSON or TOML, an unknown name is refused with the nearest one, an argument of transformers that is
/// [not offered](NOT_OFFERED) with the reason, and [an older name](OLDER_NAMES) is taken and said.
///
/// ```
/// use ferrotune_trainer::TrainingArguments;
/// let arguments: TrainingArguments = serde_json::from_str(r#"{"learning_rate": 1e-3, "warmup_steps": 0.1}"#)?;
/// arguments.validate()?;
/// assert_eq!(arguments.num_train_epochs, 3.0); // the default of transformers
/// let plan = arguments.plan(1000)?;
/// assert_eq!((plan.max_steps, plan.warmup_steps), (375, 38));
///
/// let error = serde_json::from_str::<TrainingArguments>(r#"{"learning_rat": 1e-3}"#).unwrap_err();
/// assert!(error.to_string().contains("did you mean `learning_rate`?"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct TrainingArguments {
    /// Where checkpoints go; without it none is written.
    pub output_dir: Option<PathBuf>,
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
    /// Whether the examples of an epoch that do not fill a micro-batch are left out.
    pub dataloader_drop_last: bool,
    /// The highest learning rate of the schedule.
    pub learning_rate: f64,
    /// How the learning rate moves.
    pub lr_scheduler_type: SchedulerType,
    /// What else the schedule is told; [`Schedule`] has the names.
    #[serde(deserialize_with = "reading::or_default")]
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// Steps over which the learning rate rises from 0; below 1, a share of all steps.
    pub warmup_steps: f64,
    /// What turns gradients into an update.
    pub optim: OptimizerName,
    /// Further arguments of the optimizer, `"momentum=0.9,nesterov=true"`.
    pub optim_args: Option<String>,
    /// Weight decay; biases and norms do not decay.
    pub weight_decay: f64,
    /// Decay of the mean of the gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of their squares.
    pub adam_beta2: f64,
    /// Added to the denominator of the update.
    pub adam_epsilon: f64,
    /// LoRA+: the `B` matrices learn with the learning rate times this, under PEFT's name. `None`: no LoRA+.
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA+: the learning rate of adapters of embeddings, under PEFT's name.
    pub loraplus_lr_embedding: f64,
    /// Gradients with a larger norm are scaled down to it; 0: never.
    pub max_grad_norm: f64,
    /// The share of a target's probability that is spread over the whole vocabulary. This and the next four are the model's own business:
    /// [`ForwardArguments`].
    pub label_smoothing_factor: f64,
    /// NEFTune: noise on the embeddings in training, uniform within `alpha / sqrt(length * width)`.
    pub neftune_noise_alpha: Option<f64>,
    /// Whether products are computed in bf16; adapters and the optimizer stay f32.
    pub bf16: bool,
    /// Whether products are computed in f16, with a scaled loss; adapters and the optimizer stay f32.
    pub fp16: bool,
    /// Whether activations are computed again in the backward pass rather than kept.
    #[serde(alias = "activation_checkpointing")]
    pub gradient_checkpointing: bool,
    /// When the loss is logged. The last step always is.
    pub logging_strategy: IntervalStrategy,
    /// Steps between two log records of [`IntervalStrategy::Steps`]; below 1, a share of all steps.
    pub logging_steps: f64,
    /// Whether the first step is logged, too.
    pub logging_first_step: bool,
    /// Where the log goes: `tensorboard`, `csv`, `jsonl`, or `all` of them; whoever starts the run makes a [`Reporting`](crate::Reporting).
    #[serde(deserialize_with = "reading::one_or_many")]
    pub report_to: Vec<String>,
    /// What the run is called in the logs.
    pub run_name: Option<String>,
    /// When the validation set is evaluated during the run; after the last step it is, too, unless `eval_delay` is longer than the run.
    pub eval_strategy: IntervalStrategy,
    /// Steps between two evaluations of [`IntervalStrategy::Steps`]; below 1, a share of all steps; `None`: as `logging_steps`.
    pub eval_steps: Option<f64>,
    /// Steps (for [`IntervalStrategy::Epoch`]: epochs) before which there is no evaluation of `eval_strategy`.
    pub eval_delay: f64,
    /// Whether the validation set is evaluated before the first step, too.
    pub eval_on_start: bool,
    /// When a checkpoint is written.
    pub save_strategy: SaveStrategy,
    /// Steps between two checkpoints of [`SaveStrategy::Steps`]; below 1, a share of all steps.
    pub save_steps: f64,
    /// Checkpoints that are kept, the best one among them; `None`: all.
    pub save_total_limit: Option<usize>,
    /// Whether a checkpoint holds the model alone, so that training cannot go on from it.
    pub save_only_model: bool,
    /// Whether the run ends with the parameters of the best checkpoint.
    pub load_best_model_at_end: bool,
    /// What an evaluation is judged by, with `eval_` before it or without: `loss`, `perplexity`, or what
    /// [`Trainer::with_compute_metrics`](crate::Trainer::with_compute_metrics) measures. `None`: `loss`.
    pub metric_for_best_model: Option<String>,
    /// Whether a greater metric is a better one. `None`: not for `loss` and `perplexity`.
    pub greater_is_better: Option<bool>,
    /// The run ends after so many evaluations in a row that are not better than the best, as with transformers'
    /// `EarlyStoppingCallback`. `None`: never.
    pub early_stopping_patience: Option<usize>,
    /// By how much an evaluation must be better than the best to count as better there.
    pub early_stopping_threshold: f64,
    /// The checkpoint to go on from.
    #[serde(deserialize_with = "reading::or_default")]
    pub resume_from_checkpoint: ResumeFromCheckpoint,
    /// The root of all randomness of the run.
    pub seed: u64,
    /// The root of the order of the data, for the [`Dataset`](crate::Dataset) that makes it. `None`: as `seed`.
    pub data_seed: Option<u64>,
}

/// `resume_from_checkpoint`: `true`, `false` or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ResumeFromCheckpoint {
    /// `true`: the newest whole checkpoint of `output_dir`, if there is one; `false`: a run from the start.
    Newest(bool),
    /// This checkpoint.
    Folder(PathBuf),
}

impl Default for ResumeFromCheckpoint {
    fn default() -> Self {
        Self::Newest(false)
    }
}

impl Default for TrainingArguments {
    fn default() -> Self {
        Self {
            output_dir: None,
            num_train_epochs: 3.0,
            max_steps: -1,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            dataloader_drop_last: false,
            learning_rate: 5e-5,
            lr_scheduler_type: SchedulerType::Linear,
            lr_scheduler_kwargs: SchedulerKwargs::default(),
            warmup_steps: 0.0,
            optim: OptimizerName::AdamWTorchFused,
            optim_args: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            loraplus_lr_ratio: None,
            loraplus_lr_embedding: 1e-6,
            max_grad_norm: 1.0,
            label_smoothing_factor: 0.0,
            neftune_noise_alpha: None,
            bf16: false,
            fp16: false,
            gradient_checkpointing: false,
            logging_strategy: IntervalStrategy::Steps,
            logging_steps: 500.0,
            logging_first_step: false,
            report_to: Vec::new(),
            run_name: None,
            eval_strategy: IntervalStrategy::No,
            eval_steps: None,
            eval_delay: 0.0,
            eval_on_start: false,
            save_strategy: SaveStrategy::Steps,
            save_steps: 500.0,
            save_total_limit: None,
            save_only_model: false,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            resume_from_checkpoint: ResumeFromCheckpoint::default(),
            seed: 42,
            data_seed: None,
        }
    }
}

impl TrainingArguments {
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

    /// The learning rate of every step of the plan. `reduce_lr_on_plateau` without a `mode` has that of the metric that the run is judged by.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn schedule(&self, plan: &TrainPlan) -> Result<Schedule> {
        let mut kwargs = self.lr_scheduler_kwargs.clone();
        if self.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau && self.greater_is_better() {
            kwargs.set_default("mode", "max");
        }
        Schedule::new(self.lr_scheduler_type, &kwargs, self.learning_rate, plan.warmup_steps, plan.max_steps)
    }
}
