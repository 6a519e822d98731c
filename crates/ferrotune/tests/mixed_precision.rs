//! Thirty optimizer steps in 16 bits held to torch.autocast and, under fp16, to torch's GradScaler: the loss, the rate and the gradient
//! norm of each, and which are left out.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod steps;

use ferrotune::{
    job::CausalLmTask,
    precision::GradScalerState,
    trainer::{TrainOutcome, Trainer, TrainerState, TrainingArguments},
};
use serde::Deserialize;
use std::path::Path;
use steps::{dataset, fixture, json, model};

#[derive(Deserialize)]
struct Step {
    step: usize,
    loss: f64,
    /// `None` if it is not finite.
    grad_norm: Option<f64>,
    learning_rate: f64,
    scale: f32,
    skipped: bool,
}

#[derive(Deserialize)]
struct Expected {
    arguments: TrainingArguments,
    scaler: GradScalerState,
    fp16: Vec<Step>,
    bf16: Vec<Step>,
}

fn expected() -> Expected {
    json(fixture("mixed_precision_steps").join("expected.json"))
}

fn run(arguments: TrainingArguments, scaler: Option<GradScalerState>) -> (TrainOutcome, TrainerState) {
    let folder = fixture("hundred_steps");
    let (model, adapter) = model(Path::new("llama_gqa_untied"), &folder);
    let dataset = dataset(&folder, arguments.seed);
    let task =
        CausalLmTask::new(&model, &adapter).with_forward_arguments(arguments.forward_arguments()).unwrap();
    let mut trainer = Trainer::new(&task, arguments, &dataset).unwrap();
    if scaler.is_some() {
        let mut state = trainer.state().clone();
        state.grad_scaler = scaler;
        let optimizer = trainer.optimizer().state().unwrap();
        trainer.resume(state, &optimizer).unwrap();
    }
    let outcome = trainer.train().unwrap();
    (outcome, trainer.state().clone())
}

/// Holds each step that was not left out to its reference; the largest relative differences of loss and gradient norm.
fn hold(outcome: &TrainOutcome, reference: &[Step], tolerance: [f64; 2]) {
    assert_eq!((outcome.global_step, reference.len()), (30, 30));
    let done: Vec<&Step> = reference.iter().filter(|step| !step.skipped).collect();
    assert_eq!(outcome.history.len(), done.len());
    let mut largest = [0.0_f64; 2];
    for (ours, reference) in outcome.history.iter().zip(done) {
        assert_eq!(ours.step, reference.step);
        let difference = (ours.learning_rate - reference.learning_rate).abs();
        assert!(difference < 1e-12, "rate of step {}: {}", ours.step, ours.learning_rate);
        let norm = reference.grad_norm.unwrap();
        for (largest, (ours, reference)) in
            largest.iter_mut().zip([(ours.loss, reference.loss), (ours.grad_norm, norm)])
        {
            *largest = largest.max((ours / reference - 1.0).abs());
        }
    }
    assert!(largest[0] < tolerance[0] && largest[1] < tolerance[1], "{largest:?}");
    assert!(largest[0] > 1e-6, "products in 16 bits are rounded: {largest:?}");
}

#[test]
fn bf16_trains_as_under_autocast() {
    let Expected { arguments, bf16, .. } = expected();
    let (outcome, state) = run(TrainingArguments { bf16: true, ..arguments }, None);
    hold(&outcome, &bf16, [3e-3, 2e-2]);
    assert_eq!((state.grad_scaler, state.skipped_steps), (None, 0));
}

#[test]
fn fp16_trains_as_under_autocast_with_the_scaler_of_torch() {
    let Expected { arguments, scaler, fp16, .. } = expected();
    let (outcome, state) = run(TrainingArguments { fp16: true, ..arguments }, Some(scaler));
    hold(&outcome, &fp16, [3e-4, 4e-3]);
    let skipped: Vec<&Step> = fp16.iter().filter(|step| step.skipped).collect();
    assert!(skipped.len() > 3 && skipped.iter().all(|step| step.grad_norm.is_none()));
    assert_eq!(state.skipped_steps, skipped.len());
    let last = state.grad_scaler.unwrap();
    let expected = fp16.last().map(|step| step.scale).unwrap();
    assert_eq!((last.scale, last.growth_tracker), (expected * 512.0, 0), "after the fourth step in a row");
}
