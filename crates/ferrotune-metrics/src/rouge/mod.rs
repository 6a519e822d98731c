//! ROUGE-N, ROUGE-L and ROUGE-Lsum, equal to rouge-score 0.1.2 with `use_stemmer=True`.
//!
//! Precision is the share of the prediction that the reference has, recall the share of the reference that the prediction
//! has, and `F = 2 P R / (P + R)`; what is shared are n-grams (ROUGE-N) or a longest common subsequence (ROUGE-L over the
//! whole text, ROUGE-Lsum line by line).
//!
//! ```
//! use ferrotune_metrics::rouge::TextPair;
//! let pair = TextPair::new("The cats are running.\nDogs slept.", "Dogs sleep.\nA cat runs");
//! assert_eq!(pair.rouge_l().precision, 0.4);
//! assert_eq!(pair.rouge_lsum().recall, 0.5);
//! ```
//!
//! # References
//! Lin 2004, "ROUGE: a package for automatic evaluation of summaries"; `rouge_score.rouge_scorer.RougeScorer`.

mod lcs;
mod porter;
mod tokens;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

pub use porter::stem;

use crate::overlap::{clipped_matches, ngram_count};
use tokens::{Encoded, Vocabulary};

/// Precision, recall and F-measure of one prediction, each in `[0, 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of the prediction that the reference has.
    pub precision: f64,
    /// Share of the reference that the prediction has.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 when both are.
    pub fmeasure: f64,
}

impl Score {
    fn new(hits: usize, reference: usize, prediction: usize) -> Self {
        let precision = hits as f64 / prediction.max(1) as f64;
        let recall = hits as f64 / reference.max(1) as f64;
        let sum = precision + recall;
        // In this order of operations the result is rouge-score's to the last bit.
        let fmeasure = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
        Self { precision, recall, fmeasure }
    }
}

/// A reference and a prediction, tokenized once for all ROUGE scores.
#[derive(Clone, Debug)]
pub struct TextPair {
    reference: Encoded,
    prediction: Encoded,
    vocabulary_size: usize,
}

impl TextPair {
    /// Tokenizes and stems both texts. A text without a Latin letter or a digit has no tokens, and scores 0.
    #[must_use]
    pub fn new(reference: &str, prediction: &str) -> Self {
        let mut vocabulary = Vocabulary::default();
        let (reference, prediction) = (vocabulary.encode(reference), vocabulary.encode(prediction));
        Self { reference, prediction, vocabulary_size: vocabulary.len() }
    }

    /// ROUGE-N: overlap of the n-grams of this order, each counted at most as often as both texts have it.
    #[must_use]
    pub fn rouge_n(&self, order: NonZeroUsize) -> Score {
        let order = order.get();
        let (reference, prediction) = (&self.reference.tokens, &self.prediction.tokens);
        Score::new(
            clipped_matches(reference, prediction, order),
            ngram_count(reference.len(), order),
            ngram_count(prediction.len(), order),
        )
    }

    /// ROUGE-L: the longest common subsequence of the whole texts; line ends are only separators.
    #[must_use]
    pub fn rouge_l(&self) -> Score {
        let (reference, prediction) = (&self.reference.tokens, &self.prediction.tokens);
        Score::new(lcs::length(reference, prediction), reference.len(), prediction.len())
    }

    /// ROUGE-Lsum: every line of the reference against all lines of the prediction.
    ///
    /// A reference token is hit if it lies in the longest common subsequence with any line of the prediction. A token
    /// counts at most as often as each of the texts has it.
    #[must_use]
    pub fn rouge_lsum(&self) -> Score {
        let mut left = vec![(0_usize, 0_usize); self.vocabulary_size];
        self.reference.tokens.iter().for_each(|&token| left[token as usize].0 += 1);
        self.prediction.tokens.iter().for_each(|&token| left[token as usize].1 += 1);
        let mut hits = 0;
        for reference in self.reference.lines() {
            let mut union = vec![false; reference.len()];
            self.prediction.lines().for_each(|prediction| lcs::mark(reference, prediction, &mut union));
            for (&token, _) in reference.iter().zip(union).filter(|&(_, hit)| hit) {
                let (in_reference, in_prediction) = &mut left[token as usize];
                if *in_reference > 0 && *in_prediction > 0 {
                    hits += 1;
                    *in_reference -= 1;
                    *in_prediction -= 1;
                }
            }
        }
        Score::new(hits, self.reference.tokens.len(), self.prediction.tokens.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIGRAMS: NonZeroUsize = NonZeroUsize::MIN;

    fn scores(pair: &TextPair) -> [Score; 4] {
        [pair.rouge_n(UNIGRAMS), pair.rouge_n(UNIGRAMS.saturating_add(1)), pair.rouge_l(), pair.rouge_lsum()]
    }

    /// Text from few words, so that two of them share some; and now and then anything at all.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![4 => "((a|cat|cats|sat|running|1st|ünder|\\PC)[ ,.\n-]){0,30}", 1 => "\\PC*"]
    }

    proptest! {
        #[test]
        fn scores_lie_between_0_and_1(reference in text(), prediction in text()) {
            for score in scores(&TextPair::new(&reference, &prediction)) {
                for value in [score.precision, score.recall, score.fmeasure] {
                    prop_assert!((0.0..=1.0).contains(&value), "{score:?}");
                }
            }
        }

        #[test]
        fn swapping_the_texts_swaps_precision_and_recall(reference in text(), prediction in text()) {
            let (pair, swapped) = (TextPair::new(&reference, &prediction), TextPair::new(&prediction, &reference));
            for (score, other) in scores(&pair).iter().zip(scores(&swapped)).take(3) {
                prop_assert_eq!((score.precision, score.recall), (other.recall, other.precision));
                prop_assert!((score.fmeasure - other.fmeasure).abs() < 1e-15);
            }
        }

        #[test]
        fn a_text_equals_itself_if_it_has_tokens(text in text()) {
            let pair = TextPair::new(&text, &text);
            let expected = if pair.reference.tokens.is_empty() { 0.0 } else { 1.0 };
            for score in [pair.rouge_n(UNIGRAMS), pair.rouge_l(), pair.rouge_lsum()] {
                prop_assert_eq!(score.fmeasure, expected);
            }
        }
    }
}
