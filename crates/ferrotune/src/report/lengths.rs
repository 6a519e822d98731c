//! How long the examples are: counts of equal ranges of tokens, and their chart.

use std::collections::BTreeSet;

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::text::{grouped, plural};

/// Fewer different lengths make no histogram; the fewest, the median and the most are in the table of the files.
const MIN_DISTINCT: u64 = 10;
/// Ranges of tokens at most.
const MAX_BINS: usize = 25;
/// The chart's own pixels.
const LEFT: f64 = 5.0;
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 84.0;

/// How many examples have how many tokens.
///
/// ```
/// use ferrotune::report::Lengths;
///
/// let lengths = Lengths::of(&[103, 108, 109, 148]);
/// assert_eq!((lengths.first_tokens, lengths.bin_tokens, lengths.counts.len()), (102, 2, 24));
/// assert_eq!(lengths.counts[3], 2, "108 and 109 tokens");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lengths {
    /// Where the first range begins.
    pub first_tokens: u64,
    /// Tokens of a range: range `i` has the examples of `bin_tokens` lengths from `first_tokens + i * bin_tokens`.
    pub bin_tokens: u64,
    /// How many different lengths there are.
    pub distinct: u64,
    /// Examples of each range.
    pub counts: Vec<u64>,
}

impl Lengths {
    /// Counts examples by their tokens from the shortest on, in at most 25 ranges of a round width: 1, 2 or 5 times a power of ten.
    #[must_use]
    pub fn of(tokens: &[usize]) -> Self {
        let (Some(&least), Some(&most)) = (tokens.iter().min(), tokens.iter().max()) else {
            return Self::default();
        };
        let mut widths = (0..18_u32).flat_map(|power| [1, 2, 5].map(|times| times * 10_usize.pow(power)));
        let Some(width) = widths.find(|width| most / width - least / width < MAX_BINS) else {
            return Self::default();
        };
        let first = least / width;
        let mut counts = vec![0; most / width - first + 1];
        for tokens in tokens {
            counts[tokens / width - first] += 1;
        }
        let distinct = tokens.iter().collect::<BTreeSet<_>>().len() as u64;
        Self { first_tokens: (first * width) as u64, bin_tokens: width as u64, distinct, counts }
    }

    /// A bar for each range; nothing of few different lengths.
    #[expect(clippy::cast_precision_loss, reason = "pixels")]
    pub(super) fn chart(&self) -> Option<Markup> {
        let highest = self.counts.iter().copied().max().filter(|_| self.distinct >= MIN_DISTINCT)?;
        let width = WIDTH / self.counts.len() as f64;
        let height = |count: u64| (HEIGHT * count as f64 / highest as f64).max(1.5);
        let range = |index: usize| {
            let from = self.first_tokens + self.bin_tokens * index as u64;
            if self.bin_tokens == 1 {
                grouped(from)
            } else {
                format!("{} to {}", grouped(from), grouped(from + self.bin_tokens - 1))
            }
        };
        let fullest = self.counts.iter().position(|count| *count == highest).unwrap_or_default();
        let label = format!(
            "Training examples by their tokens, of {} in all. Most, {}, have {} tokens.",
            grouped(self.counts.iter().sum()),
            grouped(highest),
            range(fullest)
        );
        Some(html! {
            figure class="lengths" {
                svg viewBox="0 0 340 112" role="img" aria-label=(label) {
                    @for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                        g {
                            title { (range(index)) " tokens: " (plural(*count, "example")) }
                            rect class="bar" x=(format!("{:.1}", LEFT + width * index as f64 + 0.07 * width))
                                y=(format!("{:.1}", 6.0 + HEIGHT - height(*count)))
                                width=(format!("{:.1}", 0.86 * width)) height=(format!("{:.1}", height(*count))) {}
                        }
                    }
                    path class="grid" d="M5 90.5H335" {}
                    text class="tick" x="5" y="106" { (grouped(self.first_tokens)) }
                    text class="tick" x="335" y="106" text-anchor="end" { (grouped(self.first_tokens + self.bin_tokens * self.counts.len() as u64)) }
                }
                figcaption { "Training examples by their tokens; the highest bar is " (plural(highest, "example")) "." }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_a_range_of_a_round_width() {
        for most in [0, 1, 24, 25, 49, 50, 1023, 1024, 100_000, usize::MAX / 2] {
            let tokens = [0, most / 3, most];
            let Lengths { bin_tokens, counts, .. } = Lengths::of(&tokens);
            if counts.is_empty() {
                assert!(most > 1_000_000_000_000, "{most}");
                continue;
            }
            assert!(counts.len() <= MAX_BINS && counts.iter().sum::<u64>() == 3, "{most} {counts:?}");
            let digits = bin_tokens.to_string();
            assert!(["1", "2", "5"].contains(&digits.trim_end_matches('0')), "{bin_tokens}");
            assert_eq!(most as u64 / bin_tokens, counts.len() as u64 - 1, "the last range has the longest");
        }
    }

    #[test]
    fn the_chart_has_a_bar_for_each_range_with_examples() {
        let lengths = [1061, 1070, 1072, 1078, 1130, 1141, 1150, 1160, 1170, 1240, 1240];
        let chart = Lengths::of(&lengths).chart().unwrap().into_string();
        assert_eq!(chart.matches("<rect").count(), 8, "{chart}");
        assert!(chart.contains("Most, 3, have 1,070 to 1,079 tokens"), "{chart}");
        // The axis begins where the examples do: the shortest is at its left end.
        assert!(chart.contains(">1,060</text>") && chart.contains(">1,250</text>"), "{chart}");
        assert!(
            chart.contains("<title>1,060 to 1,069 tokens: 1 example</title><rect class=\"bar\" x=\"6.2\""),
            "{chart}"
        );
        assert!(Lengths::of(&lengths[1..10]).chart().is_none(), "nine lengths");
        assert!(Lengths::default().chart().is_none());
    }
}
