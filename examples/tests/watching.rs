//! What a person sees of a training: logs, what watchers do, and the range test.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, command, finish, json_lines, snapshot};
use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio};

const TWELVE_STEPS: [&str; 5] = [
    "training.max_steps=12",
    "training.per_device_train_batch_size=1",
    "training.save_steps=4",
    "training.report_to=all",
    "training.run_name=twelve",
];

/// The one log of a run.
fn log(job: &Job) -> PathBuf {
    let logs: Vec<PathBuf> =
        fs::read_dir(job.path("out/runs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs[0].clone()
}

/// The steps and values of each tag.
fn scalars(job: &Job) -> BTreeMap<String, Vec<(usize, f64)>> {
    let mut found: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
    for line in fs::read_to_string(log(job).join("log.csv")).unwrap().lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let value = (cells[1].parse().unwrap(), cells[3].parse().unwrap());
        found.entry(cells[2].to_owned()).or_default().push(value);
    }
    found
}

#[test]
fn a_run_that_was_killed_goes_on_with_its_log_and_its_curve() {
    let unbroken = Job::new();
    unbroken.finetune(&TWELVE_STEPS).succeeded();
    let expected = scalars(&unbroken);
    assert!(expected["train/loss"].iter().map(|(step, _)| *step).eq(1..=12));
    let jsonl = json_lines(&fs::read_to_string(log(&unbroken).join("log.jsonl")).unwrap());
    let hparams = &jsonl[0]["hparams"];
    assert_eq!((hparams["run_name"].as_str(), hparams["lora.r"].as_u64()), (Some("twelve"), Some(4)));
    let answers: Vec<(u64, &str)> = jsonl
        .iter()
        .filter(|line| line["tag"] == "answers/1")
        .map(|line| (line["step"].as_u64().unwrap(), line["text"].as_str().unwrap()))
        .collect();
    assert_eq!(answers.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 12]);
    assert!(answers[0].1.contains("**Reference**\n\n    the log\n"), "{answers:?}");
    let norms: Vec<&str> =
        jsonl.iter().filter(|line| line["step"] == 12).filter_map(|line| line["tag"].as_str()).collect();
    assert!(norms.contains(&"norms/lora_A.weight") && norms.contains(&"norms/lora_B.weight"), "{norms:?}");

    let job = Job::new();
    let mut killed = command("finetune", job.folder(), job.finetune_arguments(&TWELVE_STEPS));
    killed.env("FERROTUNE_ABORT_AT", "renamed:2").stdout(Stdio::piped()).stderr(Stdio::piped());
    assert_eq!(finish(killed.spawn().unwrap()).code, None);
    let resume = [&TWELVE_STEPS[..], &["training.resume_from_checkpoint=true"]].concat();
    job.finetune(&resume).succeeded();
    for tag in ["train/loss", "train/grad_norm", "train/learning_rate", "eval/loss"] {
        assert_eq!(scalars(&job)[tag], expected[tag], "{tag}");
    }
    let events = fs::read_dir(log(&job)).unwrap().flatten();
    let events =
        events.filter(|entry| entry.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(events.count(), 2, "one of each process");
    let label = |job: &Job| {
        let page = job.read("out/report.html");
        page.split("aria-label=\"")
            .find(|part| part.starts_with("Loss by"))
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned()
    };
    assert!(label(&job).contains(" at step 1,"), "{}", label(&job));
    assert_eq!(label(&job), label(&unbroken));
}

#[test]
fn a_log_that_cannot_be_written_ends_no_run_and_is_said() {
    let job = Job::new();
    fs::create_dir(job.path("out")).unwrap();
    job.write("out/runs", "a file where the folder should be");
    let run = job.finetune(&["training.report_to=csv"]);
    run.succeeded();
    assert!(run.stderr.contains("warning: csv cannot write its log"), "{run}");
    assert!(!run.stderr.contains("a reporter cannot write"), "said twice: {run}");
}

#[test]
fn what_a_watcher_finds_is_said_counted_and_drawn() {
    // So small a rate moves nothing.
    let job = Job::new();
    let run =
        job.finetune(&["training.max_steps=30", "training.learning_rate=1e-60", "watch.dead_parameter=stop"]);
    run.succeeded();
    assert!(
        run.stderr.contains("warning: dead parameter, step 20: ") && run.stderr.contains("lora_B.weight"),
        "{run}"
    );
    let metrics = job.json("out/metrics.json");
    assert_eq!(metrics["train"]["steps"], 20, "it ends there");
    let measured: Vec<_> =
        metrics["validation"]["history"].as_array().unwrap().iter().map(|at| &at["step"]).collect();
    assert_eq!(measured, [0, 20], "{metrics}");
    let finding = &metrics["train"]["findings"][0];
    assert_eq!(
        (finding["watcher"].as_str(), finding["action"].as_str()),
        (Some("dead_parameter"), Some("stop"))
    );
    let page = job.read("out/report.html");
    assert!(page.contains("Step 20, dead parameter: ") && page.contains("The training ended here."));
    assert!(job.path("out/checkpoint-20").is_dir());

    let job = Job::new();
    job.finetune(&["training.max_steps=30", "training.learning_rate=1e-60", "watch.dead_parameter=off"])
        .succeeded();
    assert!(job.json("out/metrics.json")["train"]["findings"].is_null());
}

#[test]
fn a_rate_at_which_the_loss_is_nan_is_halved_until_it_is_not() {
    let job = Job::new();
    let settings =
        ["training.max_steps=3", "training.learning_rate=1e3", "training.lr_scheduler_type=constant"];
    let stopped = job.finetune(&settings);
    stopped.ended_with(1);
    for words in ["step 3", "train.jsonl:", "lora_A.weight"] {
        assert!(stopped.stderr.contains(words), "{stopped}");
    }
    let back = job.finetune(&[&settings[..], &["watch.non_finite=roll_back"]].concat());
    back.succeeded();
    assert!(
        back.stderr.contains("warning: non finite, step 3: ") && back.stderr.contains("back to step 0"),
        "{back}"
    );
    let metrics = job.json("out/metrics.json");
    let steps: Vec<u64> = metrics["train"]["loss"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3]);
    assert_eq!(metrics["train"]["findings"][0]["action"], "roll_back");

    let again = ["output_dir=again", "training.learning_rate=1e30", "watch.non_finite=roll_back"];
    let spent = job.finetune(&[&settings[..], &again].concat());
    spent.ended_with(1);
    assert!(
        spent.stderr.contains("the run went back 3 times, each time to half the learning rate"),
        "{spent}"
    );
}

#[test]
fn the_range_test_suggests_a_rate_and_leaves_the_run_that_is_there() {
    let job = Job::new();
    job.finetune(&["training.max_steps=2"]).succeeded();
    let before = snapshot(&job.path("out"));
    let run = job.run("finetune", &["recipe.toml", "--find-lr"]);
    run.succeeded();
    let found = job.json("out/find_lr.json");
    let rate = found["steepest"].as_f64().unwrap();
    assert!(run.stdout.contains(&format!("--set training.learning_rate={rate:.1e}")), "{run}");
    assert!(job.read("out/find_lr.svg").starts_with("<svg"));
    let mut after = snapshot(&job.path("out"));
    for name in ["find_lr.json", "find_lr.svg"] {
        assert!(after.remove(&job.path("out").join(name)).is_some());
    }
    assert_eq!(after, before);
    // Nothing of it is in the way of a run.
    let fresh = Job::new();
    fresh.run("finetune", &["recipe.toml", "--find-lr"]).succeeded();
    fresh.finetune(&[]).succeeded();
}
