//! Each mistake gets exit code 2 and a message with the place and the remedy, and leaves nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the allowance for tests does not reach their helpers"
)]

mod adapter;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod model;
mod recipe;
mod world;

use common::{Job, Run, snapshot};

/// Runs the recipe, which has to be refused with these words, and nothing may be left of the run.
#[track_caller]
fn refused(job: &Job, settings: &[&str], words: &[&str]) -> Run {
    let before = snapshot(job.folder());
    let run = job.finetune(settings);
    run.refused(words);
    assert!(run.stdout.is_empty(), "errors go to standard error: {run}");
    let after = snapshot(job.folder());
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(before == after, "left behind: {new:?}");
    run
}

/// As [`refused`], for a recipe with `found` in place of `text`.
#[track_caller]
fn recipe_refused(text: &str, found: &str, words: &[&str]) {
    let job = Job::new();
    let recipe = job.read("recipe.toml");
    assert!(recipe.contains(text), "{text}");
    job.write("recipe.toml", recipe.replace(text, found));
    refused(&job, &[], words);
}

const GOOD: &str = r#"{"instruction": "the cat", "output": "the dog"}"#;
