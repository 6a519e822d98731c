//! Corpus chrF, equal to sacrebleu's `corpus_chrf` with its defaults (characters up to 6, no words, beta 2).
//!
//! `chrF = (1 + 4) P R / (4 P + R)`: `P` and `R` are precision and recall of character n-grams over all examples, averaged
//! over those orders `n = 1..6` of which predictions and references have some. White space is left out.
//!
//! # References
//! Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; `sacrebleu.metrics.chrf` 2.6.0.

use crate::overlap::{clipped_matches, ngram_count};
use crate::python::is_space;

/// Longest n-grams that count.
const MAX_ORDER: usize = 6;

/// Weight of recall against precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// By order: n-grams of the predictions, of the references, and matches.
pub(crate) type Statistics = [f64; 3 * MAX_ORDER];

/// What an example adds to the sums.
pub(crate) fn statistics(reference: &str, prediction: &str) -> Statistics {
    let characters = |text: &str| text.chars().filter(|&character| !is_space(character)).collect::<Vec<_>>();
    let (reference, prediction) = (characters(reference), characters(prediction));
    let mut statistics = [0.0; 3 * MAX_ORDER];
    for (order, counts) in (1..).zip(statistics.chunks_exact_mut(3)) {
        let (predicted, expected) =
            (ngram_count(prediction.len(), order), ngram_count(reference.len(), order));
        // As in sacrebleu, an example whose reference is too short for an order does not lower its precision.
        counts[0] = if expected == 0 { 0.0 } else { predicted as f64 };
        counts[1] = expected as f64;
        counts[2] = clipped_matches(&reference, &prediction, order) as f64;
    }
    statistics
}

/// chrF times 100, from the sums over a corpus.
pub(crate) fn score(sums: &Statistics) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for counts in sums.chunks_exact(3) {
        let (predicted, expected, matches) = (counts[0], counts[1], counts[2]);
        if predicted > 0.0 && expected > 0.0 {
            precision += matches / predicted;
            recall += matches / expected;
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_weighs_more_than_precision() {
        let (long, short) = (score(&statistics("abcd", "abcdabcd")), score(&statistics("abcdabcd", "abcd")));
        assert!(long > short, "{long} {short}");
    }

    #[test]
    fn white_space_does_not_count_and_nothing_scores_0() {
        assert!((score(&statistics("ab cd\u{1C}ef", "a bcdef")) - 100.0).abs() < 1e-9);
        assert_eq!(score(&statistics("", "")), 0.0);
        assert_eq!(score(&statistics("a", "b")), 0.0);
    }
}
