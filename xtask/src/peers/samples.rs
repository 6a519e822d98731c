//! The same figure in several rounds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A figure in each round, never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn of(first: f64) -> Self {
        Self(vec![first])
    }

    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (lower, upper) = ((sorted.len() - 1) / 2, sorted.len() / 2);
        (sorted[lower] + sorted[upper]) / 2.0
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    pub fn as_json(&self) -> Value {
        json!({ "median": self.median(), "min": self.min(), "max": self.max(), "values": self.0 })
    }

    /// The median, and the spread where there is one to show.
    pub fn shown(&self) -> String {
        let [median, min, max] = [self.median(), self.min(), self.max()].map(number);
        if self.0.len() == 1 { median } else { format!("{median} ({min}-{max})") }
    }
}

/// Three digits that count, or all before the point.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_once('.').map_or((plain.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{rest}")
}

/// Figures of programs, by both names.
#[derive(Debug, Default)]
pub struct Measurements(BTreeMap<String, BTreeMap<String, Samples>>);

impl Measurements {
    pub fn add(&mut self, program: &str, figure: &str, value: f64) {
        let figures = self.0.entry(program.into()).or_default();
        match figures.get_mut(figure) {
            Some(samples) => samples.add(value),
            None => _ = figures.insert(figure.into(), Samples::of(value)),
        }
    }

    pub fn get(&self, program: &str, figure: &str) -> Option<&Samples> {
        self.0.get(program)?.get(figure)
    }

    pub fn all(&self) -> impl Iterator<Item = (&str, &str, &Samples)> {
        self.0.iter().flat_map(|(program, figures)| {
            figures.iter().map(move |(figure, samples)| (program.as_str(), figure.as_str(), samples))
        })
    }

    pub fn as_json(&self) -> Value {
        let mut value = json!({});
        for (program, figure, samples) in self.all() {
            value[program][figure] = samples.as_json();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn the_median_is_in_the_middle_of_the_order() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(samples(&[7.0]).median(), 7.0);
        assert_eq!((samples(&[3.0, 1.0, 2.0]).min(), samples(&[3.0, 1.0, 2.0]).max()), (1.0, 3.0));
    }

    #[test]
    fn a_spread_is_shown_where_there_is_one() {
        assert_eq!(samples(&[149.2]).shown(), "149");
        assert_eq!(samples(&[150.0, 148.4, 151.6]).shown(), "150 (148-152)");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, shown) in [
            (4_869.3, "4,869"),
            (1_234_567.0, "1,234,567"),
            (123.4, "123"),
            (99.96, "100"),
            (39.04, "39.0"),
            (2.216, "2.22"),
            (0.9996, "1.00"),
            (0.3331, "0.333"),
            (-12.25, "-12.2"),
            (0.0, "0.000"),
        ] {
            assert_eq!(number(value), shown);
        }
    }

    #[test]
    fn figures_gather_by_program() {
        let mut measurements = Measurements::default();
        for value in [1.0, 3.0] {
            measurements.add("ours", "speed", value);
        }
        measurements.add("theirs", "speed", 5.0);
        assert_eq!(measurements.get("ours", "speed"), Some(&samples(&[1.0, 3.0])));
        assert_eq!(measurements.get("ours", "memory"), None);
        let json = measurements.as_json();
        assert_eq!(
            (json["ours"]["speed"]["median"].as_f64(), json["theirs"]["speed"]["max"].as_f64()),
            (Some(2.0), Some(5.0))
        );
    }
}
