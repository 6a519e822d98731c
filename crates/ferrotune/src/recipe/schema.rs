//! The names a recipe may use, and the choices it may make.

use ferrotune_metrics::Metric;
use ferrotune_trainer::{IntervalStrategy, OptimizerName, SaveStrategy, SchedulerType, WatcherKind};
use ferrotune_trainer::{REPORTERS, nearest};

/// The names of every value of an enum that the library below offers.
macro_rules! names_of {
    ($choices:ty) => {
        &{
            let mut names = [""; <$choices>::ALL.len()];
            let mut index = 0;
            while index < names.len() {
                names[index] = <$choices>::ALL[index].name();
                index += 1;
            }
            names
        }
    };
}

/// Every section with its keys; `""` is the top of the file.
pub(super) const SECTIONS: [(&str, &[&str]); 9] = [
    ("", &["output_dir", "overwrite_output_dir", "seed", "data_seed"]),
    ("model", &["path"]),
    (
        "data",
        &[
            "train",
            "validation",
            "test",
            "max_train",
            "max_validation",
            "max_test",
            "max_length",
            "truncation",
            "on_error",
        ],
    ),
    ("lora", &["init_from", "r", "lora_alpha", "lora_dropout", "target_modules"]),
    (
        "training",
        &[
            "num_train_epochs",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "dataloader_drop_last",
            "learning_rate",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "warmup_steps",
            "lr_scheduler_type",
            "max_steps",
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "max_grad_norm",
            "label_smoothing_factor",
            "neftune_noise_alpha",
            "bf16",
            "fp16",
            "gradient_checkpointing",
            "optim",
            "optim_args",
            "loraplus_lr_ratio",
            "lr_scheduler_kwargs",
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "load_best_model_at_end",
            "predict_with_generate",
            "metric_for_best_model",
            "greater_is_better",
            "early_stopping_patience",
            "early_stopping_threshold",
            "resume_from_checkpoint",
            "report_to",
            "run_name",
        ],
    ),
    ("watch", names_of!(WatcherKind)),
    ("generation", &["max_new_tokens", "batch_size"]),
    ("evaluation", &["metrics", "before", "after"]),
    ("runtime", &["device", "compute_dtype", "threads"]),
];

/// The metrics that `evaluation.metrics` takes, by the names of rouge-score and sacrebleu.
pub const METRICS: &[&str] = names_of!(Metric);
/// What `training.metric_for_best_model` takes: the metrics of every validation, and those of its answers.
pub const VALIDATION_METRICS: &[&str] = &[
    "eval_loss",
    "eval_perplexity",
    "eval_rouge1",
    "eval_rouge2",
    "eval_rouge3",
    "eval_rouge4",
    "eval_rouge5",
    "eval_rouge6",
    "eval_rouge7",
    "eval_rouge8",
    "eval_rouge9",
    "eval_rougeL",
    "eval_rougeLsum",
    "eval_bleu",
    "eval_chrf",
];
/// The schedules that `training.lr_scheduler_type` takes, by transformers' names.
pub const LR_SCHEDULER_TYPES: &[&str] = names_of!(SchedulerType);
/// The optimizers that `training.optim` takes, by transformers' names.
pub const OPTIMIZERS: &[&str] = names_of!(OptimizerName);
/// When the validation file is measured during training: what `training.eval_strategy` takes, by transformers' names.
pub const EVAL_STRATEGIES: &[&str] = names_of!(IntervalStrategy);
/// When a checkpoint is written: what `training.save_strategy` takes, by transformers' names.
pub const SAVE_STRATEGIES: &[&str] = names_of!(SaveStrategy);
/// When the loss is recorded: what `training.logging_strategy` takes, by transformers' names.
pub const LOGGING_STRATEGIES: &[&str] = names_of!(IntervalStrategy);
/// Where the log goes: what `training.report_to` takes, one of them or a list.
pub const REPORT_TO: &[&str] = &["none", "all", REPORTERS[0], REPORTERS[1], REPORTERS[2]];
/// The devices that `runtime.device` takes.
pub const DEVICES: &[&str] = &["cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3"];
/// The types that `runtime.compute_dtype` takes.
pub const COMPUTE_DTYPES: &[&str] = &["f32"];

/// Every key of a recipe, with its section.
#[cfg(test)]
pub(crate) fn keys() -> std::collections::BTreeSet<String> {
    SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| join(section, key))).collect()
}

pub(super) fn section_names() -> Vec<&'static str> {
    SECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect()
}

pub(super) fn keys_of(section: &str) -> &'static [&'static str] {
    SECTIONS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// `training.seed`, or just `seed` at the top.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// What people call a key that has another name.
const OTHER_NAMES: [(&str, &str); 4] =
    [("rank", "r"), ("lr", "learning_rate"), ("dtype", "compute_dtype"), ("num_epochs", "num_train_epochs")];

/// The key that was probably meant: one that people call so, a similar one of the same section, the same name in another section,
/// or a similar one anywhere.
pub(super) fn nearest_key(section: &str, key: &str) -> Option<String> {
    let key = OTHER_NAMES.into_iter().find(|(other, _)| *other == key).map_or(key, |(_, name)| name);
    if let Some(near) = nearest(key, keys_of(section).iter().copied()) {
        return Some(join(section, near));
    }
    let all = || SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)));
    if let Some((section, key)) = all().find(|(_, known)| *known == key) {
        return Some(join(section, key));
    }
    let near = nearest(key, all().map(|(_, key)| key))?;
    all().find(|(_, known)| *known == near).map(|(section, key)| join(section, key))
}

/// The section that was probably meant.
pub(super) fn nearest_section(section: &str) -> Option<String> {
    nearest(section, section_names()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validation_is_judged_by_its_own_metrics_or_those_of_its_answers() {
        let own = ferrotune_trainer::Evaluation::METRICS;
        let all = own.iter().chain(METRICS).map(|name| format!("eval_{name}"));
        assert!(all.eq(VALIDATION_METRICS.iter().map(|name| (*name).to_owned())));
    }
}
