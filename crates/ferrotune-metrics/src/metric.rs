//! The metrics by name, and their evaluation over a set of examples.

use std::cell::OnceCell;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use crate::bleu;
use crate::chrf;
use crate::rouge::{Score, TextPair};
use crate::{Bootstrap, Error, Estimate, Result};

/// A metric of predictions against references.
///
/// `Display` and `FromStr` use the names of the Python packages: `rouge1` ... `rouge9`, `rougeL`, `rougeLsum`, `bleu`, `chrf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// Overlap of words.
    Rouge1,
    /// Overlap of pairs of words.
    Rouge2,
    /// Overlap of 3-grams.
    Rouge3,
    /// Overlap of 4-grams.
    Rouge4,
    /// Overlap of 5-grams.
    Rouge5,
    /// Overlap of 6-grams.
    Rouge6,
    /// Overlap of 7-grams.
    Rouge7,
    /// Overlap of 8-grams.
    Rouge8,
    /// Overlap of 9-grams.
    Rouge9,
    /// Longest common subsequence of the whole texts.
    RougeL,
    /// Longest common subsequences line by line.
    RougeLsum,
    /// Corpus BLEU: overlap of words up to 4-grams, with a penalty for brevity.
    Bleu,
    /// Corpus chrF: overlap of characters up to 6-grams.
    Chrf,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 13] = [
        Self::Rouge1,
        Self::Rouge2,
        Self::Rouge3,
        Self::Rouge4,
        Self::Rouge5,
        Self::Rouge6,
        Self::Rouge7,
        Self::Rouge8,
        Self::Rouge9,
        Self::RougeL,
        Self::RougeLsum,
        Self::Bleu,
        Self::Chrf,
    ];

    /// The name, such as `rougeL`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rouge1 => "rouge1",
            Self::Rouge2 => "rouge2",
            Self::Rouge3 => "rouge3",
            Self::Rouge4 => "rouge4",
            Self::Rouge5 => "rouge5",
            Self::Rouge6 => "rouge6",
            Self::Rouge7 => "rouge7",
            Self::Rouge8 => "rouge8",
            Self::Rouge9 => "rouge9",
            Self::RougeL => "rougeL",
            Self::RougeLsum => "rougeLsum",
            Self::Bleu => "bleu",
            Self::Chrf => "chrf",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|metric| metric.name() == name);
        known.ok_or_else(|| Error::UnknownMetric { found: name.to_owned() })
    }
}

/// One metric over `(reference, prediction)` pairs, times 100.
///
/// The ROUGE values are plain means of the F-measures of the pairs. (The `mid` of rouge-score's own aggregator, which other
/// tools report, is the median of randomly resampled means, and changes from run to run.) BLEU and chrF are computed from
/// counts summed over the pairs. `low` and `high` bound the 95 % interval of [`Bootstrap::default`], and are the same in
/// every run.
///
/// # Errors
/// [`Error::NoExamples`] if there are no pairs.
///
/// # Examples
/// ```
/// use ferrotune_metrics::{Metric, evaluate};
/// let pairs = [("The cats sat down.", "A cat sits down"), ("Dogs bark.", "dog barks")];
/// let rouge1 = evaluate(Metric::Rouge1, &pairs)?;
/// assert_eq!(rouge1.value, (50.0 + 100.0) / 2.0);
/// # Ok::<(), ferrotune_metrics::Error>(())
/// ```
pub fn evaluate<R: AsRef<str>, P: AsRef<str>>(metric: Metric, pairs: &[(R, P)]) -> Result<Estimate> {
    Evaluator::new(pairs).evaluate(metric)
}

/// Several metrics over the same pairs, in the order asked for; texts are tokenized once.
///
/// # Errors
/// [`Error::NoExamples`] if there are no pairs.
pub fn evaluate_all<R: AsRef<str>, P: AsRef<str>>(
    metrics: &[Metric],
    pairs: &[(R, P)],
) -> Result<Vec<(Metric, Estimate)>> {
    let evaluator = Evaluator::new(pairs);
    metrics.iter().map(|&metric| Ok((metric, evaluator.evaluate(metric)?))).collect()
}

/// Scores the same pairs by several metrics.
pub(crate) struct Evaluator<'a, R, P> {
    pairs: &'a [(R, P)],
    /// Tokenized when the first ROUGE metric asks for it.
    rouge: OnceCell<Vec<TextPair>>,
    bootstrap: Bootstrap,
}

impl<'a, R: AsRef<str>, P: AsRef<str>> Evaluator<'a, R, P> {
    pub(crate) fn new(pairs: &'a [(R, P)]) -> Self {
        Self { pairs, rouge: OnceCell::new(), bootstrap: Bootstrap::default() }
    }

    fn evaluate(&self, metric: Metric) -> Result<Estimate> {
        let (value, resampled) = self.resampled(metric)?;
        Ok(self.bootstrap.interval(value, resampled))
    }

    /// The score, and that of each resample.
    pub(crate) fn resampled(&self, metric: Metric) -> Result<(f64, Vec<f64>)> {
        let ngrams = |order: usize| {
            let order = NonZeroUsize::MIN.saturating_add(order - 1);
            self.mean_fmeasure(|pair| pair.rouge_n(order))
        };
        match metric {
            Metric::Rouge1 => ngrams(1),
            Metric::Rouge2 => ngrams(2),
            Metric::Rouge3 => ngrams(3),
            Metric::Rouge4 => ngrams(4),
            Metric::Rouge5 => ngrams(5),
            Metric::Rouge6 => ngrams(6),
            Metric::Rouge7 => ngrams(7),
            Metric::Rouge8 => ngrams(8),
            Metric::Rouge9 => ngrams(9),
            Metric::RougeL => self.mean_fmeasure(TextPair::rouge_l),
            Metric::RougeLsum => self.mean_fmeasure(TextPair::rouge_lsum),
            Metric::Bleu => self.corpus_score(bleu::statistics, bleu::score),
            Metric::Chrf => self.corpus_score(chrf::statistics, chrf::score),
        }
    }

    fn mean_fmeasure(&self, score: impl Fn(&TextPair) -> Score) -> Result<(f64, Vec<f64>)> {
        let pairs = self.rouge.get_or_init(|| {
            self.pairs
                .iter()
                .map(|(reference, prediction)| TextPair::new(reference.as_ref(), prediction.as_ref()))
                .collect()
        });
        let scores: Vec<[f64; 1]> = pairs.iter().map(|pair| [score(pair).fmeasure]).collect();
        self.bootstrap.resampled(&scores, |[sum], count| 100.0 * sum / count as f64)
    }

    fn corpus_score<const N: usize>(
        &self,
        statistics: impl Fn(&str, &str) -> [f64; N],
        score: impl Fn(&[f64; N]) -> f64,
    ) -> Result<(f64, Vec<f64>)> {
        let statistics: Vec<_> = self.pairs.iter().map(|(r, p)| statistics(r.as_ref(), p.as_ref())).collect();
        self.bootstrap.resampled(&statistics, |sums, _| score(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for metric in Metric::ALL {
            assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = "rouge-l".parse::<Metric>().unwrap_err().to_string();
        assert!(message.contains("\"rouge-l\"") && message.contains("rougeL, rougeLsum"), "{message}");
    }

    #[test]
    fn several_metrics_equal_each_alone() {
        let pairs = [("a b c d", "a c b d"), ("x y", "x"), ("", "z")];
        for (metric, estimate) in evaluate_all(&Metric::ALL, &pairs).unwrap() {
            assert_eq!(evaluate(metric, &pairs).unwrap(), estimate, "{metric}");
        }
    }

    #[test]
    fn no_pairs_are_an_error() {
        assert!(matches!(evaluate::<&str, &str>(Metric::RougeL, &[]), Err(Error::NoExamples)));
    }
}
