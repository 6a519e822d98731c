//! Twenty optimizer steps held to transformers.Trainer with PEFT: the loss, rate and gradient norm of each, and the final weights.

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

fn json(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn integers(value: &serde_json::Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

#[test]
fn every_step_equals_transformers_with_peft() {
    let base =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../ferrotune-models/tests/fixtures/decoder/llama_gqa_untied");
    let mut model = CausalLm::load(Path::new(base), Device::Cpu, Kind::Float).unwrap();
    let adapter = lora::load(&mut model, "default", 0, fixture("initial"), true).unwrap();
    let rows = json("rows.json");
    let rows = rows.as_array().unwrap().iter().enumerate().map(|(line, row)| Tokenized {
        input_ids: integers(&row["input_ids"]).into_iter().map(|id| id as u32).collect(),
        labels: integers(&row["labels"]),
        source: Source { file: Path::new("rows.json").into(), line: line + 1 },
    });
    let arguments = TrainingArguments {
        max_steps: 20,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 3,
        learning_rate: 5e-3,
        weight_decay: 0.1,
        warmup_steps: 3.0,
        logging_steps: 1.0,
        seed: 7,
        ..TrainingArguments::default()
    };
    let dataset = PackedDataset::new(rows.collect(), 7);
    let task = CausalLmTask::new(&model, &adapter);
    let outcome = Trainer::new(&task, arguments, &dataset).unwrap().train().unwrap();
    let expected = json("expected.json");
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
    assert!(outcome.history[19].loss < 0.7 * outcome.history[0].loss, "it learned");
    let reference = lora::load_adapter(fixture("final")).unwrap();
    for (path, a, b) in adapter.weights() {
        let (reference_a, reference_b) = &reference.tensors[path];
        for (ours, reference) in [(a, reference_a), (b, reference_b)] {
            let error = ((ours - reference).norm() / reference.norm()).double_value(&[]);
            assert!(error < 1e-4, "{path}: {error}");
        }
    }
}
