//! Two sets of predictions on the same references, compared example by example.

use serde::Serialize;

use crate::metric::Evaluator;
use crate::{Bootstrap, Error, Estimate, Metric, Prediction, Result};

/// A metric of the same examples before and after a change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The score of the predictions before.
    pub before: Estimate,
    /// The score of the predictions after.
    pub after: Estimate,
    /// How much better they are after; its interval is that of the paired bootstrap, as in [`compare`].
    pub change: Estimate,
}

/// How much better the predictions `after` are than `before` on the same references, in points of the metric.
///
/// `value` is the difference of the two scores; `low` and `high` bound the 95 % interval of the paired bootstrap: each resample draws
/// the same examples for both, so that what is hard for both does not widen the interval.
///
/// # Errors
/// [`Error::NoExamples`] if there are none.
///
/// # Examples
/// ```
/// use ferrotune_metrics::{Metric, compare};
/// let triples = [("a b c", "x y z", "a b c"), ("d e f", "d e x", "d e f")]; // (reference, before, after)
/// let gain = compare(Metric::Rouge1, &triples)?;
/// assert!((gain.value - (100.0 - 100.0 / 3.0)).abs() < 1e-9 && gain.low > 0.0);
/// # Ok::<(), ferrotune_metrics::Error>(())
/// ```
///
/// # References
/// Koehn 2004, "Statistical significance tests for machine translation evaluation".
pub fn compare<R: AsRef<str>, B: AsRef<str>, A: AsRef<str>>(
    metric: Metric,
    triples: &[(R, B, A)],
) -> Result<Estimate> {
    let before: Vec<(&str, &str)> = triples.iter().map(|(r, b, _)| (r.as_ref(), b.as_ref())).collect();
    let after: Vec<(&str, &str)> = triples.iter().map(|(r, _, a)| (r.as_ref(), a.as_ref())).collect();
    Ok(comparison(metric, &Evaluator::new(&before), &Evaluator::new(&after))?.change)
}

/// Compares two sets of predictions, such as two fields of one file or two files that [`read_predictions`](crate::read_predictions)
/// has read, by several metrics; the intervals of the changes are those of [`compare`].
///
/// # Errors
/// [`Error::Unpaired`] if the two do not have the same references in the same order; [`Error::NoExamples`] if there are none.
///
/// # Examples
/// ```
/// use ferrotune_metrics::{Metric, Prediction, compare_predictions};
/// let lines = |texts: [&str; 2]| {
///     let line = |(i, text): (usize, &str)| Prediction { reference: "a b".into(), prediction: text.into(), line: i + 1 };
///     texts.into_iter().enumerate().map(line).collect::<Vec<_>>()
/// };
/// let found = compare_predictions(&[Metric::Rouge1], &lines(["a x", "x b"]), &lines(["a b", "a b"]))?;
/// assert_eq!((found[0].1.before.value, found[0].1.change.value), (50.0, 50.0));
/// # Ok::<(), ferrotune_metrics::Error>(())
/// ```
pub fn compare_predictions(
    metrics: &[Metric],
    before: &[Prediction],
    after: &[Prediction],
) -> Result<Vec<(Metric, Comparison)>> {
    check_pairs(before, after)?;
    let (before, after) = (pairs(before), pairs(after));
    let (before, after) = (Evaluator::new(&before), Evaluator::new(&after));
    metrics.iter().map(|&metric| Ok((metric, comparison(metric, &before, &after)?))).collect()
}

fn pairs(predictions: &[Prediction]) -> Vec<(&str, &str)> {
    predictions.iter().map(|line| (line.reference.as_str(), line.prediction.as_str())).collect()
}

fn check_pairs(before: &[Prediction], after: &[Prediction]) -> Result<()> {
    for index in 0..before.len().max(after.len()) {
        let (before, after) = (before.get(index), after.get(index));
        if before.map(|line| &line.reference) != after.map(|line| &line.reference) {
            return Err(Error::Unpaired {
                line: before.or(after).map_or(0, |line| line.line),
                before: before.map(|line| line.reference.clone()),
                after: after.map(|line| line.reference.clone()),
            });
        }
    }
    Ok(())
}

fn comparison(
    metric: Metric,
    before: &Evaluator<'_, &str, &str>,
    after: &Evaluator<'_, &str, &str>,
) -> Result<Comparison> {
    let (value_before, resampled_before) = before.resampled(metric)?;
    let (value_after, resampled_after) = after.resampled(metric)?;
    let changes = resampled_after.iter().zip(&resampled_before).map(|(after, before)| after - before);
    let bootstrap = Bootstrap::default();
    let change = bootstrap.interval(value_after - value_before, changes.collect());
    Ok(Comparison {
        before: bootstrap.interval(value_before, resampled_before),
        after: bootstrap.interval(value_after, resampled_after),
        change,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate;

    /// Hard and easy examples in turn; one word more is right after than before in each.
    fn triples() -> Vec<(String, String, String)> {
        let words = |i: usize, right: usize| -> String {
            (0..10).map(|w| if w < right { format!("w{w} ") } else { format!("x{i}{w} ") }).collect()
        };
        (0..60).map(|i| (words(i, 10), words(i, i % 9), words(i, i % 9 + 1))).collect()
    }

    fn predictions(texts: &[(&str, &str)]) -> Vec<Prediction> {
        let line = |(index, (reference, prediction)): (usize, &(&str, &str))| Prediction {
            reference: (*reference).to_owned(),
            prediction: (*prediction).to_owned(),
            line: 10 + index,
        };
        texts.iter().enumerate().map(line).collect()
    }

    #[test]
    fn a_paired_difference_is_narrower_than_two_intervals_apart() {
        let triples = triples();
        let of = |pick: fn(&(String, String, String)) -> (String, String)| {
            evaluate(Metric::Rouge1, &triples.iter().map(pick).collect::<Vec<_>>()).unwrap()
        };
        let (before, after) = (of(|t| (t.0.clone(), t.1.clone())), of(|t| (t.0.clone(), t.2.clone())));
        let gain = compare(Metric::Rouge1, &triples).unwrap();
        assert!((gain.value - (after.value - before.value)).abs() < 1e-9);
        assert!((gain.value - 10.0).abs() < 1e-9 && gain.high - gain.low < 1e-6, "{gain:?}");
        assert!(after.low < before.high, "the separate intervals overlap");
        assert!(compare(Metric::Bleu, &triples).unwrap().value > 0.0);
    }

    #[test]
    fn sets_of_predictions_compare_as_their_triples_do_and_score_as_each_alone() {
        let triples = triples();
        let set = |pick: fn(&(String, String, String)) -> (&str, &str)| -> Vec<Prediction> {
            predictions(&triples.iter().map(pick).collect::<Vec<_>>())
        };
        let (before, after) = (set(|t| (&t.0, &t.1)), set(|t| (&t.0, &t.2)));
        let found = compare_predictions(&Metric::ALL, &before, &after).unwrap();
        assert_eq!(found.len(), Metric::ALL.len());
        for (metric, found) in found {
            assert_eq!(found.change, compare(metric, &triples).unwrap(), "{metric}");
            assert_eq!(found.before, evaluate(metric, &pairs(&before)).unwrap(), "{metric}");
            assert_eq!(found.after, evaluate(metric, &pairs(&after)).unwrap(), "{metric}");
        }
    }

    #[test]
    fn what_does_not_pair_is_refused_with_its_line() {
        let unpaired = |before: &[(&str, &str)], after: &[(&str, &str)]| match compare_predictions(
            &[Metric::Bleu],
            &predictions(before),
            &predictions(after),
        ) {
            Err(error @ Error::Unpaired { line, .. }) => (line, error.to_string()),
            other => panic!("expected unpaired predictions, found {other:?}"),
        };
        let (a, b, c) = (("a", "x"), ("b", "x"), ("c", "x"));
        let (line, said) = unpaired(&[a, b, c], &[a, c]);
        assert_eq!(line, 11);
        assert!(
            said.contains("found the reference \"b\" before and the reference \"c\" after"),
            "a line left out is named, not the end: {said}"
        );
        let (line, said) = unpaired(&[a, b], &[a, b, c]);
        assert_eq!(line, 12);
        assert!(said.contains("found no more predictions before and the reference \"c\" after"), "{said}");
        let (line, said) = unpaired(&[(&"ä\n".repeat(500), "x")], &[]);
        assert!(line == 10 && said.len() < 400 && said.contains("\\nä"), "{said}");
        assert!(matches!(compare_predictions(&[Metric::Bleu], &[], &[]), Err(Error::NoExamples)));
    }
}
