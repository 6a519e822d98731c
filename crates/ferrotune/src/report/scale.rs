//! The scale of a chart: from values to positions, and the round values to write at the axis.

use maud::{Markup, html};

/// Maps values linearly to positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Puts `low` at `from` and `high` at `to`. An empty range is widened, so that no position is NaN.
    pub(super) fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        let high = if high - low > 1e-12 * low.abs().max(1e-300) { high } else { low + low.abs().max(1.0) };
        Self { low, high, from, to }
    }

    /// The position of a value, to a tenth of a pixel.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        ((self.from + share * (self.to - self.from)) * 10.0).round() / 10.0
    }

    /// About `wanted` round values within the range: multiples of 1, 2 or 5 times a power of ten.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        let step = self.step(wanted);
        let first = (self.low / step - 1e-9).ceil();
        let mut ticks = vec![];
        for index in 0..50_u32 {
            let tick = (first + f64::from(index)) * step;
            if tick > self.high + 1e-9 * step {
                break;
            }
            ticks.push(tick);
        }
        ticks
    }

    fn step(&self, wanted: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let rough = (self.high - self.low) / wanted.max(1) as f64;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].into_iter().map(|times| times * power).find(|step| *step >= rough * 0.999);
        step.unwrap_or(10.0 * power)
    }

    /// A tick with as many decimals as its neighbours differ in.
    pub(super) fn label(&self, tick: f64, wanted: usize) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 6")]
        let decimals = (-self.step(wanted).log10() + 1e-9).ceil().clamp(0.0, 6.0) as usize;
        format!("{:.decimals$}", if tick == 0.0 { 0.0 } else { tick })
    }
}

/// A rule across a chart at each of about five round values, with the value before it.
pub(super) fn rules(y: Scale, (left, right): (f64, f64)) -> Markup {
    html! {
        @for tick in y.ticks(5) {
            path class="grid" d=(format!("M{left} {}H{right}", y.at(tick))) {}
            text class="tick" x=(left - 8.0) y=(y.at(tick) + 4.0) text-anchor="end" { (y.label(tick, 5)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_range() {
        let scale = Scale::new((1.87, 4.12), (0.0, 100.0));
        let labels: Vec<String> = scale.ticks(5).into_iter().map(|tick| scale.label(tick, 5)).collect();
        assert_eq!(labels, ["2.0", "2.5", "3.0", "3.5", "4.0"]);
        let steps = Scale::new((1.0, 80.0), (0.0, 100.0));
        assert_eq!(steps.ticks(8), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]);
        let zero = Scale::new((-0.4, 0.4), (0.0, 1.0));
        assert_eq!(zero.label(zero.ticks(4)[2], 4), "0.0");
    }

    #[test]
    fn ends_of_the_range_are_ends_of_the_line() {
        let scale = Scale::new((2.0, 4.0), (200.0, 0.0));
        assert_eq!((scale.at(2.0), scale.at(4.0), scale.at(3.0)), (200.0, 0.0, 100.0));
    }

    #[test]
    fn odd_ranges_give_finite_positions() {
        for range in [(3.0, 3.0), (0.0, 0.0), (1e-300, 1e-300), (1e300, 1e300), (0.0, 1e-9), (5.0, 1.0)] {
            let scale = Scale::new(range, (0.0, 100.0));
            assert!(scale.at(range.0).is_finite(), "{range:?}");
            assert!(scale.ticks(5).len() <= 50);
        }
    }
}
