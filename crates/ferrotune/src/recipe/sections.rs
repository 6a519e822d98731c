//! The sections of a recipe: what each key means, and its default.

use std::path::PathBuf;

use ferrotune_data::{OnError, Truncation};
use ferrotune_trainer::{ResumeFromCheckpoint, SchedulerKwargs};
use serde::{Serialize, Serializer};

/// `[model]`: the model that is fine-tuned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSection {
    /// A Hugging Face model directory, or a `.gguf` file. Required.
    pub path: PathBuf,
}

/// `[data]`: JSONL files, one example a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSection {
    /// The examples to train on. Required.
    pub train: PathBuf,
    /// Held-out examples for the validation loss; without them there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Held-out examples to generate answers for, before and after; without them nothing is generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Take only the first so many lines of `train`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_train: Option<usize>,
    /// Take only the first so many lines of `validation`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_validation: Option<usize>,
    /// Take only the first so many lines of `test`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_test: Option<usize>,
    /// The most tokens an example may have, prompt and completion. Default: 1024.
    pub max_length: usize,
    /// What happens to a longer example of `train` or `validation`: `"error"` names the first 20, counts all and ends the run, `"drop"` leaves
    /// them out, `"keep_start"` and `"keep_end"` keep their first or last `max_length` tokens. Default: `"error"`.
    pub truncation: Truncation,
    /// What happens to a line that holds no example, or one that the chat template refuses: `"strict"` names the first 20, counts
    /// all and ends the run, `"skip"` leaves them out and says so. Default: `"strict"`.
    pub on_error: OnError,
}

impl DataSection {
    /// Trains on all of `train`, with no held-out data.
    #[must_use]
    pub fn new(train: impl Into<PathBuf>) -> Self {
        Self {
            train: train.into(),
            validation: None,
            test: None,
            max_train: None,
            max_validation: None,
            max_test: None,
            max_length: 1024,
            truncation: Truncation::Error,
            on_error: OnError::Strict,
        }
    }
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// The layers whose path is one of these names, or ends in a dot and one of them, as in PEFT.
    Named(Vec<String>),
    /// Every linear layer but the output head: `"all-linear"`.
    #[serde(serialize_with = "all_linear")]
    AllLinear,
}

/// The one string that `target_modules` takes in place of a list.
pub(super) const ALL_LINEAR: &str = "all-linear";

fn all_linear<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(ALL_LINEAR)
}

/// `[lora]`: the adapter, by PEFT's names; PEFT's own defaults are `r` 8 and `lora_alpha` 8.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraSection {
    /// The directory of an adapter to go on with, in PEFT's form; without it the adapter is a fresh one. What a recipe that is read does
    /// not set of this section is then as the adapter has it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// The rank of the update. Default: 16.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`. Default: 32.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// Probability of dropping an input of the update while training, in [0, 1). Default: 0.
    #[serde(serialize_with = "number")]
    pub lora_dropout: f64,
    /// The layers that get an adapter. Default: `["q_proj", "v_proj"]`.
    pub target_modules: TargetModules,
}

impl Default for LoraSection {
    fn default() -> Self {
        Self {
            init_from: None,
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::Named(vec!["q_proj".to_owned(), "v_proj".to_owned()]),
        }
    }
}

/// `[training]`: the loop, by the names of transformers' `TrainingArguments`, not with all of its defaults: those are in
/// [`ferrotune_trainer::TrainingArguments`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingSection {
    /// Passes over the training data; may be fractional. `max_steps` wins over it. Default: 3.
    #[serde(serialize_with = "number")]
    pub num_train_epochs: f64,
    /// Examples in one forward pass. Default: 4.
    pub per_device_train_batch_size: usize,
    /// Forward passes whose gradients make one optimizer step. Default: 8.
    pub gradient_accumulation_steps: usize,
    /// Whether the examples of an epoch that do not fill a forward pass are left out. Default: false.
    pub dataloader_drop_last: bool,
    /// The peak learning rate. Default: 2e-5.
    #[serde(serialize_with = "number")]
    pub learning_rate: f64,
    /// Weight decay of the adapter. Default: 0.01.
    #[serde(serialize_with = "number")]
    pub weight_decay: f64,
    /// AdamW: the decay of the mean of the gradients. Default: 0.9.
    #[serde(serialize_with = "number")]
    pub adam_beta1: f64,
    /// AdamW: the decay of the mean of their squares. Default: 0.999.
    #[serde(serialize_with = "number")]
    pub adam_beta2: f64,
    /// AdamW: what is added to the denominator of the update. Default: 1e-8.
    #[serde(serialize_with = "number")]
    pub adam_epsilon: f64,
    /// Steps in which the learning rate rises from zero to its peak; below 1 it is a share of all steps, as in
    /// transformers. Default: 0.
    #[serde(serialize_with = "number")]
    pub warmup_steps: f64,
    /// What the learning rate does after the warm-up: one of [`LR_SCHEDULER_TYPES`](super::LR_SCHEDULER_TYPES).
    /// Default: `"linear"`.
    pub lr_scheduler_type: String,
    /// Stop after so many optimizer steps; -1: after `num_train_epochs`. Default: -1.
    pub max_steps: i64,
    /// When the loss is recorded: one of [`LOGGING_STRATEGIES`](super::LOGGING_STRATEGIES). After the last step it always is.
    /// Default: `"steps"`.
    pub logging_strategy: String,
    /// Record it every so many steps if `logging_strategy` is `"steps"`. Default: 100.
    pub logging_steps: usize,
    /// Whether it is recorded after the first step, too. Default: false.
    pub logging_first_step: bool,
    /// When the validation loss is measured between the first step and the last: one of
    /// [`EVAL_STRATEGIES`](super::EVAL_STRATEGIES). Before the first step it always is, if there is a validation
    /// file, and after the last one unless `eval_delay` is longer than the run. Default: `"no"`.
    pub eval_strategy: String,
    /// Measure it every so many steps if `eval_strategy` is `"steps"`; below 1 it is a share of all steps. Default:
    /// `logging_steps`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_number")]
    pub eval_steps: Option<f64>,
    /// The steps, for `"epoch"` the epochs, before which `eval_strategy` measures nothing. Default: 0.
    #[serde(serialize_with = "number")]
    pub eval_delay: f64,
    /// Scale a step's gradient down to this norm where it is longer; 0 turns clipping off. Default: 1.
    #[serde(serialize_with = "number")]
    pub max_grad_norm: f64,
    /// The share of a target's probability that is spread over the whole vocabulary, in the loss of training and of validation.
    /// Default: 0.
    #[serde(serialize_with = "number")]
    pub label_smoothing_factor: f64,
    /// NEFTune: noise on the embeddings in training, within this by the root of the numbers of a sequence. Default: none.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_number")]
    pub neftune_noise_alpha: Option<f64>,
    /// Products of training and validation in bf16; adapter and optimizer stay f32. Default: false.
    pub bf16: bool,
    /// Products of training and validation in f16, with a scaled loss; adapter and optimizer stay f32. Default: false.
    pub fp16: bool,
    /// Each layer computed again in the backward pass, for less memory and more time. Default: false.
    pub gradient_checkpointing: bool,
    /// The optimizer: one of [`OPTIMIZERS`](super::OPTIMIZERS). Default: `"adamw_torch_fused"`.
    pub optim: String,
    /// What else the optimizer is told, as in `"momentum=0.9,nesterov=true"`. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optim_args: Option<String>,
    /// LoRA+: the `B` matrices learn so many times faster than the `A` matrices. Default: no faster.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_number")]
    pub loraplus_lr_ratio: Option<f64>,
    /// What else the schedule is told: a table of numbers and names. Default: nothing.
    #[serde(skip_serializing_if = "SchedulerKwargs::is_empty")]
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// When a checkpoint is written: one of [`SAVE_STRATEGIES`](super::SAVE_STRATEGIES). Default: `"steps"`.
    pub save_strategy: String,
    /// Write one every so many steps if `save_strategy` is `"steps"`; below 1 it is a share of all steps. Default: 500.
    #[serde(serialize_with = "number")]
    pub save_steps: f64,
    /// Keep so many, the newest and the best among them. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_total_limit: Option<usize>,
    /// Whether the adapter of the best checkpoint is the result, not that of the last step. Default: false.
    pub load_best_model_at_end: bool,
    /// Whether the prompts of the validation file are answered, too, wherever its loss is measured, and the answers scored by
    /// `evaluation.metrics`. Default: false.
    pub predict_with_generate: bool,
    /// What the validation is judged by: `"eval_loss"`, `"eval_perplexity"`, or with `predict_with_generate` one of
    /// `evaluation.metrics` with `eval_` before it. Default: the loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better. Default: false for loss and perplexity, true for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greater_is_better: Option<bool>,
    /// End the run after so many validations in a row that are not better than the best. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<usize>,
    /// By how much one must be better to count as better there. Default: 0.
    #[serde(serialize_with = "number")]
    pub early_stopping_threshold: f64,
    /// Where the run goes on from. Default: false, from the start.
    pub resume_from_checkpoint: ResumeFromCheckpoint,
    /// Where the log goes, in `runs` of `output_dir`: names out of [`REPORT_TO`](super::REPORT_TO) but for `none` and `all`, which are a
    /// list of none and of all. Default: nowhere.
    pub report_to: Vec<String>,
    /// What the run is called in the log. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_name: Option<String>,
}

impl Default for TrainingSection {
    fn default() -> Self {
        Self {
            num_train_epochs: 3.0,
            per_device_train_batch_size: 4,
            gradient_accumulation_steps: 8,
            dataloader_drop_last: false,
            learning_rate: 2e-5,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            warmup_steps: 0.0,
            lr_scheduler_type: "linear".to_owned(),
            max_steps: -1,
            logging_strategy: "steps".to_owned(),
            logging_steps: 100,
            logging_first_step: false,
            eval_strategy: "no".to_owned(),
            eval_steps: None,
            eval_delay: 0.0,
            max_grad_norm: 1.0,
            label_smoothing_factor: 0.0,
            neftune_noise_alpha: None,
            bf16: false,
            fp16: false,
            gradient_checkpointing: false,
            optim: "adamw_torch_fused".to_owned(),
            optim_args: None,
            loraplus_lr_ratio: None,
            lr_scheduler_kwargs: SchedulerKwargs::default(),
            save_strategy: "steps".to_owned(),
            save_steps: 500.0,
            save_total_limit: None,
            load_best_model_at_end: false,
            predict_with_generate: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            resume_from_checkpoint: ResumeFromCheckpoint::Newest(false),
            report_to: Vec::new(),
            run_name: None,
        }
    }
}

/// `[generation]`: greedy answers to the prompts of `data.test`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationSection {
    /// The most tokens of an answer. Default: 32.
    pub max_new_tokens: usize,
    /// Prompts that are answered at a time. Default: 8.
    pub batch_size: usize,
}

impl Default for GenerationSection {
    fn default() -> Self {
        Self { max_new_tokens: 32, batch_size: 8 }
    }
}

/// `[evaluation]`: what is measured on `data.test`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationSection {
    /// Any of [`METRICS`](super::METRICS). Default: `["rouge1", "rouge2", "rougeL"]`.
    pub metrics: Vec<String>,
    /// Whether the model is measured before training. Default: true.
    pub before: bool,
    /// Whether the model is measured after training. Default: true.
    pub after: bool,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        let metrics = ["rouge1", "rouge2", "rougeL"].map(str::to_owned).to_vec();
        Self { metrics, before: true, after: true }
    }
}

/// `[runtime]`: where and how it is computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuntimeSection {
    /// One of [`DEVICES`](super::DEVICES). Default: `"cpu"`.
    pub device: String,
    /// The type that the products are computed in: one of [`COMPUTE_DTYPES`](super::COMPUTE_DTYPES).
    /// Default: `"f32"`, so that results do not depend on what a machine does fast.
    pub compute_dtype: String,
    /// Threads to compute with. Default: all cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl Default for RuntimeSection {
    fn default() -> Self {
        Self { device: "cpu".to_owned(), compute_dtype: "f32".to_owned(), threads: None }
    }
}

/// Writes `3` where `3.0` would say no more, as people write it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
    if value.fract() == 0.0 && value.abs() < 1e15 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

fn optional_number<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => number(value, serializer),
        None => serializer.serialize_none(),
    }
}
