//! `docs/arguments.md` says what the code does: each argument with its default, and what is not offered.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ferrotune_trainer::{NOT_OFFERED, OLDER_NAMES, TrainingArguments};
use serde_json::Value;

/// The rows of all tables, cell by cell; `None` in a package of the crate, which has no pages beside it.
fn rows() -> Option<(String, Vec<Vec<String>>)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/arguments.md");
    let page = page.is_file().then(|| std::fs::read_to_string(page).unwrap())?;
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(cells).collect();
    Some((page, rows))
}

/// A number as a float, so that 3 equals 3.0.
fn number(value: &Value) -> Value {
    value.as_f64().map_or_else(|| value.clone(), Value::from)
}

#[test]
fn each_argument_is_there_with_its_default_and_a_word_on_its_meaning() {
    let Some((_, rows)) = rows() else { return };
    let documented: BTreeMap<&str, &Vec<String>> =
        rows.iter().filter(|row| row.len() == 4).map(|row| (row[0].trim_matches('`'), row)).collect();
    let own = serde_json::to_value(TrainingArguments::default()).unwrap();
    let own = own.as_object().unwrap();
    let names: BTreeSet<&str> = own.keys().map(String::as_str).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), names);
    for (name, row) in documented {
        let default = match row[1].as_str() {
            "unset" => Value::Null,
            text => serde_json::from_str(text.trim_matches('`')).unwrap(),
        };
        assert_eq!(number(&default), number(&own[name]), "{name}");
        assert!(row[2] == "same" || (row[2] == "different" && !row[3].is_empty()), "{name}");
    }
}

#[test]
fn what_is_not_offered_is_there_with_the_reason_and_older_names_are_named() {
    let Some((page, rows)) = rows() else { return };
    let documented: BTreeMap<&str, &str> = rows
        .iter()
        .filter(|row| row.len() == 2)
        .map(|row| (row[0].trim_matches('`'), row[1].as_str()))
        .collect();
    assert_eq!(documented, NOT_OFFERED.into_iter().collect());
    assert!(OLDER_NAMES.iter().all(|(older, _)| page.contains(&format!("`{older}`"))));
}
