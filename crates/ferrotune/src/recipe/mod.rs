//! One TOML file that describes a whole run: model, data, adapter, training, evaluation.
//!
//! Only `output_dir`, `model.path` and `data.train` are required; every other key has a default that stands at
//! the field of the section's type, and in `docs/recipe.md` with the values that it takes. The names are those of PEFT's
//! `LoraConfig` and transformers' `TrainingArguments`; the defaults are not all theirs: `r`, `lora_alpha`, the batch size, the
//! accumulation, the learning rate, the weight decay and `logging_steps` differ. A recipe with much of it written out:
//!
//! ```toml
//! output_dir = "runs/synopsis"     # adapter/, recipe.toml, metrics.json, predictions.jsonl, report.html
//! overwrite_output_dir = false
//! seed = 42                        # data_seed: another one for the order of the data
//!
//! [model]
//! path = "models/SmolLM2-135M-Instruct"
//!
//! [data]
//! train = "data/train.jsonl"
//! validation = "data/validation.jsonl"
//! test = "data/test.jsonl"
//! max_train = 600
//! max_validation = 100
//! max_test = 100
//! max_length = 1024
//! truncation = "error"             # or "drop", "keep_start", "keep_end": what is longer than max_length
//! on_error = "strict"              # or "skip": bad lines, and examples that the chat template refuses
//!
//! [lora]
//! r = 16
//! lora_alpha = 32
//! lora_dropout = 0.0
//! target_modules = ["q_proj", "v_proj"]   # or "all-linear"
//!
//! [training]
//! num_train_epochs = 3
//! per_device_train_batch_size = 4
//! gradient_accumulation_steps = 8
//! dataloader_drop_last = false
//! learning_rate = 2e-5
//! weight_decay = 0.01
//! adam_beta1 = 0.9
//! adam_beta2 = 0.999
//! adam_epsilon = 1e-8
//! warmup_steps = 0
//! lr_scheduler_type = "linear"
//! max_steps = -1
//! logging_strategy = "steps"
//! logging_steps = 100
//! logging_first_step = false
//! eval_strategy = "no"             # or "epoch", or "steps" with eval_steps = 50
//! eval_delay = 0
//! max_grad_norm = 1.0
//! label_smoothing_factor = 0.0
//! report_to = "none"               # or "tensorboard", "csv", "jsonl", a list of them, "all"
//!
//! [watch]                          # what is done about a fault: "say", "skip", "roll_back", "stop", "off"
//! non_finite = "stop"
//! loss_spike = "say"
//!
//! [generation]
//! max_new_tokens = 32
//! batch_size = 8
//!
//! [evaluation]
//! metrics = ["rouge1", "rouge2", "rougeL"]
//! before = true
//! after = true
//!
//! [runtime]
//! device = "cpu"
//! compute_dtype = "f32"
//! threads = 2
//! ```
//!
//! **Paths** are relative to the current directory, as in every command typed beside them, and not to the
//! recipe. [`Recipe::check_paths`] says so when a file is found beside the recipe only. The `recipe.toml` that a run leaves starts
//! the same run again from where that one was started, with `output_dir=...` or `overwrite_output_dir=true` laid over it, as
//! `output_dir` then holds a run.
//!
//! **Overrides** have the form `section.key=value` (`key=value` at the top). The value is TOML if it can be
//! read as TOML, else a string, so that `lora.target_modules=all-linear` needs no quotes inside quotes. They pass
//! the same checks as the file, and the value they replace is not looked at.
//!
//! **Errors** come all at once, each with file, line and column, or the `--set` it stands in.

mod check;
mod config;
mod problem;
mod reader;
mod schema;
mod sections;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use check::{RESULTS, inputs};
pub use config::Recipe;
pub use ferrotune_trainer::ResumeFromCheckpoint;
pub use problem::{Place, Problem, ProblemKind};
#[cfg(test)]
pub(crate) use schema::keys;
pub use schema::{
    COMPUTE_DTYPES, DEVICES, EVAL_STRATEGIES, LOGGING_STRATEGIES, LR_SCHEDULER_TYPES, METRICS, OPTIMIZERS,
    REPORT_TO, SAVE_STRATEGIES, VALIDATION_METRICS,
};
pub use sections::{
    DataSection, EvaluationSection, GenerationSection, LoraSection, ModelSection, RuntimeSection,
    TargetModules, TrainingSection,
};
