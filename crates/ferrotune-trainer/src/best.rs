//! The best evaluation so far, and the end of a run that no longer improves.
//!
//! # References
//! `transformers.Trainer._determine_best_metric` and `transformers.EarlyStoppingCallback` 5.23.

use tch::Tensor;

use crate::error::Context;
use crate::{Error, EvaluationRecord, Result, SaveStrategy, TrainerState, TrainingArguments};

/// Whether evaluations are judged.
fn judges(arguments: &TrainingArguments) -> bool {
    arguments.metric_for_best_model.is_some()
        || arguments.load_best_model_at_end
        || arguments.early_stopping_patience.is_some()
        || arguments.save_strategy == SaveStrategy::Best
}

/// Counts an evaluation for early stopping, and whether it is the best so far.
pub(crate) fn track(
    arguments: &TrainingArguments,
    record: &EvaluationRecord,
    state: &mut TrainerState,
) -> bool {
    let metric = record.evaluation.metric(arguments.metric_name()).filter(|_| judges(arguments));
    let Some(metric) = metric else {
        return false;
    };
    let is_better = |than: f64| if arguments.greater_is_better() { metric > than } else { metric < than };
    // Held to the best before this one, as the callback hears of an evaluation before the trainer takes it over.
    let improves = state
        .best_metric
        .is_none_or(|best| is_better(best) && (metric - best).abs() > arguments.early_stopping_threshold);
    state.early_stopping_patience_counter =
        if improves { 0 } else { state.early_stopping_patience_counter + 1 };
    let is_best = state.best_metric.map_or(!metric.is_nan(), is_better);
    if is_best {
        state.best_metric = Some(metric);
        state.best_global_step = Some(record.step);
    }
    is_best
}

/// Whether patience is at its end.
pub(crate) fn stops_early(arguments: &TrainingArguments, state: &TrainerState) -> bool {
    arguments.early_stopping_patience.is_some_and(|patience| {
        // Its evaluations are counted, so that there was one.
        state.early_stopping_patience_counter >= patience && state.best_metric.is_some()
    })
}

/// Copies of parameters, by name.
pub(crate) fn copies(parameters: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
    let copy = |(name, parameter): &(String, Tensor)| {
        Ok((name.clone(), parameter.f_detach_copy().context("copying the parameters")?))
    };
    parameters.iter().map(copy).collect()
}

/// Copies the values of a checkpoint into the parameters of the same names: all of them, or none if they do not fit.
///
/// # Errors
/// [`Error::StateMismatch`] if a parameter has no value, a value no parameter, or both another shape; [`Error::Torch`].
pub fn restore(parameters: &[(String, Tensor)], values: &[(String, Tensor)]) -> Result<()> {
    let mismatch = |name: &str, expected: Option<&Tensor>, found: Option<&Tensor>| {
        let shape =
            |tensor: Option<&Tensor>| tensor.map_or("none".to_owned(), |it| format!("{:?}", it.size()));
        let (expected, found) = (shape(expected), shape(found));
        Error::StateMismatch { what: "checkpoint", tensor: name.to_owned(), expected, found }
    };
    let mut pairs = Vec::with_capacity(parameters.len());
    for (name, parameter) in parameters {
        let value = values.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        match value.filter(|value| value.size() == parameter.size()) {
            Some(fitting) => pairs.push((parameter.shallow_clone(), fitting)),
            None => return Err(mismatch(name, Some(parameter), value)),
        }
    }
    if let Some((name, value)) =
        values.iter().find(|(name, _)| !parameters.iter().any(|(other, _)| other == name))
    {
        return Err(mismatch(name, None, Some(value)));
    }
    let _guard = tch::no_grad_guard();
    for (mut parameter, value) in pairs {
        parameter.f_copy_(value).context("loading the parameters of a checkpoint")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Evaluation, IntervalStrategy};

    /// Best step, best metric and the evaluation after which the run stops.
    fn after(arguments: &TrainingArguments, losses: &[f64]) -> (Option<usize>, Option<f64>, Option<usize>) {
        let mut state = TrainerState::default();
        let mut stopped = None;
        for (index, &loss) in losses.iter().enumerate() {
            let evaluation = Evaluation {
                loss,
                nll: loss,
                target_tokens: 1,
                examples: 1,
                seconds: 0.0,
                metrics: [("f1".to_owned(), -loss)].into(),
            };
            let record = EvaluationRecord { step: index + 1, epoch: 0.0, evaluation, evaluations_left: 0 };
            track(arguments, &record, &mut state);
            if stopped.is_none() && stops_early(arguments, &state) {
                stopped = Some(index + 1);
            }
        }
        (state.best_global_step, state.best_metric, stopped)
    }

    #[test]
    fn patience_and_threshold_are_those_of_the_callback() {
        let arguments = |patience, threshold, greater_is_better| TrainingArguments {
            eval_strategy: IntervalStrategy::Epoch,
            early_stopping_patience: Some(patience),
            early_stopping_threshold: threshold,
            greater_is_better,
            ..TrainingArguments::default()
        };
        let losses = [3.0, 2.0, 2.0, 1.95, 1.9, 1.0, 1.2, 1.3];
        assert_eq!(after(&arguments(1, 0.0, None), &losses), (Some(6), Some(1.0), Some(3)));
        assert_eq!(after(&arguments(2, 0.0, None), &losses), (Some(6), Some(1.0), Some(8)));
        // Small improvements are the best so far, and count as none.
        assert_eq!(after(&arguments(3, 0.1, None), &losses), (Some(6), Some(1.0), Some(5)));
        assert_eq!(after(&arguments(1, 0.0, Some(true)), &losses), (Some(1), Some(3.0), Some(2)));
    }

    #[test]
    fn a_metric_that_was_measured_besides_is_judged_like_the_loss() {
        let arguments = TrainingArguments {
            metric_for_best_model: Some("eval_f1".to_owned()),
            early_stopping_patience: Some(1),
            ..TrainingArguments::default()
        };
        assert!(arguments.greater_is_better());
        assert_eq!(after(&arguments, &[3.0, 2.0, 2.5]), (Some(2), Some(-2.0), Some(3)));
    }

    #[test]
    fn nothing_is_judged_that_nobody_asks_for() {
        assert_eq!(after(&TrainingArguments::default(), &[2.0, 1.0]), (None, None, None));
    }

    #[test]
    fn values_are_copied_if_all_of_them_fit() {
        let named = |name: &str, values: &[f32]| (name.to_owned(), Tensor::from_slice(values));
        let parameters = [named("a", &[1.0]), named("b", &[2.0, 3.0])];
        let refused = |values: &[(String, Tensor)], tensor: &str, expected: &str, found: &str| {
            let error = restore(&parameters, values).unwrap_err();
            let text = format!("{tensor}: expected {expected}, found {found}");
            assert!(
                matches!(error, Error::StateMismatch { .. }) && error.to_string().ends_with(&text),
                "{error}"
            );
            assert_eq!(parameters[0].1, Tensor::from_slice(&[1.0_f32]), "nothing is changed");
        };
        refused(&[named("a", &[5.0])], "b", "[2]", "none");
        refused(&[named("a", &[5.0]), named("b", &[6.0])], "b", "[2]", "[1]");
        let extra = [named("b", &[6.0, 7.0]), named("a", &[5.0]), named("c", &[8.0])];
        refused(&extra, "c", "none", "[1]");
        restore(&parameters, &extra[..2]).unwrap();
        assert_eq!(parameters[0].1, Tensor::from_slice(&[5.0_f32]));
        assert_eq!(parameters[1].1, Tensor::from_slice(&[6.0_f32, 7.0]));
    }
}
