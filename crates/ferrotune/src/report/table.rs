//! The before/after table for the terminal.

use super::metrics::Metrics;
use super::scores::Interval;

/// One row of the table: a metric before and after, and the change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row<'a> {
    pub(super) metric: &'a str,
    pub(super) before: Option<Interval>,
    pub(super) after: Option<Interval>,
    /// The difference of the two.
    pub(super) change: Option<f64>,
    /// Its interval, where it was measured.
    pub(super) change_interval: Option<Interval>,
}

/// A row for each metric that was measured before or after.
pub(super) fn rows(metrics: &Metrics) -> Vec<Row<'_>> {
    let (before, after) = (metrics.before.as_ref(), metrics.after.as_ref());
    let mut names: Vec<&str> = vec![];
    for scores in [before, after].into_iter().flatten() {
        for (name, _) in scores.iter() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
        .into_iter()
        .map(|metric| {
            let before = before.and_then(|scores| scores.get(metric));
            let after = after.and_then(|scores| scores.get(metric));
            let change_interval = metrics.change.as_ref().and_then(|scores| scores.get(metric));
            let difference = before.zip(after).map(|(before, after)| after.value - before.value);
            let change = change_interval.map(|interval| interval.value).or(difference);
            Row { metric, before, after, change, change_interval }
        })
        .collect()
}

/// `rougeL` as papers write it.
pub(super) fn metric_name(metric: &str) -> String {
    match (metric.strip_prefix("rouge"), metric) {
        (Some(kind), _) => format!("ROUGE-{kind}"),
        (None, "bleu") => "BLEU".to_owned(),
        (None, "chrf") => "chrF".to_owned(),
        (None, other) => other.to_owned(),
    }
}

/// The before/after table as plain text: a line a metric, with 95 % intervals and the change.
///
/// Columns of what was not measured are left out; with nothing measured the text is empty.
///
/// ```
/// use ferrotune::report::{Interval, Metrics, table};
///
/// let interval = |value, low, high| Interval { value, low, high };
/// let metrics = Metrics {
///     before: Some([("rougeL", interval(16.7, 15.5, 17.9))].into_iter().collect()),
///     after: Some([("rougeL", interval(33.4, 31.6, 35.2))].into_iter().collect()),
///     ..Metrics::default()
/// };
/// assert_eq!(
///     table(&metrics),
///     "metric  before              after               change\n\
///      rougeL   16.7 [15.5, 17.9]   33.4 [31.6, 35.2]  +16.7\n"
/// );
/// ```
#[must_use]
pub fn table(metrics: &Metrics) -> String {
    let rows = rows(metrics);
    if rows.is_empty() {
        return String::new();
    }
    let score = |interval: Option<Interval>| interval.map(|i| format!("{:5.1} {}", i.value, ends(i)));
    let change = |row: &Row<'_>| {
        let change = row.change?;
        Some(match row.change_interval {
            Some(interval) => format!("{change:+5.1} {}", signed_ends(interval)),
            None => format!("{change:+5.1}"),
        })
    };
    let columns: [(&str, Vec<Option<String>>); 4] = [
        ("metric", rows.iter().map(|row| Some(row.metric.to_owned())).collect()),
        ("before", rows.iter().map(|row| score(row.before)).collect()),
        ("after", rows.iter().map(|row| score(row.after)).collect()),
        ("change", rows.iter().map(change).collect()),
    ];
    let columns: Vec<_> = columns
        .into_iter()
        .filter(|(_, cells)| cells.iter().any(Option::is_some))
        .map(|(title, cells)| {
            let cells: Vec<String> = cells.into_iter().map(Option::unwrap_or_default).collect();
            let width = cells.iter().map(|cell| cell.chars().count()).chain([title.len()]).max();
            (title, cells, width.unwrap_or_default())
        })
        .collect();

    let mut text = String::new();
    let mut line = |cells: Vec<(&str, usize)>| {
        let cells: Vec<String> = cells.into_iter().map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    };
    line(columns.iter().map(|(title, _, width)| (*title, *width)).collect());
    for index in 0..rows.len() {
        line(columns.iter().map(|(_, cells, width)| (cells[index].as_str(), *width)).collect());
    }
    text
}

/// The ends of an interval, as `[15.5, 17.9]`.
pub(super) fn ends(interval: Interval) -> String {
    format!("[{:.1}, {:.1}]", interval.low, interval.high)
}

/// The ends of the interval of a change, as `[+15.1, +18.4]`.
pub(super) fn signed_ends(interval: Interval) -> String {
    format!("[{:+.1}, {:+.1}]", interval.low, interval.high)
}

#[cfg(test)]
mod tests {
    use super::super::Scores;
    use super::*;

    fn scores(values: &[(&str, f64, f64, f64)]) -> Option<Scores> {
        Some(values.iter().map(|&(name, value, low, high)| (name, Interval { value, low, high })).collect())
    }

    #[test]
    fn columns_line_up() {
        let metrics = Metrics {
            before: scores(&[("rouge2", 5.12, 4.4, 5.9), ("rougeLsum", 16.7, 15.5, 17.9)]),
            after: scores(&[("rouge2", 100.0, 99.9, 100.0), ("rougeLsum", 3.34, 3.1, 3.5)]),
            change: scores(&[("rouge2", 94.88, 94.0, 95.5), ("rougeLsum", -13.36, -14.0, -12.5)]),
            ..Metrics::default()
        };
        let expected = "\
metric     before              after                change
rouge2       5.1 [4.4, 5.9]    100.0 [99.9, 100.0]  +94.9 [+94.0, +95.5]
rougeLsum   16.7 [15.5, 17.9]    3.3 [3.1, 3.5]     -13.4 [-14.0, -12.5]
";
        assert_eq!(table(&metrics), expected);
    }

    #[test]
    fn what_was_not_measured_has_no_column() {
        let after = scores(&[("rougeL", 33.4, 31.6, 35.2)]);
        let metrics = Metrics { after, ..Metrics::default() };
        assert_eq!(table(&metrics), "metric  after\nrougeL   33.4 [31.6, 35.2]\n");
        assert_eq!(table(&Metrics::default()), "");
    }
}
