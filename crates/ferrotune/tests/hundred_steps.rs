//! A hundred optimizer steps held to transformers.Trainer with PEFT: the loss, the rate and the gradient norm of each.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the allowance for tests does not reach their helpers"
)]

mod steps;

use ferrotune::{
    job::CausalLmTask,
    trainer::{LogEntry, Trainer, TrainingArguments},
};
use serde::Deserialize;
use std::path::PathBuf;
use steps::{dataset, fixture, json, model};

#[derive(Deserialize)]
struct Step {
    step: usize,
    epoch: f64,
    loss: f64,
    learning_rate: f64,
    grad_norm: f64,
}

#[derive(Deserialize)]
struct Expected {
    base: PathBuf,
    arguments: TrainingArguments,
    steps: Vec<Step>,
}

/// The recorded run: the committed one, or another that the fixture's script wrote to the folder that `HUNDRED_STEPS` names.
fn folder() -> PathBuf {
    std::env::var_os("HUNDRED_STEPS").map_or_else(|| fixture("hundred_steps"), PathBuf::from)
}

#[test]
fn every_step_equals_transformers_with_peft() {
    let folder = folder();
    let Expected { base, arguments, steps } = json(folder.join("expected.json"));
    let (model, adapter) = model(&base, &folder);
    let dataset = dataset(&folder, arguments.seed);
    let task = CausalLmTask::new(&model, &adapter);
    let max_grad_norm = arguments.max_grad_norm;
    let mut trainer = Trainer::new(&task, arguments, &dataset).unwrap();
    let outcome = trainer.train().unwrap();

    assert_eq!((outcome.history.len(), steps.len()), (100, 100));
    assert_eq!(trainer.state().log_history.len(), 100, "and nothing besides");
    assert!(trainer.state().log_history.iter().all(|entry| matches!(entry, LogEntry::Train(_))));
    let mut largest = [("loss", 0.0, 0), ("learning_rate", 0.0, 0), ("grad_norm", 0.0, 0)];
    for (ours, reference) in outcome.history.iter().zip(&steps) {
        assert_eq!(ours.step, reference.step);
        assert!((ours.epoch - reference.epoch).abs() < 1e-12, "epoch of step {}", ours.step);
        let pairs = [
            (ours.loss, reference.loss),
            (ours.learning_rate, reference.learning_rate),
            (ours.grad_norm, reference.grad_norm),
        ];
        for ((_, largest, step), (ours, expected)) in largest.iter_mut().zip(pairs) {
            // The rate of the first step is 0.
            let difference = (ours - expected).abs() / expected.abs().max(1e-12);
            if difference > *largest {
                (*largest, *step) = (difference, reference.step);
            }
        }
    }
    for (what, difference, step) in largest {
        println!("{what}: largest relative difference {difference:.1e}, at step {step}");
    }
    for ((what, difference, step), tolerance) in largest.into_iter().zip([1e-4, 1e-12, 1e-3]) {
        assert!(difference < tolerance, "{what}: {difference:e} at step {step}");
    }
    let clipped = steps.iter().filter(|step| step.grad_norm > max_grad_norm).count();
    assert!((5..95).contains(&clipped), "{clipped} steps were clipped");
    assert!(steps[99].loss < 0.9 * steps[0].loss, "it learned");
}
