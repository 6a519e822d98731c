//! Twenty optimizer steps held to transformers.Trainer with PEFT: the loss, rate and gradient norm of each, the final weights, and the
//! loss of an evaluation.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use ferrotune::{
    data::{Source, Tokenized},
    job::{CausalLmTask, PackedDataset},
    lora,
    models::CausalLm,
    tch::{Device, Kind},
    trainer::{Trainer, TrainingArguments},
};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/twenty_steps")).join(name)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn integers(value: &serde_json::Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

fn arguments() -> TrainingArguments {
    TrainingArguments {
        max_steps: 20,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 3,
        learning_rate: 5e-3,
        weight_decay: 0.1,
        warmup_steps: 3.0,
        logging_steps: 1.0,
        seed: 7,
        ..TrainingArguments::default()
    }
}

/// Repeats the case that lies in `folder`.
fn hold_to_transformers(folder: &Path, arguments: TrainingArguments) {
    let base =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../ferrotune-models/tests/fixtures/decoder/llama_gqa_untied");
    let mut model = CausalLm::load(Path::new(base), Device::Cpu, Kind::Float).unwrap();
    let adapter = lora::load(&mut model, "default", 0, fixture("initial"), true).unwrap();
    let rows = json(&fixture("rows.json"));
    let rows = rows.as_array().unwrap().iter().enumerate().map(|(line, row)| Tokenized {
        input_ids: integers(&row["input_ids"]).into_iter().map(|id| id as u32).collect(),
        labels: integers(&row["labels"]),
        source: Source { file: Path::new("rows.json").into(), line: line + 1 },
    });
    let rows: Vec<Tokenized> = rows.collect();
    let validation = PackedDataset::new(rows[..5].to_vec(), 7);
    let dataset = PackedDataset::new(rows, 7);
    let task =
        CausalLmTask::new(&model, &adapter).with_forward_arguments(arguments.forward_arguments()).unwrap();
    let mut trainer = Trainer::new(&task, arguments, &dataset).unwrap().with_validation(&validation);
    let outcome = trainer.train().unwrap();
    let expected = json(&folder.join("expected.json"));
    let steps = expected["steps"].as_array().unwrap();
    assert_eq!(outcome.history.len(), steps.len());
    for (ours, reference) in outcome.history.iter().zip(steps) {
        let number = |key: &str| reference[key].as_f64().unwrap();
        let near = |what: &str, ours: f64, tolerance: f64| {
            let error = (ours - number(what)).abs() / number(what).abs().max(1e-9);
            assert!(
                error < tolerance,
                "step {}: {what} {ours}, reference {}",
                reference["step"],
                number(what)
            );
        };
        near("loss", ours.loss, 1e-5);
        near("grad_norm", ours.grad_norm, 1e-4);
        assert!((ours.learning_rate - number("learning_rate")).abs() < 1e-12);
    }
    assert!(outcome.history[19].loss < 0.9 * outcome.history[0].loss, "it learned");
    let (loss, reference) = (outcome.validation.unwrap().loss, expected["eval_loss"].as_f64().unwrap());
    assert!((loss - reference).abs() / reference < 1e-5, "evaluation: {loss}, reference {reference}");
    let reference = lora::load_adapter(folder.join("final")).unwrap();
    for (path, a, b) in adapter.weights() {
        let (reference_a, reference_b) = &reference.tensors[path];
        for (ours, reference) in [(a, reference_a), (b, reference_b)] {
            let error = ((ours - reference).norm() / reference.norm()).double_value(&[]);
            assert!(error < 1e-4, "{path}: {error}");
        }
    }
}

#[test]
fn every_step_equals_transformers_with_peft() {
    hold_to_transformers(&fixture(""), arguments());
}

#[test]
fn label_smoothing_acts_as_in_transformers_in_training_and_evaluation() {
    let arguments = TrainingArguments { label_smoothing_factor: 0.1, ..arguments() };
    hold_to_transformers(&fixture("label_smoothing"), arguments);
}

#[test]
fn neftune_acts_as_in_transformers_with_the_same_random_numbers() {
    let arguments = TrainingArguments {
        neftune_noise_alpha: Some(5.0),
        // One row in a batch: what is padded in transformers has another noise.
        per_device_train_batch_size: 1,
        ..arguments()
    };
    hold_to_transformers(&fixture("neftune"), arguments);
}
