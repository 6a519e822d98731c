//! The learning-rate range test on a small model.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

mod common;

use common::{Examples, TokenModel};
use ferrotune_trainer::{Error, RangeTest, Trainer, TrainingArguments, find_lr};

fn arguments() -> TrainingArguments {
    TrainingArguments { per_device_train_batch_size: 4, ..Default::default() }
}

#[test]
fn the_rate_it_finds_trains_and_the_parameters_are_as_before() {
    let dataset = Examples::patterned(24);
    let model = TokenModel::small();
    let before = model.values();
    let test = RangeTest { start_lr: 1e-6, end_lr: 100.0, steps: 120 };
    let found = find_lr(&model, &arguments(), &dataset, test, |_| true).unwrap();
    assert_eq!(model.values(), before);
    assert!(found.diverged && found.points.len() < 120, "{}", found.points.len());
    for (index, point) in found.points.iter().enumerate() {
        let expected = 1e-6 * 1e8f64.powf(index as f64 / 119.0);
        assert!((point.learning_rate / expected - 1.0).abs() < 1e-9, "{index}");
    }
    let (steepest, tenth) = (found.steepest.unwrap(), found.minimum_tenth.unwrap());
    assert!((1e-4..1.0).contains(&steepest) && (1e-4..1.0).contains(&tenth), "{steepest} {tenth}");
    let loss_with = |learning_rate: f64| {
        let model = TokenModel::small();
        let arguments = TrainingArguments { learning_rate, max_steps: 60, ..arguments() };
        let trained = Trainer::new(&model, arguments, &dataset).unwrap().train().unwrap();
        trained.history.last().unwrap().loss
    };
    let suggested = loss_with(tenth);
    assert!(suggested < loss_with(tenth / 100.0), "{suggested}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_test_and_leaves_the_parameters() {
    let dataset = Examples::patterned(8);
    let model = TokenModel { poisoned: Some(5), ..TokenModel::small() };
    let before = model.values();
    let found = find_lr(&model, &arguments(), &dataset, RangeTest::default(), |_| true).unwrap();
    assert_eq!((found.points.len(), found.diverged), (1, true));
    assert_eq!(model.values(), before);
}

#[test]
fn whoever_hears_of_the_steps_can_end_it() {
    let (dataset, model) = (Examples::patterned(8), TokenModel::small());
    let before = model.values();
    let mut heard = Vec::new();
    let found = find_lr(&model, &arguments(), &dataset, RangeTest::default(), |point| {
        heard.push(*point);
        heard.len() < 7
    });
    assert_eq!((found.unwrap().points, heard.len()), (heard.clone(), 7));
    assert_eq!(model.values(), before);
}

#[test]
fn a_sweep_that_goes_nowhere_is_refused() {
    let dataset = Examples::patterned(4);
    let model = TokenModel::small();
    for test in [
        RangeTest { start_lr: 0.0, ..Default::default() },
        RangeTest { end_lr: 1e-9, ..Default::default() },
        RangeTest { steps: 9, ..Default::default() },
    ] {
        let error = find_lr(&model, &arguments(), &dataset, test, |_| true).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}
