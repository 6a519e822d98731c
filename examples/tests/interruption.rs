//! Ctrl-C and readers that go away: a program ends in good order and leaves whole files only.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, command, finish, signal, snapshot};
use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

fn start(job: &Job, name: &str, arguments: &[&str]) -> Child {
    let mut command = command(name, job.folder(), arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads lines until one holds `text`; gives back the reader, so that the program can go on writing.
fn wait_for<R: Read>(out: R, text: &str) -> BufReader<R> {
    let mut reader = BufReader::new(out);
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the program ended before `{text}`");
    }
    reader
}

/// The names in a folder, in order.
fn names(job: &Job, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(job.path(folder)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // A killed run leaves its lock, which then locks nobody out.
    names.retain(|name| name != ".ferrotune-lock");
    names.sort();
    names
}

/// Interrupts a program once it has written `text` to standard output, and expects the code of a shell.
#[track_caller]
fn interrupted_at(job: &Job, settings: &[&str], text: &str, (name, code): (&str, i32)) {
    let mut child = start(job, "finetune", &[&["--json"], &job.finetune_arguments(settings)[..]].concat());
    let mut rest = wait_for(child.stdout.take().unwrap(), text);
    signal(child.id(), name);
    let drain = thread::spawn(move || rest.read_to_end(&mut Vec::new()));
    let run = finish(child);
    drain.join().unwrap().unwrap();
    run.ended_with(code);
    assert!(run.stderr.contains("interrupted"), "{run}");
}

#[test]
fn an_interrupted_training_leaves_a_checkpoint_alone() {
    let settings = ["training.max_steps=1000000", "training.save_steps=1000000", "evaluation.before=false"];
    for signal in [("INT", 130), ("TERM", 143)] {
        let job = Job::new();
        interrupted_at(&job, &settings, "\"step\":3", signal);
        let left = names(&job, "out");
        assert!(left.len() == 1 && left[0].starts_with("checkpoint-"), "{left:?}");

        let job = Job::new();
        let before = snapshot(job.folder());
        interrupted_at(&job, &[&settings[..], &["training.save_strategy=no"]].concat(), "\"step\":3", signal);
        assert!(before == snapshot(job.folder()), "files were left behind");
    }
}

#[test]
fn an_interrupted_generation_writes_nothing() {
    let job = Job::new();
    let many = [("the cat sat on the mat", "one"); 3000];
    job.write_examples("test.jsonl", &many);
    let before = snapshot(job.folder());
    let settings = ["generation.max_new_tokens=64"];
    interrupted_at(&job, &settings, "\"event\":\"generation\"", ("INT", 130));
    assert!(before == snapshot(job.folder()), "files were left behind");

    let arguments =
        ["--input", "test.jsonl", "--output", "o.jsonl", "--threads", "1", "--max-new-tokens", "64"];
    let model = common::model().to_str().unwrap();
    let mut child = start(&job, "generate", &[&["--model", model], &arguments[..]].concat());
    let mut rest = wait_for(child.stderr.take().unwrap(), "prompt ");
    signal(child.id(), "INT");
    let drain = thread::spawn(move || {
        let mut text = String::new();
        rest.read_to_string(&mut text).map(|_| text)
    });
    finish(child).ended_with(130);
    let stderr = drain.join().unwrap().unwrap();
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert!(!job.path("o.jsonl").exists());
}

/// A run whose answers after training take long, up to there.
fn trained_and_answering(job: &Job) -> (Child, impl Read + use<>) {
    job.write_examples("test.jsonl", &[("the cat sat on the mat", "one"); 3000]);
    let settings = ["training.max_steps=2", "evaluation.before=false", "generation.max_new_tokens=64"];
    let settings = [&settings[..], &["overwrite_output_dir=true"]].concat();
    let mut child = start(job, "finetune", &[&["--json"], &job.finetune_arguments(&settings)[..]].concat());
    let rest = wait_for(child.stdout.take().unwrap(), "\"event\":\"generation\"");
    (child, rest)
}

#[test]
fn a_run_that_ends_after_its_training_keeps_the_adapter() {
    let job = Job::new();
    let (child, mut rest) = trained_and_answering(&job);
    signal(child.id(), "INT");
    let drain = thread::spawn(move || rest.read_to_end(&mut Vec::new()));
    let ended = finish(child);
    ended.ended_with(130);
    drain.join().unwrap().unwrap();
    assert!(ended.stderr.contains("go on with"), "{ended}");
    assert_eq!(names(&job, "out"), ["adapter", "checkpoint-2", "recipe.toml"]);

    // Killed, it has no time for that: the earlier run is whole, and the new adapter is beside it.
    let of_earlier = |path: &std::path::Path| {
        let replaced = ["out/unfinished", "out/checkpoint-2"].map(|name| job.path(name));
        !replaced.iter().any(|folder| path.starts_with(folder)) && !path.ends_with(".ferrotune-lock")
    };
    let mut earlier = snapshot(&job.path("out"));
    earlier.retain(|path, _| of_earlier(path));
    let (mut child, rest) = trained_and_answering(&job);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    drop(rest);
    assert_eq!(names(&job, "out"), ["adapter", "checkpoint-2", "recipe.toml", "unfinished"]);
    for adapter in ["out/adapter", "out/unfinished/adapter"] {
        let arguments = ["--adapter", adapter, "--prompt", "the cat", "--max-new-tokens", "2"];
        job.tool("generate", &arguments).succeeded();
    }
    let mut found = snapshot(&job.path("out"));
    found.retain(|path, _| of_earlier(path));
    assert!(found == earlier);

    // The next run goes on as if nothing had happened.
    job.write_examples("test.jsonl", &[("the cat", "one")]);
    job.finetune(&["overwrite_output_dir=true"]).succeeded();
    assert_eq!(
        names(&job, "out"),
        ["adapter", "checkpoint-2", "metrics.json", "predictions.jsonl", "recipe.toml", "report.html"]
    );
}

#[test]
fn a_run_that_is_killed_while_it_writes_leaves_whole_files() {
    let job = Job::new();
    for milliseconds in [0, 2, 4, 8, 16] {
        let settings = ["training.max_steps=1", "evaluation.before=false", "overwrite_output_dir=true"];
        let arguments = [&["--json"], &job.finetune_arguments(&settings)[..]].concat();
        let mut child = start(&job, "finetune", &arguments);
        let rest = wait_for(child.stdout.take().unwrap(), "writing results");
        thread::sleep(Duration::from_millis(milliseconds));
        signal(child.id(), "KILL");
        child.wait().unwrap();
        drop(rest);
        for (path, bytes) in snapshot(&job.path("out")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            // What is hidden was being written and never had its name.
            let (Some(bytes), false) = (bytes, name.starts_with('.')) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let whole = match name.rsplit('.').next().unwrap() {
                "json" => serde_json::from_str::<serde_json::Value>(&text).is_ok(),
                "jsonl" => common::json_lines(&text).len() == 3,
                "html" => text.trim_end().ends_with("</html>"),
                "toml" => text.contains("[generation]"),
                _ => safetensors::SafeTensors::deserialize(&bytes).is_ok(),
            };
            assert!(whole, "{} after {milliseconds} ms", path.display());
        }
    }
}

#[test]
fn a_second_interrupt_ends_a_program_at_once() {
    let job = Job::new();
    // A warning of 1 MB: more than a pipe holds, so that the program stands in the middle of writing it and looks at nothing.
    let refusal = "no ".repeat(350_000);
    let refuse = "{% if messages[0]['content'] | length > 1000 %}{{ raise_exception(messages[0]['content']) }}{% endif %}";
    let template = [refuse, common::CHAT_TEMPLATE].concat();
    std::fs::write(job.own_model().join("chat_template.jinja"), template).unwrap();
    job.write_examples("train.jsonl", &[(&refusal, "the dog"), ("the cat", "the dog")]);
    let arguments = job.finetune_arguments(&["data.on_error=skip"]);
    let mut child = start(&job, "finetune", &[&["--json"], &arguments[..]].concat());
    let mut out = child.stdout.take().unwrap();
    let (mut text, mut piece) = (String::new(), [0; 64]);
    while !text.contains("no no no") {
        let read = out.read(&mut piece).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    signal(child.id(), "INT");
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first leaves it where it is");
    // Two signals that come too close count as one, so it is sent until the program is gone.
    for _ in 0..200 {
        signal(child.id(), "INT");
        thread::sleep(Duration::from_millis(100));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    let run = finish(child);
    run.ended_with(130);
    assert!(run.stderr.is_empty(), "it ended where it stood: {run}");
    let mut rest = vec![];
    out.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < refusal.len() / 2, "it was still writing: {}", rest.len());
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let job = Job::new();
    // The first event is read, the rest has no reader.
    let mut child =
        start(&job, "finetune", &["--json", "recipe.toml", "--set", "training.max_steps=1000000"]);
    drop(wait_for(child.stdout.take().unwrap(), "{"));
    let run = finish(child);
    run.ended_with(1);
    assert!(!job.path("out").exists());

    let model = common::model().to_str().unwrap();
    let tool = ["--model", model, "--threads", "1"];
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    let prompt = ["--prompt", "the cat", "--max-new-tokens", "40"];
    let few = ["--max-new-tokens", "4"];
    for (name, arguments) in [
        ("finetune", vec!["recipe.toml"]),
        ("generate", [&tool[..], &prompt].concat()),
        ("generate", [&tool[..], &files, &few].concat()),
        ("score", [&tool[..], &files].concat()),
        ("evaluate", vec!["--input", "o.jsonl", "--prediction-field", "reference"]),
        (
            "import",
            vec!["--gguf", common::tiny_gguf().to_str().unwrap().to_owned().leak(), "--output", "imported"],
        ),
    ] {
        if name == "evaluate" {
            job.tool("generate", &[&files[..], &few].concat()).succeeded();
        }
        let mut child = start(&job, name, &arguments);
        drop(child.stdout.take());
        finish(child).ended_with(0);
    }
    assert!(job.path("out/report.html").exists() && job.path("o.jsonl").exists());

    // Neither is one that does not listen to errors.
    for (name, arguments) in
        [("finetune", vec!["absent.toml"]), ("score", [&["--model", "gone"], &files[..]].concat())]
    {
        let mut child = start(&job, name, &arguments);
        drop(child.stderr.take());
        finish(child).ended_with(2);
    }
}
