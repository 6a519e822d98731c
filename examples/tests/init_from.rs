//! A run that starts from an adapter that exists already.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, RECIPE, command, finish, number, snapshot};
use std::{fs, process::Stdio};

/// Steps large enough that the adapter of the tiny model changes its answers.
const FAST: [&str; 3] = ["training.learning_rate=0.05", "training.max_steps=6", "training.save_steps=2"];

/// A job in whose `first` there is a run.
fn trained() -> Job {
    let job = Job::new();
    let run = job.finetune(&[&FAST[..], &["output_dir=first", "lora.lora_dropout=0.1"]].concat());
    run.succeeded();
    job
}

fn run(job: &Job, settings: &[&str]) -> common::Run {
    job.finetune(&[&FAST[..], settings].concat())
}

fn weights(job: &Job, run: &str) -> Vec<u8> {
    fs::read(job.path(run).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn it_begins_with_the_adapter_and_takes_over_what_the_recipe_leaves_out() {
    let job = trained();
    let before = snapshot(&job.path("first"));
    // No word about the adapter's form; other data.
    let recipe = job.read("recipe.toml").replace("[lora]\nr = 4\nlora_alpha = 8\n", "");
    assert_ne!(recipe, job.read("recipe.toml"));
    job.write("recipe.toml", recipe);
    job.write_examples("train.jsonl", &[("the log", "the cat sat"), ("the mat", "one two")]);
    let second = run(&job, &["output_dir=second", "lora.init_from=first/adapter"]);
    second.succeeded();
    assert!(second.stderr.contains("starting from the adapter first/adapter"), "{second}");
    assert!(before == snapshot(&job.path("first")), "the adapter is only read");

    let section = "[lora]\ninit_from = \"first/adapter\"\nr = 4\nlora_alpha = 8\nlora_dropout = 0.1\n";
    let effective = job.read("second/recipe.toml");
    assert!(effective.contains(section), "{effective}");
    assert_eq!(job.json("second/adapter/adapter_config.json")["r"], 4);

    // Before the training it answers and is validated as the first run did after its own.
    let answers = |run: &str, when: &str| -> Vec<String> {
        let lines = job.json_lines(&format!("{run}/predictions.jsonl"));
        lines.iter().map(|line| line[when].as_str().unwrap().to_owned()).collect()
    };
    assert_ne!(answers("first", "before"), answers("first", "after"), "the first run changed no answer");
    assert_eq!(answers("second", "before"), answers("first", "after"));
    let (first, second) = (job.json("first/metrics.json"), job.json("second/metrics.json"));
    assert_eq!(number(&second, "/validation/loss_before"), number(&first, "/validation/loss"));
    assert!(job.read("second/report.html").contains("from the adapter first/adapter"));
    assert_ne!(weights(&job, "second"), weights(&job, "first"));

    // The recipe that it leaves starts the same run again.
    job.run("finetune", &["second/recipe.toml", "--set", "output_dir=again"]).succeeded();
    assert!(weights(&job, "again") == weights(&job, "second"));
}

#[test]
fn what_the_adapter_has_otherwise_is_named_from_both_sides() {
    let job = trained();
    run(&job, &["lora.init_from=first/adapter", "lora.r=8", "lora.lora_alpha=16"]).refused(&[
        "first/adapter is no adapter for this run",
        "`lora.r` is 8, and the adapter has 4",
        "`lora.lora_alpha` is 16, and the adapter has 8",
    ]);
    let targets = "lora.target_modules=[\"q_proj\", \"k_proj\"]";
    run(&job, &["lora.init_from=first/adapter", targets]).refused(&[
        "`lora.target_modules` (q_proj, k_proj) chooses",
        "k_proj among them, and the adapter has",
        "v_proj among them",
    ]);
    // The same layers in other words; a dropout of its own.
    let same = ["lora.target_modules=[\"self_attn.v_proj\", \"q_proj\"]", "lora.lora_dropout=0"];
    run(&job, &[&["lora.init_from=first/adapter"][..], &same].concat()).succeeded();
    assert_eq!(job.json("out/adapter/adapter_config.json")["lora_dropout"], 0.0);

    let config = job.read("first/adapter/adapter_config.json");
    let pattern =
        config.replacen("\"target_modules\": [", "\"target_modules\": \".*[qv]_proj\", \"was\": [", 1);
    job.write("first/adapter/adapter_config.json", pattern);
    let settings = ["overwrite_output_dir=true", "lora.init_from=first/adapter"];
    run(&job, &settings).refused(&["is the pattern \".*[qv]_proj\"", "lora.target_modules"]);
    run(&job, &[&settings[..], &same].concat()).succeeded();
}

#[test]
fn another_base_is_refused_by_its_name_or_by_its_content() {
    let job = Job::new();
    let model = job.own_model();
    run(&job, &["output_dir=first"]).succeeded();
    let adapter = "lora.init_from=first/adapter";
    let checkpoint = "lora.init_from=first/checkpoint-6";

    fs::rename(&model, job.path("other")).unwrap();
    job.write("recipe.toml", RECIPE.replace("MODEL", "other"));
    run(&job, &[adapter])
        .refused(&["was made for the base model model, and `model.path` is other", "--accept-changes"]);
    // What a checkpoint knows of the content counts, whatever its name.
    run(&job, &[checkpoint, "output_dir=second"]).succeeded();
    let settings = [&FAST[..], &[adapter, "output_dir=third"]].concat();
    let arguments = [&["--accept-changes"], &job.finetune_arguments(&settings)[..]].concat();
    let accepted = job.run("finetune", &arguments);
    accepted.succeeded();
    assert!(accepted.stderr.contains("accepted: the adapter was made for"), "{accepted}");
    assert!(weights(&job, "second") == weights(&job, "third"), "it is the same adapter on the same base");

    fs::rename(job.path("other"), &model).unwrap();
    job.write("recipe.toml", RECIPE.replace("MODEL", "model"));
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    run(&job, &[checkpoint]).refused(&[
        "the adapter was trained on model/model.safetensors with sha256",
        "`model.path` has model/model.safetensors with sha256",
    ]);
}

#[test]
fn it_goes_on_after_a_kill_and_holds_the_adapter_to_what_it_was() {
    let job = trained();
    let settings =
        ["lora.init_from=first/adapter", "training.save_steps=1", "training.resume_from_checkpoint=true"];
    run(&job, &[&settings[..], &["output_dir=whole"]].concat()).succeeded();
    let all = [&FAST[..], &settings].concat();
    let mut killed = command("finetune", job.folder(), job.finetune_arguments(&all));
    killed.env("FERROTUNE_ABORT_AT", "begun:4").stdout(Stdio::piped()).stderr(Stdio::piped());
    assert_eq!(finish(killed.spawn().unwrap()).code, None);

    let file = job.path("first/adapter/adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() - 4] ^= 1;
    fs::write(&file, changed).unwrap();
    run(&job, &settings).refused(&["adapter_model.safetensors of `lora.init_from` has another content"]);
    fs::write(&file, bytes).unwrap();
    let resumed = run(&job, &settings);
    resumed.succeeded();
    assert!(resumed.stderr.contains("going on from out/checkpoint-"), "{resumed}");
    assert!(weights(&job, "out") == weights(&job, "whole"));
}

#[test]
fn what_is_no_adapter_or_would_be_replaced_is_refused_first() {
    let job = trained();
    fs::create_dir(job.path("empty")).unwrap();
    for (settings, words) in [
        (&["lora.init_from=absent"][..], &["lora.init_from", "does not exist"][..]),
        (&["lora.init_from=train.jsonl"], &["is a file; expected the folder of an adapter"]),
        (&["lora.init_from=empty"], &["empty", "adapter_config.json"]),
        (&["lora.init_from=first/adapter", "output_dir=first"], &["choose another `output_dir`"]),
        (
            &["lora.init_from=first/checkpoint-4", "output_dir=first", "overwrite_output_dir=true"],
            &["first/checkpoint-4 is in the way"],
        ),
    ] {
        let before = snapshot(job.folder());
        let refused = run(&job, settings);
        refused.refused(words);
        assert!(!refused.stderr.contains("loading model"), "before the work begins: {refused}");
        assert!(before == snapshot(job.folder()));
    }
}
