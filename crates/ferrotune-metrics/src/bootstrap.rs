//! Percentile intervals from resampled examples.
//!
//! A resample draws as many examples as there are, with replacement; the interval holds the middle 95 % of the scores of
//! 1,000 resamples. The draws come from a counter-based generator: draw `i` of resample `r` is a function of the seed, `r`
//! and `i`, so the same examples always give the same interval, and two metrics see the same resamples.
//!
//! # References
//! Efron 1979, "Bootstrap methods"; Koehn 2004, "Statistical significance tests for machine translation evaluation".

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A score of a whole set of examples, with the interval in which it would mostly fall on another such set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The score itself.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// How intervals are estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Number of resamples; none leave `low` and `high` at the value.
    pub resamples: usize,
    /// Share of the resamples within the interval, between 0 and 1.
    pub confidence: f64,
    /// What the draws depend on.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 1,000 resamples, 95 %, seed 12345.
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 12345 }
    }
}

impl Bootstrap {
    /// Estimates a score that depends on the examples only through the sum of their statistics.
    ///
    /// `score` gets that sum and the number of examples in it.
    ///
    /// # Shapes
    /// - `statistics`: `[examples][N]`
    ///
    /// # Errors
    /// [`Error::NoExamples`] if there are none.
    ///
    /// # Examples
    /// The mean of four values:
    /// ```
    /// use ferrotune_metrics::Bootstrap;
    /// let values = [[1.0], [2.0], [4.0], [5.0]];
    /// let mean = Bootstrap::default().estimate(&values, |[sum], count| sum / count as f64)?;
    /// assert_eq!(mean.value, 3.0);
    /// assert!(1.0 <= mean.low && mean.low < 3.0 && 3.0 < mean.high && mean.high <= 5.0);
    /// # Ok::<(), ferrotune_metrics::Error>(())
    /// ```
    pub fn estimate<const N: usize>(
        &self,
        statistics: &[[f64; N]],
        score: impl Fn(&[f64; N], usize) -> f64,
    ) -> Result<Estimate> {
        let (value, scores) = self.resampled(statistics, score)?;
        Ok(self.interval(value, scores))
    }

    /// The score of the examples, and that of each resample. Resample `r` of as many examples draws the same places, whatever
    /// their statistics, so that two systems on the same examples can be compared resample by resample.
    pub(crate) fn resampled<const N: usize>(
        &self,
        statistics: &[[f64; N]],
        score: impl Fn(&[f64; N], usize) -> f64,
    ) -> Result<(f64, Vec<f64>)> {
        let count = statistics.len();
        if count == 0 {
            return Err(Error::NoExamples);
        }
        let scores = (0..self.resamples as u64)
            .map(|resample| {
                let key = mix(self.seed ^ mix(resample));
                let drawn =
                    (0..count as u64).map(|draw| &statistics[below(count, mix(key.wrapping_add(draw)))]);
                score(&sum(drawn), count)
            })
            .collect();
        Ok((score(&sum(statistics.iter()), count), scores))
    }

    /// The middle share of the resamples' scores around the value.
    pub(crate) fn interval(&self, value: f64, mut scores: Vec<f64>) -> Estimate {
        if scores.is_empty() {
            return Estimate { value, low: value, high: value };
        }
        scores.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.confidence.clamp(0.0, 1.0)) / 2.0;
        Estimate { value, low: quantile(&scores, tail), high: quantile(&scores, 1.0 - tail) }
    }
}

fn sum<'a, const N: usize>(statistics: impl Iterator<Item = &'a [f64; N]>) -> [f64; N] {
    let mut total = [0.0; N];
    for statistic in statistics {
        total.iter_mut().zip(statistic).for_each(|(total, value)| *total += value);
    }
    total
}

/// Linear interpolation between the two nearest order statistics, as `numpy.quantile` does by default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

/// The output function of SplitMix64: a bijection that spreads consecutive counters over all 64 bits.
fn mix(counter: u64) -> u64 {
    let x = counter.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Maps 64 random bits to `0..bound`; the bias is below `bound / 2^64`.
fn below(bound: usize, bits: u64) -> usize {
    ((u128::from(bits) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean([sum]: &[f64; 1], count: usize) -> f64 {
        sum / count as f64
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // First outputs of SplitMix64 seeded with 0.
        assert_eq!(
            [mix(0), mix(1), mix(2)],
            [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]
        );
    }

    #[test]
    fn the_interval_of_a_mean_is_two_standard_errors_either_way() {
        let values: Vec<[f64; 1]> = (0..900).map(|i| [f64::from(i % 30)]).collect();
        let estimate = Bootstrap::default().estimate(&values, mean).unwrap();
        let standard_error = ((30.0_f64.powi(2) - 1.0) / 12.0 / 900.0).sqrt();
        assert_eq!(estimate.value, 14.5);
        for half_width in [estimate.value - estimate.low, estimate.high - estimate.value] {
            assert!((half_width / standard_error - 1.96).abs() < 0.2, "{half_width}");
        }
    }

    #[test]
    fn draws_are_uniform() {
        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|i| counts[below(7, mix(i))] += 1);
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 400), "{counts:?}");
    }

    #[test]
    fn it_repeats_and_depends_on_the_seed() {
        let values: Vec<[f64; 1]> = (0..50).map(|i| [f64::from(i)]).collect();
        let with_seed = |seed| Bootstrap { seed, ..Bootstrap::default() }.estimate(&values, mean).unwrap();
        assert_eq!(with_seed(1), with_seed(1));
        assert_ne!(with_seed(1), with_seed(2));
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0], 0.3), 1.0);
    }

    #[test]
    fn equal_examples_have_no_spread_and_none_are_an_error() {
        let estimate = Bootstrap::default().estimate(&[[0.3]; 11], mean).unwrap();
        assert_eq!((estimate.low, estimate.high), (estimate.value, estimate.value));
        assert!(matches!(Bootstrap::default().estimate(&[], mean), Err(Error::NoExamples)));
    }
}
