//! Statistics that a few wild values do not move.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The median; NaN of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => 0.5 * (sorted[middle - 1] + sorted[middle]),
    }
}

/// The standard deviation of a normal distribution with the median absolute deviation of the values: `1.4826 median |x - median x|`.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let center = median(values.iter().copied());
    1.4826 * median(values.iter().map(|value| (value - center).abs()))
}

/// How far the median falls from the first half of the values to the second, and the standard error of that.
///
/// `SE = 1.2533 sqrt((s_1^2 + s_2^2) / n)` with the [`deviation`] `s_i` of each half and its length `n`.
pub(super) struct Fall {
    /// The median of the first half.
    pub from: f64,
    /// How much lower that of the second half is.
    pub by: f64,
    pub standard_error: f64,
}

impl Fall {
    pub fn between_halves(values: &[f64]) -> Self {
        let (first, second) = values.split_at(values.len() / 2);
        let from = median(first.iter().copied());
        let variance = deviation(first).powi(2) + deviation(second).powi(2);
        Self {
            from,
            by: from - median(second.iter().copied()),
            standard_error: 1.2533 * (variance / first.len().max(1) as f64).sqrt(),
        }
    }

    /// Whether the fall is, but for its standard error, less than the share `share` of where it began.
    pub fn is_below(&self, share: f64) -> bool {
        self.by + self.standard_error < share * self.from.abs()
    }
}

/// An exponential mean, `m <- m + (1 - decay) (x - m)`, that starts at the first value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Trend {
    decay: f64,
    value: Option<f64>,
}

impl Trend {
    pub fn new(decay: f64) -> Self {
        Self { decay, value: None }
    }

    pub fn value(&self) -> Option<f64> {
        self.value
    }

    /// Follows a value, and returns how far it was from the trend before.
    pub fn follow(&mut self, value: f64) -> f64 {
        let before = self.value.unwrap_or(value);
        self.value = Some(before + (1.0 - self.decay) * (value - before));
        value - before
    }
}

/// How far the last values were from their trend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Residuals(VecDeque<f64>);

impl Residuals {
    /// Values that are remembered.
    const WINDOW: usize = 64;

    pub fn push(&mut self, residual: f64) {
        self.0.push_back(residual);
        if self.0.len() > Self::WINDOW {
            self.0.pop_front();
        }
    }

    /// Their [`deviation`], once there are `fewest` of them.
    pub fn deviation(&mut self, fewest: usize) -> Option<f64> {
        (self.0.len() >= fewest).then(|| deviation(self.0.make_contiguous()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wild_value_moves_neither_the_median_nor_the_deviation() {
        assert_eq!(median([3.0, 1.0, 1e9]), 3.0);
        assert_eq!(median([1.0, 2.0, 3.0, 1e9]), 2.5);
        assert!(median([]).is_nan());
        assert_eq!(deviation(&[1.0, 2.0, 3.0, 4.0, 1e9]), 1.4826);
    }

    #[test]
    fn a_fall_is_told_from_noise() {
        let falling: Vec<f64> =
            (0..100).map(|i| 2.0 - 0.01 * f64::from(i) + 0.1 * f64::from(i % 3)).collect();
        let flat: Vec<f64> = (0..100).map(|i| 2.0 + 0.01 * f64::from(i % 3)).collect();
        assert!(!Fall::between_halves(&falling).is_below(0.02));
        assert!(Fall::between_halves(&flat).is_below(0.02));
        // So noisy that a fall would not be seen.
        let noisy: Vec<f64> = (0..100).map(|i| 2.0 + f64::from(i % 3)).collect();
        assert!(!Fall::between_halves(&noisy).is_below(0.02));
    }

    #[test]
    fn a_trend_follows_and_returns_the_residual_from_before() {
        let mut trend = Trend::new(0.75);
        assert_eq!(trend.value(), None);
        assert_eq!([trend.follow(4.0), trend.follow(8.0), trend.follow(5.0)], [0.0, 4.0, 0.0]);
        assert_eq!(trend.value(), Some(5.0));
    }
}
