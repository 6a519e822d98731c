//! `docs/outputs.md` names what runs write, no more and no less.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod common;
mod page;

use common::{Job, command, finish, json_lines, signal, snapshot};
use page::{Names, any_metric, listed, page, paths, section};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

#[test]
fn files_and_their_keys_are_those_of_the_page() {
    let page = page();
    let job = Job::new();
    // So small a rate moves nothing, which a watcher finds.
    let settings = [
        "training.eval_strategy=epoch",
        "training.predict_with_generate=true",
        "training.metric_for_best_model=eval_loss",
        "training.report_to=all",
        "training.max_steps=24",
        "training.learning_rate=1e-60",
    ];
    job.finetune(&settings).succeeded();
    let folder = job.path("out");
    let files: Names = snapshot(&folder)
        .into_iter()
        .filter(|(_, bytes)| bytes.is_some())
        .map(|(path, _)| path.strip_prefix(&folder).unwrap().display().to_string())
        .map(|path| path.replace("checkpoint-24/", "checkpoint-N/"))
        .map(|path| match path.strip_prefix("runs/").and_then(|path| path.split_once('/')) {
            Some((_, name)) => {
                let name =
                    if name.starts_with("events") { "events.out.tfevents.SECONDS.HOST.PID.0" } else { name };
                format!("runs/Nov27_15-25-00_HOST/{name}")
            }
            None => path,
        })
        .collect();
    let documented = ["## Files", "## Checkpoints", "## Logs"].map(|heading| listed(section(&page, heading)));
    assert_eq!(files, documented.into_iter().flatten().collect());

    let mut found = Names::new();
    paths(&job.json("out/metrics.json"), "", &mut found);
    let found: Names = found.into_iter().map(any_metric).collect();
    assert_eq!(found, listed(section(&page, "## `metrics.json`")));

    let mut found = Names::new();
    job.json_lines("out/predictions.jsonl").iter().for_each(|line| paths(line, "", &mut found));
    assert_eq!(found, listed(section(&page, "## `predictions.jsonl`")));
}

/// The fields of an event, but for its kind.
fn fields(event: &Value) -> Names {
    event.as_object().unwrap().keys().filter(|key| *key != "event").cloned().collect()
}

#[test]
fn events_and_exit_codes_are_those_of_the_page() {
    let page = page();
    let job = Job::new();
    let done = job.run("finetune", &["recipe.toml", "--json"]);
    let refused = job.run(
        "finetune",
        &["recipe.toml", "--json", "--set", "output_dir=again", "--set", "data.train=absent"],
    );
    let diverging = [
        "output_dir=diverged",
        "training.max_steps=50",
        "training.learning_rate=1e30",
        "watch.non_finite=roll_back",
    ];
    let diverged = job.run("finetune", &[&["--json"][..], &job.finetune_arguments(&diverging)].concat());
    let searched = job.run("finetune", &["recipe.toml", "--json", "--find-lr"]);
    let arguments =
        ["recipe.toml", "--json", "--set", "output_dir=long", "--set", "training.max_steps=1000000"];
    let mut child = command("finetune", job.folder(), arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut rest = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("\"step\":2,") {
        assert!(rest.read_line(&mut text).unwrap() > 0, "{text}");
    }
    signal(child.id(), "INT");
    rest.read_to_string(&mut text).unwrap();
    let interrupted = finish(child);

    let codes = [&done, &diverged, &refused, &interrupted].map(|run| run.code.unwrap());
    assert_eq!(codes, [0, 1, 2, 130]);
    // SIGTERM is among the tests of interruptions.
    let codes: Names = codes.into_iter().chain([143]).map(|code| code.to_string()).collect();
    assert_eq!(codes, listed(section(&page, "## Exit codes")));

    let mut found: BTreeMap<String, Names> = BTreeMap::new();
    for events in [&done.stdout, &searched.stdout, &diverged.stdout, &refused.stdout, &text]
        .map(|text| json_lines(text))
    {
        let last = events.last().unwrap()["event"].as_str().unwrap();
        assert!(["done", "find_lr", "interrupted", "error"].contains(&last), "{last}");
        for event in events {
            let name = event["event"].as_str().unwrap().to_owned();
            assert_eq!(*found.entry(name).or_insert_with(|| fields(&event)), fields(&event), "{event}");
        }
    }
    let events = section(&page, "## Events");
    let documented: BTreeMap<String, Names> = events
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(|name| (name.to_owned(), listed(section(&page, &format!("### `{name}`")))))
        .collect();
    assert_eq!(found, documented);

    let examples: Vec<Value> = events
        .split("```json\n")
        .skip(1)
        .map(|rest| serde_json::from_str(rest.split("```").next().unwrap()).unwrap())
        .collect();
    assert_eq!(examples.len(), documented.len(), "an example of each");
    for example in examples {
        assert_eq!(fields(&example), documented[example["event"].as_str().unwrap()], "{example}");
    }
    // The parts of the run are named as they come.
    let stages = section(&page, "### `stage`");
    for event in json_lines(&done.stdout).iter().filter(|event| event["event"] == "stage") {
        assert!(stages.contains(&format!("`{}`", event["name"].as_str().unwrap())), "{event}");
    }
}

#[test]
fn a_log_is_a_few_plain_lines() {
    let job = Job::new();
    let run = job.finetune(&[
        "training.max_steps=400",
        "training.logging_steps=50",
        "training.eval_strategy=steps",
        "training.eval_steps=1",
    ]);
    run.succeeded();
    assert!(!run.stderr.chars().any(|c| c.is_control() && c != '\n'), "{run}");
    let lines =
        run.stderr.lines().filter(|line| line.starts_with("step ") || line.contains("validation")).count();
    assert!((3..60).contains(&lines), "{run}");
    assert!(run.stderr.contains("validation loss") && run.stderr.contains("step 400/400"), "{run}");
}
