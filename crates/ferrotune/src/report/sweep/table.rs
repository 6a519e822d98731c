//! The table for the terminal.

use super::super::text::duration;
use super::SweepReport;

/// The settings as plain text, a line each, the best first.
///
/// ```
/// use ferrotune::report::{Objective, SweepAxis, SweepReport, TrialReport, sweep_table};
///
/// let trial = |rate: &str, loss| TrialReport {
///     values: vec![rate.to_owned()],
///     objective: Some(loss),
///     seconds: 61.0,
///     ..TrialReport::default()
/// };
/// let report = SweepReport {
///     objective: Objective { name: "validation.loss".into(), greater_is_better: false },
///     axes: vec![SweepAxis { key: "training.learning_rate".into(), ..SweepAxis::default() }],
///     trials: vec![trial("1e-4", 2.5), trial("1e-3", 2.25)],
///     ..SweepReport::default()
/// };
/// assert_eq!(
///     sweep_table(&report),
///     "learning_rate  validation.loss  time\n\
///      1e-3           2.2500           1 min 1 s\n\
///      1e-4           2.5000           1 min 1 s\n"
/// );
/// ```
#[must_use]
pub fn sweep_table(report: &SweepReport) -> String {
    let mut lines: Vec<Vec<String>> = vec![columns(report)];
    for setting in report.settings() {
        let mut line: Vec<String> = setting.values.iter().map(|value| (*value).to_owned()).collect();
        let result = [setting.result(), setting.missing()].into_iter().flatten().collect::<Vec<_>>();
        line.push(result.join("; "));
        line.push(if setting.seconds() > 0.0 { duration(setting.seconds()) } else { String::new() });
        lines.push(line);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let text = |line: &Vec<String>| {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(text).collect()
}

/// The head of the table: the varied keys without their sections, the objective, the time.
pub(super) fn columns(report: &SweepReport) -> Vec<String> {
    let name = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let keys = report.varied().map(|axis| name(&axis.key));
    keys.chain([report.objective.name.clone(), "time".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn what_failed_or_is_to_come_is_said() {
        let table = sweep_table(&example());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "learning_rate  r   validation.loss          time");
        assert_eq!(lines[1], "1e-4           16  1.3750 \u{b1} 0.1768          1 min 0 s");
        assert!(lines[3].contains("3.0000; not done yet"), "{table}");
        assert!(lines[4].contains("failed: the loss is NaN"), "{table}");
    }
}
