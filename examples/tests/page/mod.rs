//! Reads `docs/outputs.md`, for the tests that hold it to what programs write.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code, shared by several tests")]

use serde_json::Value;
use std::collections::BTreeSet;

pub type Names = BTreeSet<String>;

pub fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/outputs.md")).unwrap()
}

/// The text of a section, up to the next heading of its level or a higher one.
pub fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let level = heading.split(' ').next().unwrap();
    let (_, rest) =
        page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("there is no {heading}"));
    let end = (1..=level.len()).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level)))).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// What stands in code in the first column of the section's tables.
pub fn listed(section: &str) -> Names {
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

/// The path of each number, text, null and empty value: `train.loss[].step`.
pub fn paths(value: &Value, path: &str, found: &mut Names) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                paths(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().for_each(|item| paths(item, &format!("{path}[]"), found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// `before.rouge1_low` as `before.METRIC_low`.
pub fn any_metric(path: String) -> String {
    ["rougeL", "rouge1", "rouge2"]
        .iter()
        .fold(path, |path, metric| path.replace(&format!(".{metric}"), ".METRIC"))
}
