//! A grid of runs: the same bytes as runs made alone, whatever ran before in the same process and wherever it was killed.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod common;
mod page;

use common::{Job, Run, command, finish, signal};
use page::{Names, any_metric, listed, page, paths, section};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

const SETTINGS: [&str; 4] = [
    "lora.lora_dropout=0.2",
    "training.max_steps=4",
    "training.save_steps=1",
    "evaluation.metrics=[\"rougeL\"]",
];
const GRID: [&str; 2] =
    ["training.learning_rate=1e-3,2e-2", "lora.target_modules=[\"q_proj\", \"v_proj\"],\"all-linear\""];

fn start(job: &Job, settings: &[&str], grid: &[&str]) -> Child {
    let mut arguments = job.finetune_arguments(&[&SETTINGS[..], settings].concat());
    for axis in grid {
        arguments.extend(["--grid", *axis]);
    }
    let mut command = command("sweep", job.folder(), arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn sweep(job: &Job, settings: &[&str], grid: &[&str]) -> Run {
    finish(start(job, settings, grid))
}

fn report(job: &Job) -> Value {
    serde_json::from_str(&fs::read_to_string(job.path("out/sweep.json")).unwrap()).unwrap()
}

fn adapter(job: &Job, trial: &str) -> Vec<u8> {
    fs::read(job.path("out").join(trial).join("adapter/adapter_model.safetensors")).unwrap()
}

fn names(job: &Job) -> Vec<String> {
    let trials = report(job)["trials"].as_array().unwrap().clone();
    trials.iter().map(|trial| trial["name"].as_str().unwrap().to_owned()).collect()
}

/// The adapter of a run of its own with these settings.
fn alone(settings: &[&str]) -> Vec<u8> {
    let job = Job::new();
    job.finetune(&[&SETTINGS[..], settings].concat()).succeeded();
    fs::read(job.path("out/adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn each_trial_is_the_run_that_it_would_be_alone() {
    let job = Job::new();
    let run = sweep(&job, &[], &GRID);
    run.succeeded();
    assert!(run.stdout.contains("learning_rate") && run.stdout.contains("validation.loss"), "{run}");
    assert_eq!(run.stderr.matches("loading model").count(), 1, "{run}");
    assert_eq!(run.stderr.matches("answers before training").count(), 1, "{run}");
    let names = names(&job);
    assert_eq!(names.len(), 4);
    // The last but one is narrower than the one before it, of which nothing may be left in the model.
    let expected = alone(&["training.learning_rate=2e-2", "lora.target_modules=[\"q_proj\", \"v_proj\"]"]);
    assert!(adapter(&job, &names[2]) == expected, "{}", names[2]);
    let expected = alone(&["training.learning_rate=2e-2", "lora.target_modules=all-linear"]);
    assert!(adapter(&job, &names[3]) == expected, "{}", names[3]);
    for name in &names {
        let folder = job.path("out").join(name);
        for file in ["metrics.json", "report.html", "recipe.toml", "predictions.jsonl"] {
            assert!(folder.join(file).is_file(), "{name}/{file}");
        }
        let metrics: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("metrics.json")).unwrap()).unwrap();
        assert!(metrics["before"]["rougeL"].is_f64(), "{metrics}");
    }
    let report = report(&job);
    assert_eq!(report["objective"]["name"], "validation.loss");
    for trial in report["trials"].as_array().unwrap() {
        assert_eq!(trial["objective"], trial["validation_loss"]);
        assert!(trial["objective"].as_f64().unwrap() > 0.0, "{trial}");
    }
    assert!(fs::read_to_string(job.path("out/sweep.html")).unwrap().contains("Best: learning_rate"));
}

#[test]
fn a_killed_sweep_goes_on_and_a_larger_grid_adds_to_it() {
    let job = Job::new();
    let mut child = start(&job, &[], &GRID);
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut stages = lines.map_while(Result::ok).filter(|line| line.contains("trial "));
    // The third trial has begun: two are done.
    stages.find(|line| line.contains("trial 3 of 4")).unwrap();
    signal(child.id(), "KILL");
    child.wait().unwrap();
    let first = job.path("out").join(&names(&job)[0]).join("metrics.json");
    let written = fs::metadata(&first).unwrap().modified().unwrap();

    let run = sweep(&job, &[], &GRID);
    run.succeeded();
    assert_eq!(run.stderr.matches("and it is done").count(), 2, "{run}");
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), written);
    let expected = alone(&["training.learning_rate=2e-2", "lora.target_modules=[\"q_proj\", \"v_proj\"]"]);
    assert!(adapter(&job, &names(&job)[2]) == expected);

    let run = sweep(&job, &[], &["training.learning_rate=1e-3,2e-2,5e-3", GRID[1]]);
    run.succeeded();
    assert_eq!(run.stderr.matches("and it is done").count(), 4, "{run}");
    assert_eq!(names(&job).len(), 6);

    let run = sweep(&job, &["data.max_length=64"], &GRID);
    run.refused(&["learning_rate=1e-3", "another run"]);
}

#[test]
fn an_interrupted_sweep_ends_with_the_signal_and_the_command_that_goes_on() {
    let job = Job::new();
    let mut child = start(&job, &["training.max_steps=4000"], &GRID);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("training")).unwrap().unwrap();
    signal(child.id(), "TERM");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("--grid")), "{rest:?}");
}

#[test]
fn a_trial_that_fails_does_not_end_the_others() {
    let job = Job::new();
    let run = sweep(&job, &["training.max_grad_norm=0"], &["training.learning_rate=1e30,1e-3"]);
    run.ended_with(1);
    let report = report(&job);
    let trials = report["trials"].as_array().unwrap();
    assert!(trials[0]["error"].is_string() && trials[0]["objective"].is_null(), "{report}");
    assert!(trials[1]["objective"].is_f64(), "{report}");
    assert!(run.stdout.contains("failed: "), "{run}");
    let mut found = Names::new();
    paths(&report, "", &mut found);
    let found: Names = found.into_iter().map(any_metric).collect();
    assert_eq!(found, listed(section(&page(), "## `sweep.json`")));
}

#[test]
fn a_grid_that_cannot_be_made_is_refused_before_anything_is_loaded() {
    let job = Job::new();
    sweep(&job, &[], &["lora.rank=8,16"]).refused(&["lora.rank"]);
    sweep(&job, &[], &["data.max_length=8,16"]).refused(&["the same for all trials"]);
    sweep(&job, &[], &["lora.r"]).refused(&["there is no `=`"]);
    assert!(!job.path("out").exists());
}
