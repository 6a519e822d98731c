//! What is wrong with a recipe, or with the arguments of a program.

use crate::{
    common::{Job, RECIPE, copy_of, model},
    recipe_refused, refused,
};
use std::fs;

#[test]
fn recipes_are_checked_key_by_key() {
    recipe_refused(
        "learning_rate = ",
        "learning_rat = ",
        &["recipe.toml:17:1: ", "did you mean `training.learning_rate`?"],
    );
    recipe_refused(
        "learning_rate = 1e-3",
        "learning_rate = \"high\"",
        &["recipe.toml:17:1: ", "`training.learning_rate`", "number"],
    );
    recipe_refused(
        "per_device_train_batch_size = 2",
        "per_device_train_batch_size = 0",
        &[
            "recipe.toml:15:1: ",
            "`training.per_device_train_batch_size` is 0; expected an integer of at least 1",
        ],
    );
    recipe_refused("[lora]", "[lora", &["recipe.toml:10:6: ", "not valid TOML"]);
    recipe_refused("[lora]", "[loar]", &["recipe.toml:10:", "did you mean `[lora]`?"]);
    recipe_refused("output_dir = \"out\"", "", &["`output_dir` is missing"]);
    recipe_refused(
        "max_length = 128",
        "max_length = 1.5\nmax_train = -1",
        &["2 problems", "`data.max_length`", "`data.max_train`"],
    );
    let job = Job::new();
    refused(
        &job,
        &["training.lerning_rate=1"],
        &["training.lerning_rate=1", "did you mean `training.learning_rate`?"],
    );
    refused(&job, &["lora.r=0"], &["`lora.r` is 0"]);
    refused(&job, &["lora.r=1000000000"], &["`lora.r` is 1000000000; expected an integer from 1 to"]);
    refused(&job, &["nonsense"], &["section.key=value"]);
    refused(&job, &["runtime.threads=0"], &["`runtime.threads`"]);
    refused(&job, &["evaluation.metrics=[\"rouge\"]"], &["`evaluation.metrics`", "rougeL"]);
    job.write("recipe.toml", b"output_dir = \"\xff\"");
    refused(&job, &[], &["recipe.toml", "UTF-8"]);
}

#[test]
fn target_modules_that_match_nothing_are_answered_with_what_there_is() {
    let job = Job::new();
    refused(
        &job,
        &["lora.target_modules=[\"query\"]"],
        &["query", "q_proj", "down_proj", "matches no linear layer"],
    );
    refused(&job, &["lora.target_modules=[\"mlp\"]"], &["mlp", "not a linear layer", "gate_proj"]);
}

#[test]
fn arguments_out_of_range_are_refused() {
    let job = Job::new();
    for arguments in
        [["--threads", "0"], ["--batch-size", "0"], ["--max-new-tokens", "0"], ["--threads", "1000000"]]
    {
        let run = job.run("generate", &[&["--model", "gone", "--prompt", "a"], &arguments[..]].concat());
        run.refused(&arguments);
    }
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.run("score", &[&["--model", "gone", "--threads", "0"], &files[..]].concat()).refused(&["--threads"]);
    job.run("score", &[&["--model", "gone"], &files[..]].concat()).refused(&["gone"]);
    job.tool("generate", &["--prompt", "a", "--device", "gpu"]).refused(&["gpu", "cpu"]);
    job.tool("generate", &["--prompt", ""]).refused(&["--prompt"]);
}

#[test]
fn a_recipe_in_the_wrong_place_is_no_recipe() {
    let job = Job::new();
    // The model's path is relative to where the program runs, not to the recipe.
    fs::create_dir(job.path("recipes")).unwrap();
    copy_of(model(), &job.path("recipes/model"));
    job.write("recipes/recipe.toml", RECIPE.replace("MODEL", "model"));
    let run = job.run("finetune", &["recipes/recipe.toml"]);
    run.refused(&["\"model\" does not exist", "paths are not relative to the recipe"]);
    job.run("finetune", &["train.jsonl"]).refused(&["train.jsonl:1:", "not valid TOML"]);
    job.run("finetune", &["recipes"]).refused(&["recipes"]);
}

/// The commands that a help text shows, each on one line.
fn shown_commands(help: &str) -> Vec<String> {
    let text = help.replace("\\\n", " ");
    let is_command = |line: &&str| ["cargo run ", "printf "].iter().any(|start| line.starts_with(start));
    text.lines().map(str::trim).filter(is_command).map(str::to_owned).collect()
}

/// Splits a command at white space, but not within quotes; each kind holds the other one as it is.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, ' ') => words.push(String::new()),
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn the_commands_of_every_help_text_are_understood() {
    let job = Job::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = fs::read_dir(root.join("examples/examples")).unwrap();
    let mut programs: Vec<String> =
        sources.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    programs.sort_unstable();
    assert!(programs.len() >= 6, "{programs:?}");
    for program in &programs {
        let help = job.run(program, &["--help"]);
        let commands = shown_commands(&help.succeeded().stdout);
        assert!(commands.iter().any(|command| command.contains(&format!("--example {program} "))), "{help}");
        for command in commands {
            if command.starts_with("printf ") {
                let mut shell = std::process::Command::new("sh");
                let status = shell.args(["-c", &command]).current_dir(job.folder()).status();
                assert!(status.unwrap().success(), "{command}");
                continue;
            }
            let words = words(&command);
            let name = &words[words.iter().position(|word| word == "--example").unwrap() + 1];
            assert!(programs.contains(name), "{command}");
            for path in words.iter().filter(|word| word.starts_with("examples/")) {
                assert!(root.join(path).is_file(), "{command}");
            }
            // From another folder, most of them lack their files; but none is at odds with the arguments that there are.
            let arguments = words.iter().position(|word| word == "--").map_or(&[][..], |at| &words[at + 1..]);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let run = job.run(name, &arguments);
            assert!(run.code == Some(0) || run.code == Some(2), "{command}: {run}");
            assert!(!run.stderr.contains("--help") && !run.stderr.contains("Usage:"), "{command}: {run}");
        }
    }
}
