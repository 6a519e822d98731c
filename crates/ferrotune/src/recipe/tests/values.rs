//! Every key is read and written, with its default.

use super::*;
use ferrotune_trainer::{Action, WatcherKind};

#[test]
fn three_keys_are_enough_and_the_rest_has_the_documented_defaults() {
    let recipe = parse(MINIMAL).unwrap();
    assert_eq!(recipe, Recipe::new("runs/x", "m", "train.jsonl"));
    let expected = r#"output_dir = "runs/x"
overwrite_output_dir = false
seed = 42

[model]
path = "m"

[data]
train = "train.jsonl"
max_length = 1024
truncation = "error"
on_error = "strict"

[lora]
r = 16
lora_alpha = 32
lora_dropout = 0
target_modules = ["q_proj", "v_proj"]

[training]
num_train_epochs = 3
per_device_train_batch_size = 4
gradient_accumulation_steps = 8
dataloader_drop_last = false
learning_rate = 0.00002
weight_decay = 0.01
adam_beta1 = 0.9
adam_beta2 = 0.999
adam_epsilon = 0.00000001
warmup_steps = 0
lr_scheduler_type = "linear"
max_steps = -1
logging_strategy = "steps"
logging_steps = 100
logging_first_step = false
eval_strategy = "no"
eval_delay = 0
max_grad_norm = 1
label_smoothing_factor = 0
bf16 = false
fp16 = false
gradient_checkpointing = false
optim = "adamw_torch_fused"
save_strategy = "steps"
save_steps = 500
load_best_model_at_end = false
predict_with_generate = false
early_stopping_threshold = 0
resume_from_checkpoint = false
report_to = []

[watch]
non_finite = "stop"
loss_spike = "say"
plateau = "say"
overfitting = "say"
dead_parameter = "say"
learning_rate = "say"

[generation]
max_new_tokens = 32
batch_size = 8

[evaluation]
metrics = ["rouge1", "rouge2", "rougeL"]
before = true
after = true

[runtime]
device = "cpu"
compute_dtype = "f32"
"#;
    assert_eq!(recipe.to_toml().unwrap(), expected);
}

/// Every key with a value that is not its default.
pub(super) fn everything() -> Recipe {
    let text = r#"
output_dir = "runs/synopsis"
overwrite_output_dir = true
seed = 7
data_seed = 8
[model]
path = "models/\"odd\" name.gguf"
[data]
train = "a"
validation = "b"
test = "c"
max_train = 600
max_validation = 100
max_test = 50
max_length = 512
truncation = "keep_start"
on_error = "skip"
[lora]
init_from = "runs/first/adapter"
r = 8
lora_alpha = 12.5
lora_dropout = 0.05
target_modules = "all-linear"
[training]
num_train_epochs = 0.5
per_device_train_batch_size = 2
gradient_accumulation_steps = 1
dataloader_drop_last = true
learning_rate = 1e-3
weight_decay = 0
adam_beta1 = 0.8
adam_beta2 = 0.99
adam_epsilon = 1e-6
warmup_steps = 0.03
lr_scheduler_type = "cosine"
max_steps = 1_000
logging_strategy = "epoch"
logging_steps = 1
logging_first_step = true
eval_strategy = "steps"
eval_steps = 5
eval_delay = 2
max_grad_norm = 0.0
label_smoothing_factor = 0.1
neftune_noise_alpha = 5
bf16 = true
fp16 = false
gradient_checkpointing = true
optim = "adamw_torch"
optim_args = ""
loraplus_lr_ratio = 16
lr_scheduler_kwargs = { num_cycles = 0.75 }
save_strategy = "best"
save_steps = 7
save_total_limit = 2
load_best_model_at_end = true
predict_with_generate = true
metric_for_best_model = "eval_rouge1"
greater_is_better = false
early_stopping_patience = 3
early_stopping_threshold = 0.01
resume_from_checkpoint = "runs/synopsis/checkpoint-7"
report_to = "all"
run_name = "first"
[watch]
non_finite = "skip"
loss_spike = "roll_back"
plateau = "off"
overfitting = "stop"
dead_parameter = "stop"
learning_rate = "roll_back"
[generation]
max_new_tokens = 64
batch_size = 1
[evaluation]
metrics = ["rougeLsum", "rouge1"]
before = false
after = false
[runtime]
device = "cpu"
compute_dtype = "f32"
threads = 2
"#;
    parse(text).unwrap()
}

#[test]
fn every_key_is_read() {
    let recipe = everything();
    assert_eq!(recipe.lora.target_modules, TargetModules::AllLinear);
    let mut default = Recipe::new("runs/synopsis", "models/\"odd\" name.gguf", "a");
    // The only choices that there are.
    default.runtime.threads = recipe.runtime.threads;
    let (recipe, default) = (toml::Table::try_from(recipe).unwrap(), toml::Table::try_from(default).unwrap());
    for (section, keys) in schema::SECTIONS {
        let find = |table: &toml::Table, key: &str| match section {
            "" => table.get(key).cloned(),
            _ => table[section].get(key).cloned(),
        };
        for key in keys {
            assert!(find(&recipe, key).is_some(), "{section}.{key} is in no effective recipe");
            let fixed = ["output_dir", "path", "train", "device", "compute_dtype", "threads"];
            // One of two that exclude each other.
            if !fixed.contains(key) && *key != "fp16" {
                assert_ne!(find(&recipe, key), find(&default, key), "{section}.{key} was not read");
            }
        }
    }
}

#[test]
fn reporters_are_one_name_or_a_list() {
    let report_to =
        |value: &str| with(&[&format!("training.report_to={value}")]).map(|r| r.training.report_to);
    assert_eq!(report_to("tensorboard").unwrap(), ["tensorboard"]);
    assert_eq!(report_to("[\"csv\", \"jsonl\"]").unwrap(), ["csv", "jsonl"]);
    assert_eq!(report_to("all").unwrap(), ["tensorboard", "csv", "jsonl"]);
    for none in ["none", "[]", "[\"none\"]"] {
        assert_eq!(report_to(none).unwrap(), [""; 0]);
    }
    let refusal = problems(with(&["training.report_to=wandb"])).join("\n");
    let expected = "is the string \"wandb\"; expected \"none\", \"all\", \"tensorboard\", \"csv\" or \"jsonl\", or a list of these";
    assert!(refusal.contains(expected), "{refusal}");
}

#[test]
fn a_watcher_takes_the_actions_that_it_can_and_no_other() {
    let recipe = everything();
    assert_eq!(recipe.watch.of(WatcherKind::Plateau), None);
    assert_eq!(recipe.watch.of(WatcherKind::LossSpike), Some(Action::RollBack));
    for (setting, expected) in [
        ("watch.non_finite=say", "expected \"skip\", \"roll_back\", \"stop\" or \"off\""),
        ("watch.plateau=skip", "expected \"say\", \"roll_back\", \"stop\" or \"off\""),
        ("watch.loss_spikes=say", "did you mean `watch.loss_spike`?"),
    ] {
        let refusal = problems(with(&[setting])).join("\n");
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn no_key_is_written_that_is_not_known() {
    for (section, value) in toml::Table::try_from(everything()).unwrap() {
        match value {
            toml::Value::Table(keys) => {
                for (key, _) in keys {
                    assert!(schema::keys_of(&section).contains(&key.as_str()), "{section}.{key}");
                }
            }
            _ => assert!(schema::keys_of("").contains(&section.as_str()), "{section}"),
        }
    }
}

#[test]
fn the_effective_recipe_starts_the_same_run_again() {
    for recipe in [everything(), parse(MINIMAL).unwrap()] {
        let text = recipe.to_toml().unwrap();
        let again = parse(&text).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.to_toml().unwrap(), text);
    }
}

#[test]
fn the_recipe_of_the_module_documentation_is_read() {
    let docs = include_str!("../mod.rs");
    let text: String = docs
        .lines()
        .skip_while(|line| !line.contains("```toml"))
        .skip(1)
        .take_while(|line| !line.contains("```"))
        .map(|line| line.trim_start_matches("//!").to_owned() + "\n")
        .collect();
    let mut recipe = parse(&text).unwrap();
    assert_eq!(recipe.data.max_train, Some(600));
    assert_eq!(recipe.runtime.threads, Some(2));
    recipe.runtime.threads = None;
    let mut default = Recipe::new("runs/synopsis", "models/SmolLM2-135M-Instruct", "data/train.jsonl");
    default.data = recipe.data.clone();
    assert_eq!(recipe, default, "the documented values are the defaults");
}
