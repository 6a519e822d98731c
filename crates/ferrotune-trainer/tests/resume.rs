//! A run that goes on from a checkpoint is the unbroken run, bit for bit.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

mod common;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Examples, TokenModel};
use ferrotune_precision::{DtypePolicy, GradScalerState};
use ferrotune_trainer::{
    BoxError, Callback, Checkpoint, Checkpointer, Error, EvaluationRecord, IntervalStrategy, OptimizerName,
    OptimizerState, SaveStrategy, SchedulerType, StepRecord, TrainOutcome, TrainableModel, Trainer,
    TrainerState, TrainingArguments,
};
use tch::Tensor;

struct Saved {
    /// As text, the way a file has it.
    state: String,
    parameters: Vec<(String, Tensor)>,
    optimizer: OptimizerState,
}

impl Saved {
    fn state(&self) -> TrainerState {
        serde_json::from_str(&self.state).unwrap()
    }
}

#[derive(Default)]
struct Memory(RefCell<Vec<Saved>>);

impl Checkpointer for &Memory {
    fn save(&mut self, checkpoint: Checkpoint<'_>) -> Result<(), BoxError> {
        let copied = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.detach().copy());
        self.0.borrow_mut().push(Saved {
            state: serde_json::to_string(checkpoint.state)?,
            parameters: checkpoint.parameters.iter().map(copied).collect(),
            optimizer: checkpoint.optimizer,
        });
        Ok(())
    }

    fn load_best(&mut self, best_global_step: usize) -> Result<Option<Vec<(String, Tensor)>>, BoxError> {
        let saved = self.0.borrow();
        let best = saved.iter().rev().find(|saved| saved.state().global_step == best_global_step);
        let copied = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.copy());
        Ok(best.map(|saved| saved.parameters.iter().map(copied).collect()))
    }
}

/// Everything at once: noise in the forward pass, a last micro-batch and a last accumulation that are not full, log records over
/// several steps, evaluations between them.
fn arguments() -> TrainingArguments {
    TrainingArguments {
        num_train_epochs: 2.5,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        learning_rate: 0.05,
        warmup_steps: 2.0,
        logging_steps: 3.0,
        eval_strategy: IntervalStrategy::Steps,
        eval_steps: Some(2.0),
        eval_on_start: true,
        save_steps: 1.0,
        ..TrainingArguments::default()
    }
}

fn data() -> (Examples, Examples) {
    let mut train = Examples::patterned(15);
    let count = train.examples.len();
    train.orders = (0..4).map(|epoch| (0..count).map(|i| (i * 7 + 3 * epoch) % count).collect()).collect();
    (train, Examples::patterned(4))
}

fn model(arguments: &TrainingArguments) -> TokenModel {
    let policy = DtypePolicy::from_flags(arguments.bf16, arguments.fp16).unwrap();
    TokenModel { noise: 0.5, policy, ..TokenModel::small() }
}

/// A run from the start, or from a checkpoint, and the checkpoints that it took.
fn run(arguments: &TrainingArguments, from: Option<&Saved>) -> (TokenModel, TrainOutcome, Memory) {
    let (train, validation) = data();
    let (model, memory) = (model(arguments), Memory::default());
    let mut trainer = Trainer::new(&model, arguments.clone(), &train)
        .unwrap()
        .with_validation(&validation)
        .with_checkpointer(&memory);
    if let Some(saved) = from {
        tch::no_grad(|| {
            for (name, value) in &saved.parameters {
                model.get(name).shallow_clone().copy_(value);
            }
        });
        trainer.resume(saved.state(), &saved.optimizer).unwrap();
    }
    let outcome = trainer.train().unwrap();
    drop(trainer);
    (model, outcome, memory)
}

/// What does not depend on the clock.
fn timeless(outcome: &TrainOutcome) -> TrainOutcome {
    let mut outcome = outcome.clone();
    outcome.seconds = 0.0;
    outcome.time_to_first_step = None;
    for evaluation in outcome.evaluations.iter_mut().map(|r| &mut r.evaluation).chain(&mut outcome.validation)
    {
        evaluation.seconds = 0.0;
    }
    outcome
}

#[test]
fn a_run_resumed_after_any_step_is_the_unbroken_run() {
    for arguments in [
        arguments(),
        TrainingArguments {
            load_best_model_at_end: true,
            early_stopping_patience: Some(2),
            early_stopping_threshold: 0.05,
            eval_steps: Some(1.0),
            learning_rate: 0.3,
            num_train_epochs: 6.0,
            ..arguments()
        },
        TrainingArguments {
            optim: OptimizerName::Sgd,
            optim_args: Some("momentum=0.9,nesterov=true".into()),
            lr_scheduler_type: SchedulerType::ReduceLrOnPlateau,
            lr_scheduler_kwargs: [("patience", 0.0), ("threshold", 0.05), ("factor", 0.5)].into(),
            eval_steps: Some(1.0),
            ..arguments()
        },
    ] {
        let (unbroken, expected, memory) = run(&arguments, None);
        if arguments.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau {
            let last = expected.history.last().unwrap().learning_rate;
            assert!(last < arguments.learning_rate, "no evaluation lowered the rate, {last}");
        }
        let saved = memory.0.into_inner();
        assert_eq!(saved.len(), expected.global_step);
        for saved in &saved {
            let (resumed, outcome, later) = run(&arguments, Some(saved));
            let step = saved.state().global_step;
            // The best checkpoint may be an earlier one, which this memory does not have.
            let has_best =
                expected.best_global_step.is_none_or(|best| best > step) || !arguments.load_best_model_at_end;
            if has_best {
                assert_eq!(resumed.values(), unbroken.values(), "resumed after step {step}");
            }
            assert_eq!(timeless(&outcome), timeless(&expected), "resumed after step {step}");
            assert_eq!(later.0.borrow().len(), expected.global_step - step);
        }
    }
}

/// A run under `fp16` before its first step, with a scale that is far too large and soon grows again.
fn overscaled(arguments: &TrainingArguments) -> Saved {
    let (train, _) = data();
    let model = model(arguments);
    let trainer = Trainer::new(&model, arguments.clone(), &train).unwrap();
    let mut state = trainer.state().clone();
    let growth = 2.0_f64.powi(18);
    state.grad_scaler = Some(GradScalerState {
        scale: 2.0_f32.powi(30),
        growth_factor: growth,
        backoff_factor: 1.0 / growth,
        growth_interval: 3,
        growth_tracker: 0,
    });
    let parameters = model.trainable_parameters();
    let copied = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.detach().copy());
    Saved {
        state: serde_json::to_string(&state).unwrap(),
        parameters: parameters.iter().map(copied).collect(),
        optimizer: trainer.optimizer().state().unwrap(),
    }
}

#[test]
fn under_fp16_a_step_that_overflows_is_left_out_and_the_scale_goes_on_from_a_checkpoint() {
    let arguments = TrainingArguments {
        fp16: true,
        save_steps: 1.0,
        logging_steps: 1.0,
        num_train_epochs: 3.0,
        ..arguments()
    };
    let start = overscaled(&arguments);
    let (unbroken, expected, memory) = run(&arguments, Some(&start));
    let saved = memory.0.into_inner();
    assert_eq!(saved.len(), expected.global_step);
    // Too large, then three steps that fit, then too large again.
    let is_left_out = |step: usize| step % 4 == 1;
    let mut counted = 0;
    for step in 1..=expected.global_step {
        let (before, after) = match step {
            1 => (&start, &saved[0]),
            _ => (&saved[step - 2], &saved[step - 1]),
        };
        let record = expected.history.iter().find(|record| record.step == step);
        assert_eq!(record.is_none(), is_left_out(step), "step {step}");
        let moved =
            before.parameters.iter().zip(&after.parameters).any(|(before, after)| before.1 != after.1);
        // The first step that counts has a rate of 0.
        assert_eq!(moved, !is_left_out(step) && counted > 0, "step {step}");
        if let Some(record) = record {
            let rate = arguments.schedule(&arguments.plan(data().0.examples.len()).unwrap()).unwrap();
            assert_eq!(
                record.learning_rate,
                rate.learning_rate(counted),
                "the schedule counts {counted} steps"
            );
            counted += 1;
        }
        let state = after.state();
        assert_eq!((state.global_step, state.skipped_steps), (step, step - counted));
        let exponent = if is_left_out(step) || step % 4 != 0 { 12 } else { 30 };
        assert_eq!(state.grad_scaler.unwrap().scale, 2.0_f32.powi(exponent), "after step {step}");
    }
    assert!(counted < expected.global_step && expected.global_step > 8);
    for saved in &saved {
        let (resumed, outcome, _) = run(&arguments, Some(saved));
        let step = saved.state().global_step;
        assert_eq!(resumed.values(), unbroken.values(), "resumed after step {step}");
        assert_eq!(timeless(&outcome), timeless(&expected), "resumed after step {step}");
    }
}

#[test]
fn without_a_state_of_the_scaler_a_run_under_fp16_starts_with_that_of_torch() {
    let arguments = TrainingArguments { fp16: true, max_steps: 1, ..arguments() };
    let mut start = overscaled(&arguments);
    let text = start.state.clone();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(state.as_object_mut().unwrap().remove("grad_scaler").is_some());
    start.state = state.to_string();
    let (_, _, memory) = run(&arguments, Some(&start));
    let scaler = memory.0.borrow()[0].state().grad_scaler.unwrap();
    let expected = if scaler.growth_tracker == 0 { 32768.0 } else { 65536.0 };
    assert_eq!((scaler.scale, scaler.growth_interval), (expected, 2000));
}

#[test]
fn a_cancelled_run_takes_a_checkpoint_and_goes_on_from_it() {
    struct CancelAt(usize, Arc<AtomicBool>);
    impl Callback for CancelAt {
        fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
            self.1.fetch_or(record.global_step == self.0, Ordering::Relaxed);
            Ok(())
        }
    }
    let arguments = TrainingArguments { save_strategy: SaveStrategy::No, ..arguments() };
    let (unbroken, expected, memory) = run(&arguments, None);
    assert!(memory.0.borrow().is_empty());
    for step in 1..expected.global_step {
        let (train, validation) = data();
        let (model, flag) = (model(&arguments), Arc::new(AtomicBool::new(false)));
        let outcome = Trainer::new(&model, arguments.clone(), &train)
            .unwrap()
            .with_validation(&validation)
            .with_callback(CancelAt(step, flag.clone()))
            .with_cancellation(flag)
            .with_checkpointer(&memory)
            .train()
            .unwrap();
        assert!(outcome.cancelled && outcome.global_step == step);
        // The evaluation of an even step was cancelled: it comes first when the run goes on.
        let (resumed, outcome, _) = run(&arguments, memory.0.borrow().last());
        assert_eq!(resumed.values(), unbroken.values(), "cancelled after step {step}");
        assert_eq!(timeless(&outcome), timeless(&expected), "cancelled after step {step}");
    }
}

#[test]
fn a_longer_run_extends_a_finished_one_and_a_shorter_one_is_refused() {
    let short = TrainingArguments { max_steps: 3, lr_scheduler_type: SchedulerType::Constant, ..arguments() };
    let long = TrainingArguments { max_steps: 8, ..short.clone() };
    let (_, _, memory) = run(&short, None);
    let (unbroken, _, _) = run(&long, None);
    let saved = memory.0.into_inner().pop().unwrap();
    let (extended, outcome, _) = run(&long, Some(&saved));
    assert_eq!(extended.values(), unbroken.values());
    assert_eq!(outcome.global_step, 8);

    let (train, _) = data();
    let model = model(&arguments());
    let shorter = TrainingArguments {
        max_steps: 2,
        eval_strategy: IntervalStrategy::No,
        eval_on_start: false,
        ..short
    };
    let mut trainer = Trainer::new(&model, shorter, &train).unwrap();
    let message = trainer.resume(saved.state(), &saved.optimizer).unwrap_err().to_string();
    assert!(message.contains("max_steps = 2, and 3 steps are done"), "{message}");
}

#[test]
fn the_best_parameters_are_loaded_at_the_end_and_early_stopping_ends_the_run() {
    let arguments = TrainingArguments {
        num_train_epochs: 20.0,
        learning_rate: 0.5,
        eval_steps: Some(1.0),
        load_best_model_at_end: true,
        early_stopping_patience: Some(3),
        ..arguments()
    };
    let (model, outcome, memory) = run(&arguments, None);
    let losses: Vec<(usize, f64)> =
        outcome.evaluations.iter().filter(|r| r.step > 0).map(|r| (r.step, r.evaluation.loss)).collect();
    let best = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!((outcome.best_global_step, outcome.best_metric), (Some(best.0), Some(best.1)));
    assert!(!outcome.cancelled && outcome.global_step == best.0 + 3, "{losses:?}");
    let saved = memory.0.borrow();
    let kept = saved.iter().find(|saved| saved.state().global_step == best.0).unwrap();
    for (name, value) in &kept.parameters {
        assert!(model.get(name).equal(value), "{name}");
    }
}

#[test]
fn the_strategy_best_saves_after_each_best_evaluation() {
    struct Note<'a>(&'a RefCell<Vec<usize>>, f64);
    impl Callback for Note<'_> {
        fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
            if record.step > 0 && record.evaluation.loss < self.1 {
                self.1 = record.evaluation.loss;
                self.0.borrow_mut().push(record.step);
            }
            Ok(())
        }
    }
    let arguments = TrainingArguments { save_strategy: SaveStrategy::Best, ..arguments() };
    let (train, validation) = data();
    let (model, memory, steps) = (model(&arguments), Memory::default(), RefCell::default());
    Trainer::new(&model, arguments, &train)
        .unwrap()
        .with_validation(&validation)
        .with_callback(Note(&steps, f64::INFINITY))
        .with_checkpointer(&memory)
        .train()
        .unwrap();
    let saved: Vec<usize> = memory.0.borrow().iter().map(|saved| saved.state().global_step).collect();
    assert_eq!(saved, steps.into_inner());
    assert!(!saved.is_empty());
}

#[test]
fn an_error_of_the_checkpointer_ends_the_run_with_its_words() {
    struct Broken;
    impl Checkpointer for Broken {
        fn save(&mut self, _: Checkpoint<'_>) -> Result<(), BoxError> {
            Err("no pencil".into())
        }
        fn load_best(&mut self, _: usize) -> Result<Option<Vec<(String, Tensor)>>, BoxError> {
            Ok(None)
        }
    }
    let (train, validation) = data();
    let model = model(&arguments());
    let trainer = Trainer::new(&model, arguments(), &train).unwrap().with_validation(&validation);
    let error = trainer.with_checkpointer(Broken).train().unwrap_err();
    assert!(matches!(&error, Error::Checkpointer { .. }));
    assert_eq!(error.to_string(), "the checkpointer failed in save: no pencil");
}
