//! Held to PyTorch and transformers: each fixture has the script that wrote it beside it.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use common::{Example, Examples, TokenModel, VOCAB, parameter, relative_distance};
use ferrotune_trainer::{
    AdamW, AdamWOptions, BoxError, Checkpoint, Checkpointer, Gradients, IntervalStrategy, Optimizer,
    Schedule, SchedulerKwargs, SchedulerType, TrainPlan, Trainer, TrainingArguments, decays,
};
use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

fn fixture<T: for<'de> Deserialize<'de>>(case: &str) -> T {
    let path = format!("{}/tests/fixtures/{case}/{case}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap()
}

#[test]
fn adamw_equals_torch_over_twenty_steps() {
    #[derive(Deserialize)]
    struct Step {
        learning_rate: f64,
        gradients: BTreeMap<String, Vec<f32>>,
        parameters: BTreeMap<String, Vec<f32>>,
    }
    #[derive(Deserialize)]
    struct Fixture {
        shapes: BTreeMap<String, Vec<i64>>,
        betas: (f64, f64),
        epsilon: f64,
        weight_decay: f64,
        initial: BTreeMap<String, Vec<f32>>,
        steps: Vec<Step>,
        final_state: BTreeMap<String, Vec<f32>>,
    }
    let fixture: Fixture = fixture("adamw");
    let (beta1, beta2) = fixture.betas;
    let options = AdamWOptions { beta1, beta2, epsilon: fixture.epsilon, weight_decay: fixture.weight_decay };
    let parameters: Vec<(String, Tensor)> = fixture
        .shapes
        .iter()
        .map(|(name, shape)| (name.clone(), parameter(&fixture.initial[name], shape)))
        .collect();
    let shared =
        || parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect::<Vec<_>>();
    let mut optimizer = AdamW::new(shared(), options).unwrap();
    assert_eq!(fixture.steps.len(), 20);
    for (index, step) in fixture.steps.iter().enumerate() {
        let mut gradients = Gradients::new(&parameters);
        for (name, gradient) in gradients.iter_mut() {
            *gradient = Some(Tensor::from_slice(&step.gradients[name]).reshape(&fixture.shapes[name]));
        }
        if index == 10 {
            // Halfway a new optimizer takes over the state.
            let mut state = optimizer.state().unwrap();
            state.tensors.reverse();
            optimizer = AdamW::new(shared(), options).unwrap();
            optimizer.load_state(&state).unwrap();
        }
        optimizer.step(&gradients, step.learning_rate).unwrap();
        for (name, tensor) in &parameters {
            let distance = relative_distance(&values(tensor), &step.parameters[name]);
            assert!(distance <= 1e-6, "{name} after step {}: {distance:e}", index + 1);
        }
    }
    let state = optimizer.state().unwrap();
    assert_eq!(state.step, 20);
    let tensors: BTreeMap<String, Tensor> = state.tensors.into_iter().collect();
    assert_eq!(tensors.len(), fixture.final_state.len());
    for (name, expected) in &fixture.final_state {
        let distance = relative_distance(&values(&tensors[name]), expected);
        assert!(distance <= 1e-6, "{name}: {distance:e}");
    }
}

#[test]
fn sgd_and_the_groups_of_lora_plus_equal_torch_and_peft() {
    type Values = BTreeMap<String, Vec<f32>>;
    #[derive(Deserialize)]
    struct Case {
        arguments: TrainingArguments,
        after_every_eight: Vec<Values>,
        final_state: Values,
    }
    #[derive(Deserialize)]
    struct Fixture {
        shapes: BTreeMap<String, Vec<i64>>,
        learning_rates: Vec<f64>,
        initial: Values,
        gradients: Vec<Values>,
        cases: Vec<Case>,
    }
    let fixture: Fixture = fixture("optimizers");
    assert_eq!((fixture.gradients.len(), fixture.cases.len()), (24, 5));
    for Case { arguments, after_every_eight, final_state } in fixture.cases {
        let parameters: Vec<(String, Tensor)> = fixture
            .shapes
            .iter()
            .map(|(name, shape)| (name.clone(), parameter(&fixture.initial[name], shape)))
            .collect();
        let new = || {
            let shared = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            arguments.optimizer(shared.collect()).unwrap()
        };
        let mut optimizer = new();
        let (mut clipped, mut kept) = (false, false);
        for (index, step) in fixture.gradients.iter().enumerate() {
            let mut gradients = Gradients::new(&parameters);
            for (name, gradient) in gradients.iter_mut() {
                *gradient = Some(Tensor::from_slice(&step[name]).reshape(&fixture.shapes[name]));
            }
            let scale = Gradients::clip_coefficient(arguments.max_grad_norm, gradients.norm().unwrap());
            (clipped, kept) = (clipped || scale < 1.0, kept || scale == 1.0);
            // From the second step on, another optimizer each time that takes over the state.
            let state = optimizer.state().unwrap();
            optimizer = new();
            optimizer.load_state(&state).unwrap();
            optimizer.step_scaled(&gradients, fixture.learning_rates[index], scale).unwrap();
            if index % 8 == 7 {
                for (name, tensor) in &parameters {
                    let distance = relative_distance(&values(tensor), &after_every_eight[index / 8][name]);
                    assert!(distance <= 1e-6, "{arguments:?}: {name} after {}: {distance:e}", index + 1);
                }
            }
        }
        assert!(clipped && kept);
        let state = optimizer.state().unwrap();
        assert_eq!((state.step, state.tensors.len()), (24, final_state.len()), "{arguments:?}");
        for (name, tensor) in state.tensors {
            let distance = relative_distance(&values(&tensor), &final_state[&name]);
            assert!(distance <= 1e-6, "{name}: {distance:e}");
        }
    }
}

#[test]
fn schedules_equal_transformers() {
    #[derive(Deserialize)]
    struct Row {
        name: SchedulerType,
        #[serde(default)]
        kwargs: SchedulerKwargs,
        warmup_steps: usize,
        training_steps: usize,
        learning_rate: f64,
        rates: Vec<f64>,
    }
    let rows: Vec<Row> = serde_json::from_value(fixture::<Value>("schedules")["schedules"].take()).unwrap();
    assert!(SchedulerType::ALL.iter().all(|kind| {
        // Held to its reference below.
        *kind == SchedulerType::ReduceLrOnPlateau
            || rows.iter().any(|row| row.name == *kind && row.rates.len() == 50)
    }));
    for row in rows {
        let schedule =
            Schedule::new(row.name, &row.kwargs, row.learning_rate, row.warmup_steps, row.training_steps)
                .unwrap();
        for (steps_done, &expected) in row.rates.iter().enumerate() {
            let found = schedule.learning_rate(steps_done);
            assert!(
                (found - expected).abs() <= 1e-12 * row.learning_rate,
                "{} {:?} {}/{} after {steps_done} steps: {found} instead of {expected}",
                row.name,
                row.kwargs,
                row.warmup_steps,
                row.training_steps
            );
        }
    }
}

#[test]
fn a_plateau_equals_torch_over_fifty_evaluations() {
    #[derive(Deserialize)]
    struct Row {
        kwargs: SchedulerKwargs,
        rates: Vec<f64>,
    }
    let mut fixture: Value = fixture("schedules");
    let metrics: Vec<Option<f64>> = serde_json::from_value(fixture["metrics"].take()).unwrap();
    let rows: Vec<Row> = serde_json::from_value(fixture["plateaus"].take()).unwrap();
    for Row { kwargs, rates } in rows {
        let mut schedule = Schedule::new(SchedulerType::ReduceLrOnPlateau, &kwargs, 1e-3, 0, 50).unwrap();
        assert_eq!(rates.len(), 50);
        for (index, (metric, &expected)) in metrics.iter().zip(&rates).enumerate() {
            schedule.observe(metric.unwrap_or(f64::NAN));
            let found = schedule.learning_rate(index);
            assert!(
                (found - expected).abs() <= 1e-12 * expected,
                "{kwargs:?} after {index}: {found} instead of {expected}"
            );
        }
    }
}

#[test]
fn clipping_equals_torch() {
    #[derive(Deserialize)]
    struct Case {
        max_norm: f64,
        before: Vec<Vec<f32>>,
        norm: f64,
        after: Vec<Vec<f32>>,
    }
    let mut fixture: Value = fixture("clip_grad_norm");
    let shapes: Vec<Vec<i64>> = serde_json::from_value(fixture["shapes"].take()).unwrap();
    let cases: Vec<Case> = serde_json::from_value(fixture["cases"].take()).unwrap();
    for case in cases {
        let parameters: Vec<(String, Tensor)> = case
            .before
            .iter()
            .zip(&shapes)
            .enumerate()
            .map(|(index, (before, shape))| (index.to_string(), parameter(before, shape)))
            .collect();
        let mut gradients = Gradients::new(&parameters);
        for ((_, gradient), (_, tensor)) in gradients.iter_mut().zip(&parameters) {
            *gradient = Some(tensor.detach());
        }
        let norm = gradients.clip_norm(case.max_norm).unwrap();
        assert!((norm - case.norm).abs() <= 1e-6 * case.norm, "{norm} instead of {}", case.norm);
        for ((name, gradient), expected) in gradients.iter().zip(&case.after) {
            let distance = relative_distance(&values(gradient.unwrap()), expected);
            assert!(distance <= 1e-6, "{name} clipped to {}: {distance:e}", case.max_norm);
        }
        for ((_, tensor), before) in parameters.iter().zip(&case.before) {
            assert_eq!(&values(tensor), before, "the caller's tensor has changed");
        }
    }
}

#[test]
fn defaults_and_step_counts_equal_transformers() {
    let fixture: Value = fixture("step_count");
    let defaults: TrainingArguments = serde_json::from_value(fixture["defaults"].clone()).unwrap();
    assert_eq!(defaults, TrainingArguments::default());
    // What transformers has elsewhere (early stopping is a callback, LoRA+ is PEFT's), or with another default.
    let elsewhere = [
        "early_stopping_patience",
        "early_stopping_threshold",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "output_dir",
    ];
    for name in serde_json::to_value(TrainingArguments::default()).unwrap().as_object().unwrap().keys() {
        assert_ne!(fixture["defaults"].get(name).is_some(), elsewhere.contains(&name.as_str()), "{name}");
    }

    let rows = fixture["rows"].as_array().unwrap();
    assert!(rows.len() > 500);
    for row in rows {
        let whole = |column: usize| row[column].as_u64().unwrap() as usize;
        let arguments = TrainingArguments {
            per_device_train_batch_size: whole(1),
            gradient_accumulation_steps: whole(2),
            num_train_epochs: row[3].as_f64().unwrap(),
            max_steps: row[4].as_i64().unwrap(),
            warmup_steps: row[5].as_f64().unwrap(),
            ..Default::default()
        };
        let plan = arguments.plan(whole(0)).unwrap();
        let found =
            [plan.batches_per_epoch, plan.steps_per_epoch, plan.max_steps, plan.epochs, plan.warmup_steps];
        assert_eq!(found, [6, 7, 8, 9, 10].map(whole), "{row}");
    }
}

#[test]
fn evaluations_come_after_the_steps_of_transformers() {
    #[derive(Deserialize)]
    struct Row {
        examples: usize,
        arguments: TrainingArguments,
        evaluated: Vec<usize>,
    }
    let rows: Vec<Row> = serde_json::from_value(fixture::<Value>("eval_steps")["rows"].take()).unwrap();
    assert!(rows.len() > 100);
    for Row { examples, arguments, evaluated } in rows {
        let plan = arguments.plan(examples).unwrap();
        let mut found: Vec<usize> = (0..=plan.max_steps).filter(|&step| plan.evaluates_after(step)).collect();
        if arguments.eval_strategy == IntervalStrategy::No {
            assert_eq!(found.pop(), Some(plan.max_steps), "the one that is ours");
        }
        assert_eq!(found, evaluated, "{arguments:?}");
    }
}

/// Notes after which steps the trainer hands over a checkpoint.
#[derive(Default)]
struct Saves(RefCell<BTreeSet<usize>>);

impl Checkpointer for &Saves {
    fn save(&mut self, checkpoint: Checkpoint<'_>) -> Result<(), BoxError> {
        assert!(self.0.borrow_mut().insert(checkpoint.state.global_step), "each step once");
        Ok(())
    }

    fn load_best(&mut self, _: usize) -> Result<Option<Vec<(String, Tensor)>>, BoxError> {
        Ok(None)
    }
}

#[test]
fn logs_evaluations_and_checkpoints_come_after_the_steps_of_transformers_in_the_plan_and_in_the_run() {
    #[derive(Deserialize)]
    struct Row {
        examples: usize,
        arguments: TrainingArguments,
        steps: usize,
        /// Step, epoch and learning rate.
        logged: Vec<(usize, f64, f64)>,
        ended: usize,
        evaluated: BTreeSet<usize>,
        saved: BTreeSet<usize>,
    }
    let rows: Vec<Row> = serde_json::from_value(fixture::<Value>("run_plan")["rows"].take()).unwrap();
    assert_eq!(rows.len(), 12);
    for Row { examples, arguments, steps, logged, ended, mut evaluated, saved } in rows {
        let plan = arguments.plan(examples).unwrap();
        assert_eq!((plan.max_steps, ended), (steps, steps));
        let mut log_steps: BTreeSet<usize> = logged.iter().map(|(step, ..)| *step).collect();
        // The record of the last step, which is of the whole run there.
        log_steps.insert(ended);
        if arguments.eval_strategy == IntervalStrategy::No {
            // Ours alone.
            evaluated.insert(plan.max_steps);
        }
        let planned = |due: fn(&TrainPlan, usize) -> bool| {
            (0..=plan.max_steps).filter(|&step| due(&plan, step)).collect::<BTreeSet<usize>>()
        };
        assert_eq!(planned(TrainPlan::logs_after), log_steps, "logs of {arguments:?}");
        assert_eq!(planned(TrainPlan::saves_after), saved, "checkpoints of {arguments:?}");
        assert_eq!(planned(TrainPlan::evaluates_after), evaluated, "evaluations of {arguments:?}");

        let data = |count: usize| {
            Examples::new((0..count as i64).map(|i| Example::new(&[i % VOCAB, 1, 2], 1)).collect())
        };
        let (train, validation, saves) = (data(examples), data(1), Saves::default());
        let model = TokenModel::small();
        let mut trainer = Trainer::new(&model, arguments.clone(), &train)
            .unwrap()
            .with_validation(&validation)
            .with_checkpointer(&saves);
        let outcome = trainer.train().unwrap();
        assert_eq!(outcome.global_step, steps, "{arguments:?}");
        let found: Vec<usize> = outcome.history.iter().map(|record| record.step).collect();
        assert_eq!(found, Vec::from_iter(log_steps), "records of {arguments:?}");
        for (step, epoch, learning_rate) in logged {
            let record = outcome.history.iter().find(|record| record.step == step).unwrap();
            assert!((record.epoch - epoch).abs() < 1e-12, "{record:?} {epoch}");
            assert!((record.learning_rate - learning_rate).abs() < 1e-16, "{record:?} {learning_rate}");
        }
        let found: Vec<usize> = outcome.evaluations.iter().map(|record| record.step).collect();
        assert_eq!(found, Vec::from_iter(evaluated), "evaluations done of {arguments:?}");
        assert_eq!(*saves.0.borrow(), saved, "checkpoints handed over of {arguments:?}");
    }
}

#[test]
fn weight_decay_acts_on_the_names_of_transformers() {
    let names: BTreeMap<String, bool> =
        serde_json::from_value(fixture::<Value>("decay_names")["names"].take()).unwrap();
    assert!(names.len() > 20);
    for (name, expected) in names {
        assert_eq!(decays(&name), expected, "{name}");
    }
}

#[test]
fn a_run_equals_the_trainer_of_transformers() {
    #[derive(Deserialize)]
    struct Row {
        input_ids: Vec<i64>,
        labels: Vec<i64>,
    }
    #[derive(Deserialize)]
    struct Weights {
        shape: Vec<i64>,
        values: Vec<f32>,
    }
    #[derive(Deserialize)]
    struct Step {
        step: usize,
        epoch: f64,
        loss: f64,
        grad_norm: f64,
        learning_rate: f64,
    }
    #[derive(Deserialize)]
    struct Fixture {
        arguments: TrainingArguments,
        orders: Vec<Vec<usize>>,
        examples: Vec<Row>,
        initial: BTreeMap<String, Weights>,
        r#final: BTreeMap<String, Weights>,
        history: Vec<Step>,
        tokens: Vec<usize>,
    }
    let fixture: Fixture = fixture("training_run");
    let examples =
        fixture.examples.into_iter().map(|Row { input_ids, labels }| Example { input_ids, labels }).collect();
    let dataset = Examples { examples, orders: fixture.orders };
    let model = TokenModel::new(
        fixture.initial.iter().map(|(name, w)| (name.clone(), parameter(&w.values, &w.shape))).collect(),
    );
    let outcome = Trainer::new(&model, fixture.arguments, &dataset).unwrap().train().unwrap();

    assert_eq!(outcome.history.len(), 20);
    assert_eq!(outcome.real_tokens, fixture.tokens.iter().sum::<usize>());
    for (found, expected) in outcome.history.iter().zip(&fixture.history) {
        assert_eq!(found.step, expected.step);
        assert!((found.epoch - expected.epoch).abs() < 1e-12);
        let step = expected.step;
        for (what, found, expected) in [
            ("loss", found.loss, expected.loss),
            ("grad_norm", found.grad_norm, expected.grad_norm),
            ("learning_rate", found.learning_rate, expected.learning_rate),
        ] {
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs(),
                "{what} {found} instead of {expected} at step {step}"
            );
        }
    }
    for (name, found) in model.values() {
        let moved = relative_distance(&fixture.r#final[&name].values, &fixture.initial[&name].values);
        let distance = relative_distance(&found, &fixture.r#final[&name].values);
        assert!(distance <= 1e-5 && moved > 1e-2, "{name}: {distance:e} off, moved by {moved:e}");
    }
}
