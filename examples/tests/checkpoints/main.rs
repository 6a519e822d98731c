//! A run that is killed at any instant goes on from its newest whole checkpoint, to the bytes of the unbroken run.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

#[path = "../common/mod.rs"]
mod common;
mod faults;

use common::{Job, Run, command, finish, signal};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Dropout, accumulation, checkpoints within epochs, evaluations, the best adapter at the end, rotation.
const SETTINGS: [&str; 15] = [
    "lora.lora_dropout=0.2",
    "training.max_steps=12",
    "training.per_device_train_batch_size=1",
    "training.gradient_accumulation_steps=2",
    "training.learning_rate=8e-2",
    "training.logging_steps=3",
    "training.eval_strategy=steps",
    "training.eval_steps=1",
    "training.save_steps=1",
    "training.save_total_limit=2",
    "training.load_best_model_at_end=true",
    "training.early_stopping_patience=3",
    "evaluation.before=false",
    "evaluation.after=false",
    "training.resume_from_checkpoint=true",
];

/// With a scaled loss, whose scale is part of a checkpoint.
const FP16: [&str; 1] = ["training.fp16=true"];

/// Every place at which the writing and the rotating of a checkpoint can be cut.
const BOUNDARIES: [&str; 12] = [
    "begun",
    "adapter",
    "optimizer",
    "trainer_state",
    "recipe",
    "hashes",
    "verified",
    "discarded",
    "renamed",
    "rotating",
    "moved_aside",
    "rotated",
];

fn start_with(job: &Job, settings: &[&str], environment: &[(&str, &str)]) -> Child {
    let settings = [&SETTINGS[..], settings].concat();
    let mut command = command("finetune", job.folder(), job.finetune_arguments(&settings));
    command.envs(environment.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn start(job: &Job, settings: &[&str], abort_at: Option<&str>) -> Child {
    let abort_at = abort_at.map(|place| ("FERROTUNE_ABORT_AT", place));
    start_with(job, settings, abort_at.as_slice())
}

fn run(job: &Job, settings: &[&str]) -> Run {
    finish(start(job, settings, None))
}

fn adapter(job: &Job) -> Vec<u8> {
    fs::read(job.path("out/adapter/adapter_model.safetensors")).unwrap()
}

fn checkpoints(job: &Job) -> Vec<usize> {
    let entries = fs::read_dir(job.path("out")).into_iter().flatten().flatten();
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// A run that nothing stops.
struct Unbroken {
    adapter: Vec<u8>,
    time: Duration,
}

fn unbroken(settings: &[&str]) -> Unbroken {
    let job = Job::new();
    let start = Instant::now();
    run(&job, settings).succeeded();
    let time = start.elapsed();
    // Its result is that of an earlier step, and in f32 it ends early; in f16 the steps that are skipped depend on the processor.
    let last = *checkpoints(&job).last().unwrap();
    let state = job.json(&format!("out/checkpoint-{last}/trainer_state.json"));
    let best = state["best_global_step"].as_u64().unwrap() as usize;
    let ends_early = last < 12 || settings == FP16;
    assert!(ends_early && best < last && best > 1, "the last step is {last}, the best one {best}");
    Unbroken { adapter: adapter(&job), time }
}

#[test]
fn killed_at_every_boundary_of_a_checkpoint_it_goes_on_to_the_same_bytes() {
    for (count, settings) in [(1, &[][..]), (3, &FP16)] {
        let expected = unbroken(settings).adapter;
        for boundary in BOUNDARIES {
            let job = Job::new();
            let place = format!("{boundary}:{count}");
            let killed = finish(start(&job, settings, Some(&place)));
            assert_eq!(killed.code, None, "{place} is not reached: {killed}");
            run(&job, settings).succeeded();
            assert!(adapter(&job) == expected, "{place}");
            let left = fs::read_dir(job.path("out")).unwrap().flatten();
            let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count();
            assert_eq!(hidden, 0, "{place}");
        }
    }
}

#[test]
fn killed_at_random_instants_it_goes_on_to_the_same_bytes() {
    let kills = std::env::var("FERROTUNE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10);
    let kinds = [&[][..], &FP16].map(|settings| (settings, unbroken(settings)));
    // Different in each run of the test: what is found is printed.
    let mut random = u64::from(std::process::id()) << 20 | 1;
    let mut done = 0;
    for (settings, Unbroken { adapter: expected, time }) in kinds.iter().cycle() {
        if done == kills {
            break;
        }
        // A run is killed some times in a row and then left to end.
        let (job, until) = (Job::new(), kills.min(done + 4));
        while done < until {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut child = start(&job, settings, None);
            thread::sleep(time.mul_f64((random % 1000) as f64 / 1000.0));
            if child.try_wait().unwrap().is_none() {
                signal(child.id(), "KILL");
                done += 1;
                let ended = finish(child);
                assert!(ended.code.is_none_or(|code| code == 0), "{ended}");
            } else {
                finish(child).succeeded();
            }
        }
        run(&job, settings).succeeded();
        assert!(adapter(&job) == *expected, "after {done} kills, with {settings:?}");
        eprintln!("{done} kills: the same bytes");
    }
}

#[test]
fn a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on() {
    let job = Job::new();
    run(&job, &["training.early_stopping_patience=100"]).succeeded();
    let before = common::snapshot(job.folder());
    let again = run(&job, &["training.early_stopping_patience=100"]);
    again.succeeded();
    assert!(again.stderr.contains("it is done"), "{again}");
    assert!(before == common::snapshot(job.folder()), "something has changed");

    let longer = run(&job, &["training.early_stopping_patience=100", "training.max_steps=14"]);
    longer.succeeded();
    assert!(longer.stderr.contains("going on from out/checkpoint-12"), "{longer}");
    assert_eq!(checkpoints(&job).last(), Some(&14));
}

#[test]
fn a_damaged_checkpoint_is_said_and_the_one_before_is_taken() {
    let expected = unbroken(&[]).adapter;
    let job = Job::new();
    assert_eq!(finish(start(&job, &[], Some("begun:5"))).code, None);
    let newest = *checkpoints(&job).last().unwrap();
    let path = job.path(&format!("out/checkpoint-{newest}/optimizer.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let resumed = run(&job, &[]);
    resumed.succeeded();
    assert!(resumed.stderr.contains(&format!("checkpoint-{newest} is no whole checkpoint")), "{resumed}");
    assert!(resumed.stderr.contains("going on from"), "{resumed}");
    assert!(adapter(&job) == expected);
}

#[test]
fn a_change_of_recipe_or_data_is_named_and_refused_or_accepted() {
    let job = Job::new();
    assert_eq!(finish(start(&job, &[], Some("begun:5"))).code, None);
    let data = job.read("train.jsonl");
    job.write("train.jsonl", data.replace("one two three", "three two one"));
    let refused = run(&job, &["training.weight_decay=0.1"]);
    refused.refused(&[
        "`training.weight_decay` was 0.01 and is 0.1",
        "train.jsonl of `data.train` has another content",
        "--accept-changes",
    ]);
    job.write("train.jsonl", data);
    let settings = [&SETTINGS[..], &["training.weight_decay=0.1"]].concat();
    let arguments = [&["--accept-changes"], &job.finetune_arguments(&settings)[..]].concat();
    let accepted = job.run("finetune", &arguments);
    accepted.succeeded();
    assert!(accepted.stderr.contains("accepted: `training.weight_decay`"), "{accepted}");
}

#[test]
fn answers_of_another_length_are_a_change_where_they_judge_the_run() {
    let by_answers = ["training.predict_with_generate=true", "training.metric_for_best_model=eval_rougeL"];
    for (settings, is_change) in [(&[][..], false), (&by_answers, true)] {
        let job = Job::new();
        assert_eq!(finish(start(&job, settings, Some("begun:3"))).code, None);
        let longer = run(&job, &[settings, &["generation.max_new_tokens=3"]].concat());
        if is_change {
            longer.refused(&["`generation.max_new_tokens` was 6 and is 3", "--accept-changes"]);
        } else {
            longer.succeeded();
        }
    }
}

#[test]
fn results_of_another_recipe_are_not_replaced_where_no_checkpoint_is_left() {
    let job = Job::new();
    let without = ["training.load_best_model_at_end=false", "training.save_strategy=no"];
    run(&job, &without).succeeded();
    let results = common::snapshot(job.folder());
    let other = [&without[..], &["training.weight_decay=0.1"]].concat();
    run(&job, &other).refused(&["out holds another run (recipe.toml)", "overwrite_output_dir = true"]);
    assert!(results == common::snapshot(job.folder()), "something has changed");
    // Nor by a run that goes on from a checkpoint elsewhere.
    let short = ["output_dir=elsewhere", "training.save_strategy=steps", "training.max_steps=2"];
    let elsewhere = [&other[..], &short].concat();
    run(&job, &elsewhere).succeeded();
    let from = ["training.resume_from_checkpoint=elsewhere/checkpoint-2", "training.save_strategy=no"];
    run(&job, &[&other[..], &from].concat()).refused(&["out holds another run (recipe.toml)"]);
    run(&job, &[&other[..], &["overwrite_output_dir=true"]].concat()).succeeded();
    assert!(job.read("out/recipe.toml").contains("weight_decay = 0.1"));
}

/// More steps than a pipe holds events: a run that nobody listens to waits within its training.
const LONG: [&str; 8] = [
    "lora.lora_dropout=0.2",
    "training.max_steps=800",
    "training.per_device_train_batch_size=1",
    "training.gradient_accumulation_steps=2",
    "training.save_steps=800",
    "evaluation.before=false",
    "evaluation.after=false",
    "generation.max_new_tokens=2",
];

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    let unbroken = Job::new();
    unbroken.finetune(&LONG).succeeded();
    let expected = adapter(&unbroken);
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let job = Job::new();
        let arguments = [&["--json"], &job.finetune_arguments(&LONG)[..]].concat();
        let mut child = command("finetune", job.folder(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::with_capacity(1, child.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("\"step\":3,") {
            assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
        }
        signal(child.id(), name);
        out.read_to_string(&mut text).unwrap();
        let ended = finish(child);
        ended.ended_with(code);
        assert!(text.lines().last().unwrap().contains("interrupted"), "{text}");
        let taken = checkpoints(&job);
        assert!(taken.len() == 1 && (3..800).contains(&taken[0]), "{taken:?}");
        assert!(!job.path("out/adapter").exists(), "an unfinished run has no result");

        let (_, printed) = ended.stderr.split_once("go on with:\n").unwrap_or_else(|| panic!("{ended}"));
        let printed = printed.lines().next().unwrap().trim();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", printed]).current_dir(job.folder()).env("XDG_CACHE_HOME", job.path("cache"));
        let resumed = finish(shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        resumed.succeeded();
        assert!(resumed.stdout.contains(&format!("going on from out/checkpoint-{}", taken[0])), "{resumed}");
        assert!(adapter(&job) == expected, "{name} after step {}", taken[0]);
    }
}

#[test]
fn an_optimizer_that_keeps_nothing_is_gone_on_with() {
    for optim_args in ["momentum=0.9", "momentum=0"] {
        let optim_args = format!("training.optim_args='{optim_args}'");
        let settings =
            ["training.optim=sgd", optim_args.as_str(), "training.lr_scheduler_type=reduce_lr_on_plateau"];
        let whole = Job::new();
        run(&whole, &settings).succeeded();
        let job = Job::new();
        assert_eq!(finish(start(&job, &settings, Some("begun:5"))).code, None);
        run(&job, &settings).succeeded();
        assert!(adapter(&job) == adapter(&whole), "{optim_args}");
    }
}
