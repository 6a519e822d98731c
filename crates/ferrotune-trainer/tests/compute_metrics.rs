//! A run that is judged by a metric of the caller's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Examples, TokenModel};
use ferrotune_trainer::{
    BoxError, Error, IntervalStrategy, SchedulerType, TrainOutcome, Trainer, TrainingArguments,
};
use std::collections::BTreeMap;

type Computed = Result<Option<BTreeMap<String, f64>>, BoxError>;

fn value(name: &str, value: f64) -> Computed {
    Ok(Some([(name.to_owned(), value)].into()))
}

/// A run whose metric `rougeL` has these values at its evaluations, the one before the first step included.
fn run(metric: &str, compute: impl FnMut() -> Computed) -> Result<TrainOutcome, Error> {
    run_of("rougeL", arguments(metric), compute)
}

fn arguments(metric: &str) -> TrainingArguments {
    TrainingArguments {
        max_steps: 6,
        per_device_train_batch_size: 1,
        learning_rate: 1e-3,
        eval_strategy: IntervalStrategy::Steps,
        eval_steps: Some(1.0),
        eval_on_start: true,
        metric_for_best_model: Some(metric.to_owned()),
        early_stopping_patience: Some(2),
        ..TrainingArguments::default()
    }
}

fn run_of(
    name: &str,
    arguments: TrainingArguments,
    mut compute: impl FnMut() -> Computed,
) -> Result<TrainOutcome, Error> {
    let (model, train, validation) = (TokenModel::small(), Examples::patterned(6), Examples::patterned(2));
    Trainer::new(&model, arguments, &train)
        .unwrap()
        .with_validation(&validation)
        .with_compute_metrics([name], &mut compute)
        .train()
}

#[test]
fn it_stands_in_the_records_and_decides_when_the_run_ends() {
    let mut scores = [90.0, 20.0, 30.0, 25.0, 28.0, 99.0].into_iter();
    let outcome = run("eval_rougeL", || value("rougeL", scores.next().unwrap())).unwrap();
    // More is better; the one before the first step does not count.
    assert_eq!((outcome.best_global_step, outcome.best_metric), (Some(2), Some(30.0)));
    assert_eq!(outcome.global_step, 4);
    let recorded: Vec<f64> =
        outcome.evaluations.iter().map(|record| record.evaluation.metrics["rougeL"]).collect();
    assert_eq!(recorded, [90.0, 20.0, 30.0, 25.0, 28.0]);
    assert_eq!(outcome.validation.unwrap().metric("rougeL"), Some(28.0));
}

#[test]
fn a_cancelled_metric_leaves_no_record() {
    let mut calls = 0;
    let outcome = run("rougeL", || {
        calls += 1;
        if calls == 2 { Ok(None) } else { value("rougeL", 1.0) }
    });
    let steps: Vec<usize> = outcome.unwrap().evaluations.iter().map(|record| record.step).collect();
    assert_eq!(steps, [0, 2, 3, 4]);
}

#[test]
fn what_is_not_measured_is_refused_before_the_first_step_and_a_failure_has_its_words() {
    let error = run("rouge1", || panic!("nothing is measured")).unwrap_err();
    assert!(matches!(&error, Error::UnknownName { .. }), "{error}");
    assert!(error.to_string().contains("did you mean \"rougeL\"?"), "{error}");
    let error = run("eval_los", || panic!("nothing is measured")).unwrap_err().to_string();
    assert!(error.contains("metric_for_best_model") && error.contains("did you mean \"loss\"?"), "{error}");
    let error = run("rougeL", || Err("no answers".into())).unwrap_err().to_string();
    assert!(error.contains("compute_metrics") && error.contains("no answers"), "{error}");
    let error = run("rougeL", || value("rougeL", f64::NAN)).unwrap_err().to_string();
    assert!(error.contains("rougeL is NaN"), "{error}");
    let error = run("rougeL", || value("rouge1", 1.0)).unwrap_err().to_string();
    assert!(error.contains("no value for rougeL"), "{error}");
}

#[test]
fn names_that_mean_something_else_are_refused() {
    for name in ["loss", "runtime", "eval_f1"] {
        let error = run_of(name, arguments("loss"), || panic!("nothing is measured")).unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument { found, .. } if found == name), "{error}");
    }
}

#[test]
fn a_rate_that_waits_for_a_plateau_falls_when_a_score_does() {
    let of = |scores: [f64; 7]| {
        let arguments = TrainingArguments {
            lr_scheduler_type: SchedulerType::ReduceLrOnPlateau,
            lr_scheduler_kwargs: [("patience", 0.0)].into(),
            early_stopping_patience: None,
            logging_steps: 1.0,
            ..arguments("rougeL")
        };
        let mut scores = scores.into_iter();
        let outcome = run_of("rougeL", arguments, || value("rougeL", scores.next().unwrap())).unwrap();
        outcome.history.last().unwrap().learning_rate
    };
    assert_eq!(of([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 1e-3);
    assert!(of([0.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) < 1e-5);
}
