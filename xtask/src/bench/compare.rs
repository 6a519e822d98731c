//! Ratios against the committed ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::baseline::Baseline;
use super::ratio::Ratio;
use crate::peers::BadInput;

/// A change below this is none, however small the noise: it is what two runs differ by.
const TOLERANCE: f64 = 0.1;

/// One benchmark, then and now.
#[derive(Debug)]
pub struct Row {
    name: String,
    committed: Option<Ratio>,
    now: Ratio,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Regression,
    Improvement,
    Same,
    New,
}

impl Row {
    pub fn is_regression(&self) -> bool {
        self.verdict() == Verdict::Regression
    }

    /// Of the quotient of both ratios.
    fn noise(&self) -> f64 {
        self.committed.map_or(0.0, |committed| committed.noise).hypot(self.now.noise)
    }

    fn verdict(&self) -> Verdict {
        let Some(committed) = self.committed else { return Verdict::New };
        let bound = 1.0 + self.noise().max(TOLERANCE);
        if self.now.value > committed.value * bound {
            Verdict::Regression
        } else if committed.value > self.now.value * bound {
            Verdict::Improvement
        } else {
            Verdict::Same
        }
    }
}

/// A row for each benchmark that was measured.
///
/// # Errors
/// [`BadInput`] if `everything` was measured, and yet not all that the baseline has.
pub fn rows(committed: &Baseline, now: &Baseline, everything: bool) -> Result<Vec<Row>> {
    let missing: Vec<&str> =
        committed.ratios.keys().filter(|name| !now.ratios.contains_key(*name)).map(String::as_str).collect();
    ensure!(
        !everything || missing.is_empty(),
        BadInput(format!(
            "the baseline has what no benchmark measures: {}; after a change of names, `cargo xtask bench --save`",
            missing.join(", ")
        ))
    );
    let row = |(name, now): (&String, &Ratio)| Row {
        name: name.clone(),
        committed: committed.ratios.get(name).copied(),
        now: *now,
    };
    Ok(now.ratios.iter().map(row).collect())
}

/// The table, and how many of its rows are worse or better.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).fold("benchmark".len(), usize::max);
    let mut text = format!("{:width$}  committed    now   noise\n", "benchmark");
    for row in rows {
        let committed = row.committed.map_or("-".into(), |committed| format!("{:.2}", committed.value));
        let verdict = match row.verdict() {
            Verdict::Regression => "  REGRESSION",
            Verdict::Improvement => "  improvement",
            Verdict::Same => "",
            Verdict::New => "  new",
        };
        let noise = format!("±{:.1} %", row.noise() * 100.0);
        let _ =
            writeln!(text, "{:width$}  {committed:>9}  {:5.2}  {noise:>8}{verdict}", row.name, row.now.value);
    }
    let count = |verdict: Verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
    let _ = writeln!(
        text,
        "{} compared: {} worse, {} better, {} not in the baseline",
        rows.len(),
        count(Verdict::Regression),
        count(Verdict::Improvement),
        count(Verdict::New),
    );
    text
}

/// Both machines beside each other; a note where they differ in more than the date.
pub fn machines(committed: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> String {
    let names: std::collections::BTreeSet<&String> = committed.keys().chain(now.keys()).collect();
    let value = |machine: &BTreeMap<String, String>, name: &String| {
        machine.get(name).map_or("not known".into(), String::clone)
    };
    let mut text = String::new();
    let mut differ = Vec::new();
    for name in names {
        let (then, now) = (value(committed, name), value(now, name));
        let _ = writeln!(text, "{name:9}  committed {then}\n{:9}  now       {now}", "");
        if then != now && name != "date" {
            differ.push(name.as_str());
        }
    }
    if !differ.is_empty() {
        let _ = writeln!(
            text,
            "note: {} differ, and a ratio depends on them: save a baseline of this machine before you believe the table",
            differ.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(ratios: &[(&str, f64, f64)]) -> Baseline {
        let ratio = |&(name, value, noise): &(&str, f64, f64)| (name.to_owned(), Ratio { value, noise });
        Baseline { machine: BTreeMap::new(), ratios: ratios.iter().map(ratio).collect() }
    }

    #[test]
    fn a_change_counts_beyond_noise_and_tolerance() {
        let committed =
            baseline(&[("better", 1.0, 0.01), ("loud", 1.0, 0.3), ("small", 1.0, 0.0), ("worse", 1.0, 0.03)]);
        let now = baseline(&[
            ("better", 0.8, 0.01),
            ("loud", 1.3, 0.1),
            ("new", 9.0, 0.0),
            ("small", 1.09, 0.0),
            ("worse", 1.2, 0.04),
        ]);
        let rows = rows(&committed, &now, true).unwrap();
        let verdicts: Vec<(&str, Verdict)> =
            rows.iter().map(|row| (row.name.as_str(), row.verdict())).collect();
        let expected = [
            ("better", Verdict::Improvement),
            ("loud", Verdict::Same),
            ("new", Verdict::New),
            ("small", Verdict::Same),
            ("worse", Verdict::Regression),
        ];
        assert_eq!(verdicts, expected);
        let table = table(&rows);
        let worse: Vec<&str> = table.lines().nth(5).unwrap().split_whitespace().collect();
        assert_eq!(worse, ["worse", "1.00", "1.20", "±5.0", "%", "REGRESSION"]);
        assert!(table.ends_with("5 compared: 1 worse, 1 better, 1 not in the baseline\n"), "{table}");
    }

    #[test]
    fn what_the_baseline_has_must_be_measured_unless_a_filter_leaves_it_out() {
        let (committed, now) = (baseline(&[("a", 1.0, 0.0), ("b", 1.0, 0.0)]), baseline(&[("a", 1.0, 0.0)]));
        let error = rows(&committed, &now, true).unwrap_err();
        assert!(error.is::<BadInput>());
        assert!(error.to_string().contains("measures: b;"), "{error}");
        assert_eq!(rows(&committed, &now, false).unwrap().len(), 1);
    }

    #[test]
    fn machines_that_differ_are_told_apart() {
        let machine = |cpu: &str, date: &str| {
            BTreeMap::from([("cpu".to_owned(), cpu.to_owned()), ("date".to_owned(), date.to_owned())])
        };
        let text = machines(&machine("has avx2", "1"), &machine("has avx512f", "2"));
        assert!(text.contains("committed has avx2\n") && text.contains("now       has avx512f\n"), "{text}");
        assert!(text.contains("note: cpu differ"), "{text}");
        assert!(!machines(&machine("has avx2", "1"), &machine("has avx2", "2")).contains("note"));
    }
}
