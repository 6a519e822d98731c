//! What the loop promises, on a small model of the tests' own.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

mod common;

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Example, Examples, TokenModel, VOCAB, parameter, relative_distance};
use ferrotune_trainer::{
    BoxError, Callback, Dataset, Error, EvaluationRecord, GradientReducer, Gradients, IntervalStrategy,
    LogRecord, RandomKey, SchedulerType, StepRecord, TrainOutcome, TrainPlan, TrainableModel, Trainer,
    TrainerState, TrainingArguments, evaluate,
};

fn arguments() -> TrainingArguments {
    TrainingArguments {
        learning_rate: 1e-2,
        per_device_train_batch_size: 1,
        per_device_eval_batch_size: 2,
        num_train_epochs: 1.0,
        logging_steps: 1.0,
        ..Default::default()
    }
}

#[test]
fn four_micro_batches_of_one_are_one_of_four() {
    let dataset = Examples::patterned(8);
    let run = |batch_size: usize, accumulation: usize| {
        let model = TokenModel::small();
        let arguments = TrainingArguments {
            per_device_train_batch_size: batch_size,
            gradient_accumulation_steps: accumulation,
            num_train_epochs: 3.0,
            ..arguments()
        };
        let outcome = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap();
        (outcome, model.values())
    };
    let ((cut, cut_values), (whole, whole_values)) = (run(1, 4), run(4, 1));
    assert_eq!((cut.global_step, whole.global_step), (6, 6));
    assert_eq!(cut.real_tokens, whole.real_tokens);
    for (a, b) in cut.history.iter().zip(&whole.history) {
        assert!((a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-5, "{a:?} {b:?}");
    }
    for ((name, a), (_, b)) in cut_values.iter().zip(&whole_values) {
        assert!(relative_distance(a, b) < 1e-5, "{name}");
    }
}

#[test]
fn the_last_group_of_an_epoch_is_a_step_and_the_next_epoch_begins_anew() {
    let dataset = Examples::patterned(7);
    let model = TokenModel::small();
    let arguments =
        TrainingArguments { gradient_accumulation_steps: 3, num_train_epochs: 2.0, ..arguments() };
    let steps = Rc::new(RefCell::new(Vec::new()));
    struct Keep(Rc<RefCell<Vec<StepRecord>>>);
    impl Callback for Keep {
        fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
            self.0.borrow_mut().push(*record);
            Ok(())
        }
    }
    let outcome = Trainer::new(&model, arguments, &dataset)
        .unwrap()
        .with_callback(Keep(steps.clone()))
        .train()
        .unwrap();
    assert_eq!(outcome.global_step, 6);
    let tokens = |range: std::ops::Range<usize>| -> usize {
        dataset.examples[range].iter().map(|example| example.input_ids.len()).sum()
    };
    let expected = [tokens(0..3), tokens(3..6), tokens(6..7)];
    let found: Vec<usize> = steps.borrow().iter().map(|record| record.real_tokens).collect();
    assert_eq!(found, [expected, expected].concat());
    assert_eq!(outcome.real_tokens, 2 * tokens(0..7));
    let epochs: Vec<f64> = steps.borrow().iter().map(|record| record.epoch).collect();
    assert_eq!(epochs, [3.0 / 7.0, 6.0 / 7.0, 1.0, 1.0 + 3.0 / 7.0, 1.0 + 6.0 / 7.0, 2.0]);
}

#[test]
fn it_learns_a_small_set_by_heart() {
    let dataset = Examples::patterned(4);
    let model = TokenModel::small();
    let before = evaluate(&model, &dataset, 3).unwrap();
    let arguments = TrainingArguments {
        per_device_train_batch_size: 4,
        max_steps: 200,
        learning_rate: 5e-2,
        ..arguments()
    };
    let outcome =
        Trainer::new(&model, arguments, &dataset).unwrap().with_validation(&dataset).train().unwrap();
    let after = outcome.validation.unwrap();
    assert!(before.loss > 2.0 && after.loss < 0.01, "{} -> {}", before.loss, after.loss);
    assert_eq!(outcome.global_step, 200);
    assert!((after.perplexity() - after.loss.exp()).abs() < 1e-12);
}

#[test]
fn evaluation_weighs_tokens_whatever_the_batch_size_and_is_never_random() {
    let dataset = Examples::patterned(7);
    let model = TokenModel { noise: 5.0, ..TokenModel::small() };
    let by_one = evaluate(&model, &dataset, 1).unwrap();
    let by_seven = evaluate(&model, &dataset, 7).unwrap();
    assert!((by_one.loss - by_seven.loss).abs() < 1e-6);
    assert_eq!((by_one.target_tokens, by_one.examples), (by_seven.target_tokens, 7));
    assert_eq!(model.evaluations.get(), 8);
    assert!(model.keys.borrow().is_empty());
    assert!(matches!(
        evaluate(&model, &Examples::new(vec![]), 1),
        Err(Error::EmptyDataset { split: "validation" })
    ));
    let masked = Examples::new(vec![Example::new(&[1, 2], 2)]);
    assert!(matches!(evaluate(&model, &masked, 1), Err(Error::NoTargets { .. })));
    let poisoned = TokenModel { poisoned: Some(3), ..TokenModel::small() };
    let message = evaluate(&poisoned, &dataset, 2).unwrap_err().to_string();
    assert!(
        message.contains("train.jsonl:3, train.jsonl:4") && !message.contains("train.jsonl:5"),
        "{message}"
    );
}

#[test]
fn a_parameter_without_a_gradient_is_an_error_before_anything_moves() {
    let dataset = Examples::patterned(4);
    let mut model = TokenModel::small();
    model.parameters.push(("forgotten.lora_B.weight".into(), parameter(&[1.0, 2.0], &[2])));
    let before = model.values();
    let error = Trainer::new(&model, arguments(), &dataset).unwrap().train().unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::MissingGradient { .. }), "{message}");
    for word in ["forgotten.lora_B.weight", "step 1", "train.jsonl:1"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(!message.contains("hidden.weight"), "{message}");
    assert_eq!(model.values(), before);
}

#[test]
fn a_loss_that_is_not_a_number_names_its_step_and_its_examples_alone() {
    let dataset = Examples::patterned(8);
    let model = TokenModel { poisoned: Some(5), ..TokenModel::small() };
    let arguments = TrainingArguments {
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        num_train_epochs: 1.0,
        ..arguments()
    };
    let error = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap_err();
    let Error::NonFiniteLoss { loss, place } = &error else { panic!("{error}") };
    assert!(loss.is_nan());
    assert_eq!(
        (place.step, place.examples.as_slice()),
        (Some(2), &["train.jsonl:5".to_string(), "train.jsonl:6".into()][..])
    );
    assert!(model.values().iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
}

#[test]
fn a_gradient_that_is_not_finite_names_parameter_step_and_examples() {
    let dataset = Examples::patterned(4);
    let model = TokenModel::small();
    struct Spoil;
    impl GradientReducer for Spoil {
        fn sum_targets(&mut self, target_tokens: usize) -> Result<usize, BoxError> {
            Ok(target_tokens)
        }
        fn sum_gradients(&mut self, gradients: &mut Gradients) -> Result<(), BoxError> {
            for (name, gradient) in gradients.iter_mut().filter(|(name, _)| *name == "hidden.bias") {
                *gradient = Some(gradient.take().ok_or(name.to_string())? * f64::INFINITY);
            }
            Ok(())
        }
        fn sum_loss(&mut self, loss: f64) -> Result<f64, BoxError> {
            Ok(loss)
        }
    }
    let before = model.values();
    let message = Trainer::new(&model, arguments(), &dataset)
        .unwrap()
        .with_reducer(Spoil)
        .train()
        .unwrap_err()
        .to_string();
    for word in ["not finite", "hidden.bias", "step 1", "train.jsonl:1"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(!message.contains("hidden.weight"), "{message}");
    assert_eq!(model.values(), before);
}

#[test]
fn two_ranks_that_sum_are_one_rank_with_both_shares() {
    // Each rank has half of the examples; the other's half is recomputed here in place of a network.
    let all = Examples::patterned(6);
    let halves = [Examples::new(all.examples[..3].to_vec()), Examples::new(all.examples[3..].to_vec())];
    struct Other<'a> {
        model: &'a TokenModel,
        dataset: &'a Examples,
        targets: usize,
        loss: f64,
    }
    impl GradientReducer for Other<'_> {
        fn sum_targets(&mut self, target_tokens: usize) -> Result<usize, BoxError> {
            self.targets = target_tokens + self.model.target_tokens(&self.dataset.batch(&[0, 1, 2])?);
            Ok(self.targets)
        }
        fn sum_gradients(&mut self, gradients: &mut Gradients) -> Result<(), BoxError> {
            let mode = ferrotune_trainer::Mode::Train(RandomKey::from_seed(0));
            let loss = self.model.loss(&self.dataset.batch(&[0, 1, 2])?, mode)? / self.targets as f64;
            self.loss = loss.double_value(&[]);
            gradients.backward(&loss, &self.model.parameters)?;
            Ok(())
        }
        fn sum_loss(&mut self, loss: f64) -> Result<f64, BoxError> {
            Ok(loss + self.loss)
        }
    }
    let arguments =
        TrainingArguments { per_device_train_batch_size: 6, num_train_epochs: 4.0, ..arguments() };
    let one = TokenModel::small();
    let expected = Trainer::new(&one, arguments.clone(), &all).unwrap().train().unwrap();
    let two = TokenModel::small();
    let reducer = Other { model: &two, dataset: &halves[1], targets: 0, loss: 0.0 };
    let found = Trainer::new(&two, arguments, &halves[0]).unwrap().with_reducer(reducer).train().unwrap();
    for (a, b) in found.history.iter().zip(&expected.history) {
        assert!((a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-5, "{a:?} {b:?}");
    }
    for ((name, a), (_, b)) in two.values().iter().zip(&one.values()) {
        assert!(relative_distance(a, b) < 1e-5, "{name}");
    }
}

#[test]
fn one_seed_gives_the_same_bits_and_another_gives_others() {
    let dataset = Examples::patterned(6);
    let run = |seed| {
        let model = TokenModel { noise: 0.5, ..TokenModel::small() };
        let arguments = TrainingArguments { seed, num_train_epochs: 2.0, ..arguments() };
        let outcome = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap();
        (outcome.history, model.values())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn every_micro_batch_has_a_key_of_its_own_that_only_its_place_decides() {
    let dataset = Examples::patterned(4);
    let model = TokenModel::small();
    let arguments =
        TrainingArguments { gradient_accumulation_steps: 2, num_train_epochs: 3.0, seed: 9, ..arguments() };
    Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap();
    let keys = model.keys.borrow();
    assert_eq!(keys.len(), 12);
    let first_bits: HashSet<u64> = keys.iter().map(|key| key.bits(0)).collect();
    assert_eq!(first_bits.len(), 12);
    // Epoch 2, step 5 of the run, second micro-batch; all counted from 0.
    assert_eq!(keys[11], RandomKey::from_seed(9).fold(2).fold(5).fold(1));
}

#[test]
fn the_logged_loss_is_the_mean_since_the_last_record_and_the_last_step_is_logged() {
    let dataset = Examples::patterned(7);
    let run = |logging_steps: f64| {
        let model = TokenModel::small();
        let arguments = TrainingArguments { logging_steps, ..arguments() };
        Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap()
    };
    let (each, third) = (run(1.0), run(3.0));
    let steps: Vec<usize> = third.history.iter().map(|record| record.step).collect();
    assert_eq!(steps, [3, 6, 7]);
    let mean = |range: std::ops::Range<usize>| {
        each.history[range.clone()].iter().map(|record| record.loss).sum::<f64>() / range.len() as f64
    };
    for (record, range) in third.history.iter().zip([0..3, 3..6, 6..7]) {
        assert!((record.loss - mean(range.clone())).abs() < 1e-12);
        assert_eq!(record.grad_norm, each.history[range.end - 1].grad_norm);
        assert_eq!(record.learning_rate, each.history[range.end - 1].learning_rate);
    }
    assert!((third.train_loss - mean(0..7)).abs() < 1e-12);
    assert_eq!(run(0.3).history.len(), 3); // ceil(0.3 * 7) = 3
}

#[test]
fn callbacks_hear_everything_in_order_and_an_error_carries_the_name() {
    #[derive(Clone, Default)]
    struct Listen {
        heard: Rc<RefCell<Vec<String>>>,
        fails_at: Option<&'static str>,
    }
    impl Listen {
        fn hear(&self, event: String) -> Result<(), BoxError> {
            let fails = self.fails_at.is_some_and(|word| event.starts_with(word));
            self.heard.borrow_mut().push(event);
            if fails { Err("the disk is full".into()) } else { Ok(()) }
        }
    }
    impl Callback for Listen {
        fn name(&self) -> &str {
            "listener"
        }
        fn on_train_begin(&mut self, plan: &TrainPlan, state: &TrainerState) -> Result<(), BoxError> {
            assert_eq!(state.global_step, 0);
            self.hear(format!("begin {} {} {}", plan.max_steps, plan.examples, plan.trainable_parameters))
        }
        fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
            assert!(record.seconds > 0.0 && record.tokens_per_s > 0.0 && record.target_tokens > 0);
            self.hear(format!("step {}", record.global_step))
        }
        fn on_log(&mut self, record: &LogRecord) -> Result<(), BoxError> {
            self.hear(format!("log {}", record.step))
        }
        fn on_evaluation_progress(&mut self, done: usize, examples: usize) -> Result<(), BoxError> {
            self.hear(format!("evaluating {done} of {examples}"))
        }
        fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
            assert_eq!(record.evaluation.examples, 2);
            self.hear(format!("evaluate {} {}", record.step, record.evaluations_left))
        }
        fn on_train_end(&mut self, outcome: &TrainOutcome) -> Result<(), BoxError> {
            self.hear(format!("end {}", outcome.global_step))
        }
    }
    let dataset = Examples::patterned(3);
    let validation = Examples::patterned(2);
    let run = |listener: Listen| {
        let model = TokenModel::small();
        let arguments = TrainingArguments {
            logging_steps: 2.0,
            eval_strategy: IntervalStrategy::Steps,
            eval_on_start: true,
            ..arguments()
        };
        Trainer::new(&model, arguments, &dataset)
            .unwrap()
            .with_validation(&validation)
            .with_callback(listener)
            .train()
    };
    let listener = Listen::default();
    run(listener.clone()).unwrap();
    let elements = 13 * 6 + 6 + 9 * 6 + 9 + 13 * 9;
    let expected = [
        &format!("begin 3 3 {elements}"),
        "evaluating 0 of 2",
        "evaluate 0 2",
        "step 1",
        "step 2",
        "log 2",
        "evaluating 0 of 2",
        "evaluate 2 1",
        "step 3",
        "log 3",
        "evaluating 0 of 2",
        "evaluate 3 0",
        "end 3",
    ];
    assert_eq!(*listener.heard.borrow(), expected);
    for (word, event) in [
        ("begin", "on_train_begin"),
        ("step 2", "on_step_end"),
        ("log", "on_log"),
        ("evaluating", "on_evaluation_progress"),
        ("evaluate", "on_evaluate"),
        ("end", "on_train_end"),
    ] {
        let message = run(Listen { fails_at: Some(word), ..Listen::default() }).unwrap_err().to_string();
        assert_eq!(message, format!("callback listener failed in {event}: the disk is full"));
    }
}

#[test]
fn a_cancelled_run_ends_with_its_whole_steps() {
    struct CancelAfter(usize, Arc<AtomicBool>);
    impl Callback for CancelAfter {
        fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
            if record.global_step == self.0 {
                self.1.store(true, Ordering::Relaxed);
            }
            Ok(())
        }
    }
    let dataset = Examples::patterned(8);
    let model = TokenModel::small();
    let flag = Arc::new(AtomicBool::new(false));
    let constant = TrainingArguments { lr_scheduler_type: SchedulerType::Constant, ..arguments() };
    let outcome = Trainer::new(&model, constant.clone(), &dataset)
        .unwrap()
        .with_validation(&dataset)
        .with_callback(CancelAfter(3, flag.clone()))
        .with_cancellation(flag)
        .train()
        .unwrap();
    assert!(outcome.cancelled && outcome.validation.is_none());
    assert_eq!((outcome.global_step, outcome.history.len()), (3, 3));
    assert_eq!(model.keys.borrow().len(), 3, "no forward pass after the flag");

    let unbroken = TokenModel::small();
    let full = Trainer::new(&unbroken, TrainingArguments { max_steps: 3, ..constant }, &dataset)
        .unwrap()
        .train()
        .unwrap();
    assert!(!full.cancelled && full.time_to_first_step.is_some_and(|seconds| seconds <= full.seconds));
    assert_eq!(model.values(), unbroken.values());
}

#[test]
fn evaluations_change_no_bit_of_the_training_and_are_not_in_its_seconds() {
    struct Slow<'a>(&'a Examples);
    impl Dataset for Slow<'_> {
        type Batch = common::Batch;
        fn len(&self) -> usize {
            self.0.len()
        }
        fn order(&self, epoch: usize) -> Vec<usize> {
            self.0.order(epoch)
        }
        fn batch(&self, indices: &[usize]) -> Result<common::Batch, BoxError> {
            std::thread::sleep(Duration::from_millis(5));
            self.0.batch(indices)
        }
    }
    let dataset = Examples::patterned(6);
    let validation = Examples::patterned(4);
    let slow = Slow(&validation);
    let run = |eval_strategy, eval_steps, eval_on_start, validation: Option<&Slow<'_>>| {
        let model = TokenModel { noise: 0.5, ..TokenModel::small() };
        let arguments = TrainingArguments {
            num_train_epochs: 2.0,
            eval_strategy,
            eval_steps,
            eval_on_start,
            ..arguments()
        };
        let mut trainer = Trainer::new(&model, arguments, &dataset).unwrap();
        if let Some(validation) = validation {
            trainer = trainer.with_validation(validation);
        }
        let start = Instant::now();
        let outcome = trainer.train().unwrap();
        let wall = start.elapsed().as_secs_f64();
        let evaluations: f64 = outcome.evaluations.iter().map(|record| record.evaluation.seconds).sum();
        assert!(outcome.seconds + evaluations <= wall);
        drop(trainer);
        (outcome, model)
    };
    let (without, bare) = run(IntervalStrategy::No, None, false, None);
    assert!(without.evaluations.is_empty() && without.validation.is_none());
    for (strategy, eval_steps, on_start, expected) in [
        (IntervalStrategy::No, None, false, vec![12]),
        (IntervalStrategy::Epoch, None, true, vec![0, 6, 12]),
        (IntervalStrategy::Steps, Some(5.0), true, vec![0, 5, 10, 12]),
        (IntervalStrategy::Steps, Some(0.25), false, vec![3, 6, 9, 12]),
    ] {
        let (outcome, model) = run(strategy, eval_steps, on_start, Some(&slow));
        assert_eq!(outcome.history, without.history);
        assert_eq!(model.values(), bare.values());
        let steps: Vec<usize> = outcome.evaluations.iter().map(|record| record.step).collect();
        assert_eq!(steps, expected);
        let last = &outcome.evaluations.last().unwrap().evaluation;
        assert_eq!(outcome.validation, Some(last.clone()));
        assert_eq!(last.loss, evaluate(&model, &validation, 2).unwrap().loss);
        assert!(outcome.time_to_first_step.unwrap() <= outcome.seconds);
    }
    let (outcome, _) = run(IntervalStrategy::Steps, Some(1.0), true, Some(&slow));
    let losses: Vec<f64> = outcome.evaluations.iter().map(|record| record.evaluation.loss).collect();
    assert_eq!(losses.len(), 13);
    assert_eq!(losses[0], evaluate(&TokenModel::small(), &validation, 2).unwrap().loss);
    assert!(losses[12] < losses[0], "{losses:?}");
}

#[test]
fn an_evaluation_stops_when_the_run_is_cancelled() {
    struct CancelInBatch<'a>(&'a Examples, Arc<AtomicBool>, std::cell::Cell<usize>);
    impl Dataset for CancelInBatch<'_> {
        type Batch = common::Batch;
        fn len(&self) -> usize {
            self.0.len()
        }
        fn order(&self, epoch: usize) -> Vec<usize> {
            self.0.order(epoch)
        }
        fn batch(&self, indices: &[usize]) -> Result<common::Batch, BoxError> {
            self.1.store(true, Ordering::Relaxed);
            self.2.set(self.2.get() + 1);
            self.0.batch(indices)
        }
    }
    let dataset = Examples::patterned(6);
    let run = |eval_on_start| {
        let model = TokenModel::small();
        let flag = Arc::new(AtomicBool::new(false));
        let validation = CancelInBatch(&dataset, flag.clone(), std::cell::Cell::new(0));
        let outcome = Trainer::new(&model, TrainingArguments { eval_on_start, ..arguments() }, &dataset)
            .unwrap()
            .with_validation(&validation)
            .with_cancellation(flag)
            .train()
            .unwrap();
        assert_eq!(validation.2.get(), 1, "no batch after the flag");
        assert!(outcome.evaluations.is_empty() && outcome.validation.is_none());
        outcome
    };
    let at_the_start = run(true);
    assert!(at_the_start.cancelled && at_the_start.global_step == 0);
    // The steps are done: nothing of the training is lost.
    let at_the_end = run(false);
    assert!(!at_the_end.cancelled && at_the_end.global_step == 6);
}

#[test]
fn an_evaluation_of_nothing_is_refused_before_the_first_step() {
    let dataset = Examples::patterned(3);
    for (eval_strategy, eval_on_start, field) in [
        (IntervalStrategy::Epoch, false, "eval_strategy = epoch"),
        (IntervalStrategy::Steps, true, "eval_strategy = steps"),
        (IntervalStrategy::No, true, "eval_on_start = true"),
    ] {
        let model = TokenModel::small();
        let arguments = TrainingArguments { eval_strategy, eval_on_start, ..arguments() };
        let message = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap_err().to_string();
        assert!(message.contains(field) && message.contains("with_validation"), "{message}");
        assert!(model.keys.borrow().is_empty());
    }
}

#[test]
fn rows_without_a_target_are_no_division_by_zero() {
    let mut dataset = Examples::patterned(3);
    dataset.examples.insert(1, Example::new(&[1, 2, 3], 3));
    let model = TokenModel::small();
    let mixed = TrainingArguments { gradient_accumulation_steps: 4, ..arguments() };
    let outcome = Trainer::new(&model, mixed, &dataset).unwrap().train().unwrap();
    assert!(outcome.train_loss.is_finite());
    assert_eq!(model.keys.borrow().len(), 3);
    let message = Trainer::new(&model, arguments(), &dataset).unwrap().train().unwrap_err().to_string();
    assert!(
        message.contains("no target token")
            && message.contains("step 2")
            && message.contains("train.jsonl:2"),
        "{message}"
    );
}

#[test]
fn errors_of_the_model_and_the_data_set_say_where() {
    let mut dataset = Examples::patterned(3);
    dataset.examples[2] = Example::new(&[VOCAB, 1], 1);
    let model = TokenModel::small();
    let message = Trainer::new(&model, arguments(), &dataset).unwrap().train().unwrap_err().to_string();
    for word in ["tokens of another vocabulary", "step 3", "train.jsonl:3"] {
        assert!(message.contains(word), "{message}");
    }
    let mut dataset = Examples::patterned(3);
    dataset.orders = vec![vec![0, 7, 1]];
    let error = Trainer::new(&model, arguments(), &dataset).unwrap().train().unwrap_err();
    assert!(matches!(&error, Error::Dataset { split: "train", indices, .. } if indices == &[7]), "{error}");
    dataset.orders = vec![vec![0, 1]];
    let error = Trainer::new(&model, arguments(), &dataset).unwrap().train().unwrap_err();
    assert!(matches!(error, Error::OrderLength { epoch: 0, found: 2, expected: 3 }), "{error}");
}

#[test]
fn no_clipping_still_reports_the_norm() {
    let dataset = Examples::patterned(4);
    let run = |max_grad_norm: f64| {
        let model = TokenModel::small();
        let arguments = TrainingArguments { max_grad_norm, num_train_epochs: 3.0, ..arguments() };
        let outcome = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap();
        (outcome.history, model.values())
    };
    let (free, huge, tight) = (run(0.0), run(1e9), run(1e-3));
    assert_eq!(free, huge);
    assert!(free.0.iter().all(|record| record.grad_norm > 0.1));
    assert_ne!(free.1, tight.1);
    assert_eq!(free.0[0].grad_norm, tight.0[0].grad_norm, "the norm is that before clipping");
}
