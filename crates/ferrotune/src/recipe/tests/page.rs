//! `docs/recipe.md` says what the code does: each key, each default, each list of choices, both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ferrotune_data::{OnError, Truncation};
use ferrotune_lora::LoraConfig;
use ferrotune_trainer::{Action, TrainingArguments, WatchActions, WatcherKind};
use toml::{Table, Value};

use super::*;

/// The page; `None` in a package of the crate, which has no pages beside it.
fn page() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let in_workspace = root.join("crates/ferrotune/Cargo.toml").is_file();
    in_workspace.then(|| fs::read_to_string(root.join("docs/recipe.md")).unwrap())
}

/// The rows of the tables under a heading, without those of their heads, cell by cell.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{heading}")).1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The value that a cell shows: `2e-5` in backticks.
fn value(cell: &str) -> Value {
    let text = code_spans(cell).next().unwrap_or_else(|| panic!("no value in {cell:?}"));
    number(format!("value = {text}").parse::<Table>().unwrap()["value"].clone())
}

/// Integers as floats, so that 1 equals 1.0.
fn number(value: Value) -> Value {
    match value {
        Value::Integer(number) => Value::Float(number as f64),
        value => value,
    }
}

/// Every key as the page documents it: (default, values).
fn documented(page: &str) -> BTreeMap<String, (&str, &str)> {
    let mut keys = BTreeMap::new();
    for (section, _) in schema::SECTIONS {
        let heading = if section.is_empty() { "At the top".to_owned() } else { format!("`[{section}]`") };
        for row in rows(page, &heading) {
            if row.len() != 4 {
                // What the values mean.
                continue;
            }
            let key = schema::join(section, row[0].trim_matches('`'));
            assert!(keys.insert(key.clone(), (row[1], row[2])).is_none(), "{key} is there twice");
        }
    }
    keys
}

fn look_up(table: &Table, key: &str) -> Option<Value> {
    let value = match key.split_once('.') {
        Some((section, key)) => table.get(section)?.get(key),
        None => table.get(key),
    };
    value.cloned().map(number)
}

#[test]
fn each_key_is_there_with_its_default() {
    let Some(page) = page() else { return };
    let documented = documented(&page);
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), keys());

    let defaults = Table::try_from(parse(MINIMAL).unwrap()).unwrap();
    let required: BTreeSet<String> = match parse("").unwrap_err() {
        Error::Recipe { problems, .. } => {
            problems.iter().flat_map(|problem| problem.kind.keys()).map(str::to_owned).collect()
        }
        error => panic!("{error}"),
    };
    for (key, (default, _)) in documented {
        match default {
            "required" => assert!(required.contains(&key), "{key} is not required"),
            "unset" => assert_eq!(look_up(&defaults, &key), None, "{key}"),
            default => {
                assert!(!required.contains(&key), "{key} is required");
                assert_eq!(look_up(&defaults, &key), Some(value(default)), "{key}");
            }
        }
    }
}

#[test]
fn the_choices_are_all_there() {
    let Some(page) = page() else { return };
    let documented = documented(&page);
    for (key, choices) in [
        ("data.truncation", &Truncation::ALL.map(Truncation::name)[..]),
        ("data.on_error", &OnError::ALL.map(OnError::name)),
        ("training.lr_scheduler_type", LR_SCHEDULER_TYPES),
        ("training.logging_strategy", LOGGING_STRATEGIES),
        ("training.eval_strategy", EVAL_STRATEGIES),
        ("training.optim", OPTIMIZERS),
        ("training.save_strategy", SAVE_STRATEGIES),
        ("training.report_to", REPORT_TO),
        ("evaluation.metrics", METRICS),
        ("runtime.device", DEVICES),
        ("runtime.compute_dtype", COMPUTE_DTYPES),
    ] {
        let shown: Vec<&str> = code_spans(documented[key].1).map(|name| name.trim_matches('"')).collect();
        assert_eq!(shown, choices, "{key}");
    }
    for watcher in WatcherKind::ALL {
        let actions = WatchActions::choices(watcher).iter().copied().map(Action::name);
        let shown = code_spans(documented[&format!("watch.{watcher}")].1).map(|name| name.trim_matches('"'));
        assert!(shown.eq(actions.chain([WatchActions::OFF])), "{watcher}");
    }
    let shown: BTreeSet<&str> = rows(&page, "`[watch]`").iter().map(|row| row[0].trim_matches('`')).collect();
    assert!(Action::ALL.iter().all(|action| shown.contains(action.name())));
}

#[test]
fn the_ranges_are_those_that_a_refusal_names() {
    let Some(page) = page() else { return };
    let mut checked = 0;
    for (key, (_, values)) in documented(&page) {
        if !["an integer", "a number", "a whole number", "a path"].iter().any(|kind| values.starts_with(kind))
        {
            continue;
        }
        // In no key's range, and no path.
        let refusals = problems(with(&[&format!("{key}=-5")]));
        let expected = format!("`{key}` is -5; expected {values}");
        assert!(refusals.iter().any(|refusal| refusal.contains(&expected)), "{expected}: {refusals:?}");
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

#[test]
fn the_defaults_that_differ_from_python_are_all_there() {
    let Some(page) = page() else { return };
    let ours = Table::try_from(parse(MINIMAL).unwrap()).unwrap();
    // The crates below have the defaults of PEFT and transformers, which their own tests check.
    let mut theirs = Table::new();
    theirs.insert("lora".to_owned(), Value::try_from(LoraConfig::default()).unwrap());
    theirs.insert("training".to_owned(), Value::try_from(TrainingArguments::default()).unwrap());
    let differing: BTreeMap<String, (Value, Value)> = keys()
        .into_iter()
        .filter(|key| key.starts_with("lora.") || key.starts_with("training."))
        // PEFT's default is to choose by the architecture; the page says what.
        .filter(|key| key != "lora.target_modules")
        .filter_map(|key| {
            let (ours, theirs) = (look_up(&ours, &key), look_up(&theirs, &key));
            let (ours, theirs) = if ours == theirs { return None } else { (ours?, theirs?) };
            Some((key, (ours, theirs)))
        })
        .collect();
    let shown: BTreeMap<String, (Value, Value)> = rows(&page, "Where the defaults differ")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), (value(row[1]), value(row[2]))))
        .collect();
    assert_eq!(shown, differing);
}

#[test]
fn its_recipes_and_overrides_are_read() {
    let Some(page) = page() else { return };
    let recipes: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    for recipe in &recipes {
        parse(recipe).unwrap();
    }
    let whole: Table = recipes.last().unwrap().parse().unwrap();
    for key in keys() {
        assert!(look_up(&whole, &key).is_some(), "{key} is not in the whole recipe");
    }

    for row in rows(&page, "Changing a key for one run") {
        let typed = code_spans(row[0]).next().unwrap().strip_prefix("--set ").unwrap();
        let told = typed.trim_matches('\'');
        assert_eq!(told == typed, !typed.contains(['"', '[', ' ']), "{typed}: as a shell needs it");
        let recipe = Table::try_from(with(&[told]).unwrap()).unwrap();
        assert_eq!(look_up(&recipe, told.split_once('=').unwrap().0), Some(value(row[1])), "{typed}");
    }
}
