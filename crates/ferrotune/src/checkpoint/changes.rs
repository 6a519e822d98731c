//! What is not as it was when a checkpoint was taken.

use super::{InputFile, Saved};
use crate::{Result, recipe::Recipe};
use toml::{Table, Value};

/// Keys that say how far a run goes, where it writes and what it says: they change no step. Any other key does, unless it is said here.
const FREE: [&str; 24] = [
    "output_dir",
    "overwrite_output_dir",
    "data.test",
    "data.max_test",
    "training.num_train_epochs",
    "training.max_steps",
    "training.logging_steps",
    "training.logging_strategy",
    "training.logging_first_step",
    "training.save_strategy",
    "training.save_steps",
    "training.save_total_limit",
    "training.load_best_model_at_end",
    "training.early_stopping_patience",
    "training.early_stopping_threshold",
    "training.resume_from_checkpoint",
    "training.report_to",
    "training.run_name",
    "generation.max_new_tokens",
    "generation.batch_size",
    "evaluation.metrics",
    "evaluation.before",
    "evaluation.after",
    "runtime.threads",
];

/// Keys that change steps where the prompts of the validation are answered, and the answers may decide which adapter is the best.
const OF_ANSWERS: [&str; 2] = ["generation.max_new_tokens", "generation.batch_size"];

/// Keys of what is held to its content: what lies at another path may be the same.
const INPUTS: [&str; 4] = ["model.path", "lora.init_from", "data.train", "data.validation"];

/// Each difference that makes the rest of the run another one, in words.
pub(crate) fn changes(saved: &Saved, recipe: &Recipe, inputs: &[InputFile]) -> Result<Vec<String>> {
    let now: Table = toml::from_str(&recipe.to_toml()?).unwrap_or_default();
    let before: Table = toml::from_str(&saved.recipe).unwrap_or_default();
    let (now, before) = (flat(&now), flat(&before));
    let value = |of: &[(String, String)], key: &str| {
        of.iter().find(|(other, _)| other == key).map_or("absent".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = before.iter().chain(&now).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let mut changes = Vec::new();
    let answers = value(&now, "training.predict_with_generate") == "true";
    let is_free = |key: &str| FREE.contains(&key) && !(answers && OF_ANSWERS.contains(&key));
    for key in keys.into_iter().filter(|key| !is_free(key)) {
        let (before, now) = (value(&before, key), value(&now, key));
        let is_input = INPUTS.contains(&key.as_str());
        if before != now && !(is_input && before != "absent" && now != "absent") {
            changes.push(format!("`{key}` was {before} and is {now}"));
        }
    }
    let is_folder = |key: &str| ["model.path", "lora.init_from"].contains(&key);
    let counts = |file: &&InputFile| file.key != "data.test";
    let name = |file: &InputFile| (file.key.clone(), file.path.file_name().map(ToOwned::to_owned));
    for file in saved.inputs.iter().filter(counts) {
        let of_key = |other: &&InputFile| {
            // A data file may have another name; a model and an adapter have several files.
            if is_folder(&file.key) { name(other) == name(file) } else { other.key == file.key }
        };
        match inputs.iter().find(of_key) {
            Some(now) if now.sha256 == file.sha256 => {}
            Some(now) => changes.push(format!(
                "{} of `{}` has another content: sha256 {} was trained on, {} is there",
                now.path.display(),
                file.key,
                short(&file.sha256),
                short(&now.sha256)
            )),
            None if is_folder(&file.key) => {
                changes.push(format!("{} of `{}` is gone", file.path.display(), file.key));
            }
            // The recipe says that there is none.
            None => {}
        }
    }
    Ok(changes)
}

/// Whether the run was left with another number of threads, in words: sums are then taken in another order.
pub(crate) fn other_threads(saved: &Saved, recipe: &Recipe) -> Result<Option<String>> {
    let threads = |recipe: &str| {
        let recipe: Table = toml::from_str(recipe).unwrap_or_default();
        let threads = recipe.get("runtime").and_then(|runtime| runtime.get("threads"));
        threads.map_or("all".to_owned(), Value::to_string)
    };
    let (before, now) = (threads(&saved.recipe), threads(&recipe.to_toml()?));
    Ok((before != now).then(|| format!("`runtime.threads` was {before} and is {now}")))
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// Every key with its section, and its value as TOML.
fn flat(table: &Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(section) => {
                found.extend(
                    section.iter().map(|(inner, value)| (format!("{key}.{inner}"), value.to_string())),
                );
            }
            value => found.push((key.clone(), value.to_string())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::keys;
    use std::collections::BTreeSet;

    /// Keys that change the steps, or what a run takes for its best.
    const FIXED: [&str; 45] = [
        "seed",
        "data_seed",
        "data.max_train",
        "data.max_validation",
        "data.max_length",
        "data.truncation",
        "data.on_error",
        "lora.r",
        "lora.lora_alpha",
        "lora.lora_dropout",
        "lora.target_modules",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "training.dataloader_drop_last",
        "training.learning_rate",
        "training.weight_decay",
        "training.adam_beta1",
        "training.adam_beta2",
        "training.adam_epsilon",
        "training.warmup_steps",
        "training.lr_scheduler_type",
        "training.lr_scheduler_kwargs",
        "training.eval_strategy",
        "training.eval_steps",
        "training.eval_delay",
        "training.max_grad_norm",
        "training.label_smoothing_factor",
        "training.neftune_noise_alpha",
        "training.bf16",
        "training.fp16",
        "training.gradient_checkpointing",
        "training.optim",
        "training.optim_args",
        "training.loraplus_lr_ratio",
        "training.predict_with_generate",
        "training.metric_for_best_model",
        "training.greater_is_better",
        "watch.non_finite",
        "watch.loss_spike",
        "watch.plateau",
        "watch.overfitting",
        "watch.dead_parameter",
        "watch.learning_rate",
        "runtime.device",
        "runtime.compute_dtype",
    ];

    #[test]
    fn each_key_of_a_recipe_is_free_or_fixed_or_an_input() {
        let kinds = [&FREE[..], &INPUTS, &FIXED];
        let named: Vec<&str> = kinds.concat();
        let once: BTreeSet<String> = named.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(once.len(), named.len(), "a key is named twice");
        let unnamed: Vec<_> = keys().difference(&once).cloned().collect();
        let unknown: Vec<_> = once.difference(&keys()).cloned().collect();
        assert!(
            unnamed.is_empty() && unknown.is_empty(),
            "may these change when a run goes on? {unnamed:?}; no keys of a recipe: {unknown:?}"
        );
    }
}
