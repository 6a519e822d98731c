//! Faults while checkpoints are written: a place that takes nothing, for a while or for good, a second signal, a second process.

use crate::{SETTINGS, adapter, checkpoints, common, run, start_with, unbroken};
use common::{Job, Run, finish, signal, snapshot};
use std::{fs, path::PathBuf, process::Child, thread, time::Duration};

/// Steps enough for a disk to be filled and emptied within them, with a checkpoint after each.
const MANY: [&str; 9] = [
    "lora.lora_dropout=0.2",
    "training.max_steps=400",
    "training.per_device_train_batch_size=1",
    "training.logging_steps=100",
    "training.save_steps=1",
    "training.save_total_limit=2",
    "evaluation.before=false",
    "evaluation.after=false",
    "training.resume_from_checkpoint=true",
];

/// What is done to the place of a run in the middle of it, and what mends it.
#[cfg(target_os = "linux")]
const FAULTS: [(&str, &str, &str); 2] = [
    // Again and again, for what a failed attempt leaves free is room for the next one.
    ("head -c 64M /dev/zero >> disk/filler 2> /dev/null", "rm disk/filler", "No space left on device"),
    // On top of the place that the run has its lock in.
    (
        "[ -e fault ] || { mount --bind disk disk && mount -o remount,bind,ro disk && touch fault; }",
        "umount disk && rm fault",
        "Read-only file system",
    ),
];

/// Runs in `disk`, where `fault` happens after the first checkpoint; once that is said, `then` is done. `None` where nothing can be mounted.
#[cfg(target_os = "linux")]
fn with_fault(job: &Job, fault: &str, then: &str, temporary: &str) -> Option<Run> {
    let program = common::program("finetune");
    let arguments = job.finetune_arguments(&MANY).join(" ");
    let script = format!(
        "export TMPDIR=$PWD/{temporary}; {} {arguments} --set output_dir=disk/out > /dev/null 2> log & pid=$!
        until ls disk/out 2> /dev/null | grep -q checkpoint-; do sleep 0.01; done
        for _ in $(seq 3000); do {fault}; grep -q 'no checkpoint after step' log && break; sleep 0.01; done
        {then}
        wait $pid; code=$?; cat log >&2; cp -r disk found; exit $code",
        program.display()
    );
    common::on_small_disk(job, 2048, &script)
}

/// The steps of the checkpoints that the run in `disk` has left.
#[cfg(target_os = "linux")]
fn left(job: &Job) -> Vec<usize> {
    fs::rename(job.path("found/out"), job.path("out")).unwrap();
    checkpoints(job)
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_takes_nothing_for_a_while_costs_no_training() {
    let whole = Job::new();
    whole.finetune(&MANY).succeeded();
    for (fault, mend, words) in FAULTS {
        let job = Job::new();
        let Some(run) = with_fault(&job, fault, mend, ".") else { return };
        run.succeeded();
        for words in ["warning: no checkpoint after step", words, "training goes on, and it is tried again"] {
            assert!(run.stderr.contains(words), "{words}: {run}");
        }
        assert_eq!(left(&job), [399, 400]);
        assert!(adapter(&job) == adapter(&whole), "{fault}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_takes_nothing_any_more_keeps_the_last_whole_checkpoint() {
    let whole = Job::new();
    whole.finetune(&MANY).succeeded();
    for (fault, _, words) in FAULTS {
        let job = Job::new();
        fs::create_dir(job.path("tmp")).unwrap();
        // To the end of the run, which is known by its lock or, where that cannot be removed, by what it says.
        let until_the_end = format!("while ! grep -q '^error' log; do {fault}; sleep 0.01; done");
        let Some(run) = with_fault(&job, fault, &until_the_end, "tmp") else { return };
        run.refused(&[
            "warning: no checkpoint after step",
            words,
            "the training is not lost: its adapter is in ",
        ]);
        // In a temporary folder, or where the last pages of the disk were enough for it.
        let saved = run.stderr.rsplit_once("its adapter is in ").unwrap().1.trim();
        let saved = job.path(&saved.replacen("disk/", "found/", 1));
        let bytes = fs::read(saved.join("adapter_model.safetensors")).unwrap();
        assert!(bytes == adapter(&whole), "{fault}");

        let _ = fs::remove_dir_all(job.path("found/out/unfinished"));
        let steps = left(&job);
        assert!(steps.last().is_some_and(|&step| step < 400), "{steps:?}");
        let resumed = job.finetune(&MANY);
        resumed.succeeded();
        let newest = format!("going on from out/checkpoint-{}", steps.last().unwrap());
        assert!(resumed.stderr.contains(&newest), "{resumed}");
        assert!(adapter(&job) == adapter(&whole), "{fault}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn where_nothing_takes_the_adapter_the_error_names_the_last_checkpoint() {
    let job = Job::new();
    let (fault, _, words) = FAULTS[1];
    // A file is no temporary folder.
    let Some(run) = with_fault(&job, fault, "true", "train.jsonl") else { return };
    run.refused(&[words, "the last whole checkpoint is disk/out/checkpoint-"]);
    let named = run.stderr.rsplit_once("checkpoint-").unwrap().1.trim().parse().unwrap();
    assert_eq!(left(&job).last(), Some(&named));
}

#[cfg(target_os = "linux")]
#[test]
fn room_for_the_checkpoints_is_missed_before_the_run() {
    let job = Job::new();
    let program = common::program("finetune");
    let finetune = |settings: &str| {
        let run = "--set training.max_steps=20 --set training.save_steps=1 --set output_dir=disk/out";
        format!("{} recipe.toml {run} {settings}; {}", program.display(), common::COPY_OUT)
    };
    let Some(refused) = common::on_small_disk(&job, 400, &finetune("")) else { return };
    refused.refused(&["disk/out has room for", "for checkpoints", "training.save_total_limit"]);
    assert!(!refused.stderr.contains("answers before"), "before the work begins: {refused}");
    assert_eq!(fs::read_dir(job.path("found")).unwrap().count(), 0);
    let run = common::on_small_disk(&job, 400, &finetune("--set training.save_total_limit=1")).unwrap();
    run.succeeded();
}

/// A run whose writer is held at a place, where `marker` is there and nothing changes any more.
fn held(job: &Job, place: &str, marker: &str) -> Child {
    let child = start_with(job, &[], &[("FERROTUNE_HOLD_AT", place)]);
    for _ in 0..3000 {
        if job.path("out").join(marker).exists() {
            thread::sleep(Duration::from_millis(200));
            return child;
        }
        thread::sleep(Duration::from_millis(10));
    }
    signal(child.id(), "KILL");
    panic!("{place} is not reached: {}", finish(child));
}

#[test]
fn a_second_signal_in_the_middle_of_a_checkpoint_damages_nothing() {
    let expected = unbroken(&[]).adapter;
    let being_written = ".checkpoint-being-written/checkpoint-2";
    for (place, marker, name, code) in [
        (
            "optimizer:1",
            ".checkpoint-being-written/checkpoint-1/optimizer.safetensors".to_owned(),
            "INT",
            130,
        ),
        ("verified:2", format!("{being_written}/hashes.json"), "TERM", 143),
        ("renamed:2", "checkpoint-2".to_owned(), "INT", 130),
    ] {
        let job = Job::new();
        let mut child = held(&job, place, &marker);
        signal(child.id(), name);
        thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "the first waits for the checkpoint, {place}");
        // Two signals that come too close count as one.
        for _ in 0..200 {
            signal(child.id(), name);
            thread::sleep(Duration::from_millis(50));
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        finish(child).ended_with(code);
        assert!(!job.path("out/adapter").exists());
        let resumed = run(&job, &[]);
        resumed.succeeded();
        let words = if place == "optimizer:1" { "from the start" } else { "going on from out/checkpoint-" };
        assert!(resumed.stderr.contains(words), "{place}: {resumed}");
        assert!(adapter(&job) == expected, "{place}");
    }
}

#[test]
fn a_second_process_that_would_go_on_with_a_run_is_refused_while_the_first_lives() {
    let expected = unbroken(&[]).adapter;
    let job = Job::new();
    let first = held(&job, "renamed:2", "checkpoint-2");
    let before: Vec<PathBuf> = snapshot(&job.path("out")).into_keys().collect();
    for settings in [&["overwrite_output_dir=true"][..], &["training.resume_from_checkpoint=false"]] {
        run(&job, settings).refused(&["another run is writing to out", "`output_dir`"]);
    }
    let folder = "training.resume_from_checkpoint=out/checkpoint-1";
    run(&job, &[folder]).refused(&["another run is writing to out"]);
    assert_eq!(before, snapshot(&job.path("out")).into_keys().collect::<Vec<_>>(), "the first run's files");
    signal(first.id(), "KILL");
    assert_eq!(finish(first).code, None);
    // The lock of a dead process is none.
    assert!(job.path("out/.ferrotune-lock").exists());
    let resumed = run(&job, &[]);
    resumed.succeeded();
    assert!(resumed.stderr.contains("going on from out/checkpoint-2"), "{resumed}");
    assert!(adapter(&job) == expected && !job.path("out/.ferrotune-lock").exists());
    assert_eq!(SETTINGS.last(), Some(&"training.resume_from_checkpoint=true"));
}
