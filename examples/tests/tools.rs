//! The small programs `generate`, `score`, `evaluate` and `import` as processes.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, number, shared_adapter, tiny_gguf};
use serde_json::Value;
use std::{path::PathBuf, sync::OnceLock};

const PROMPTS: [(&str, &str); 5] = [
    ("the cat sat on the mat", "one two three"),
    ("and the dog?", "the log"),
    ("one", "for (i = 0; i < 10; i++) return value"),
    ("a <custom> token, \"quotes\" and ünïcode 日本", "they were sleeping"),
    ("while", "123 4567"),
];

/// An adapter that changes the answers, trained once.
fn adapter() -> &'static str {
    static ADAPTER: OnceLock<PathBuf> = OnceLock::new();
    let hard = ["training.learning_rate=0.2", "training.max_steps=4", "lora.target_modules=all-linear"];
    ADAPTER.get_or_init(|| shared_adapter(&hard)).to_str().unwrap()
}

fn job() -> Job {
    let job = Job::new();
    job.write_examples("input.jsonl", &PROMPTS);
    job
}

const FILES: [&str; 4] = ["--input", "input.jsonl", "--output", "output.jsonl"];

fn generate(job: &Job, arguments: &[&str]) -> Vec<Value> {
    let run = job.tool("generate", &[&FILES[..], &["--max-new-tokens", "12"], arguments].concat());
    run.succeeded();
    assert!(run.stdout.starts_with("5 answers, "), "{run}");
    job.json_lines("output.jsonl")
}

#[test]
fn predictions_come_in_order_and_do_not_depend_on_the_batch() {
    let job = job();
    let lines = generate(&job, &["--batch-size", "1"]);
    assert_eq!(lines.len(), PROMPTS.len());
    for (line, (prompt, reference)) in lines.iter().zip(PROMPTS) {
        let mut keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["prediction", "prompt", "reference"]);
        assert_eq!((line["prompt"].as_str(), line["reference"].as_str()), (Some(prompt), Some(reference)));
        let prediction = line["prediction"].as_str().unwrap();
        assert_eq!(prediction, prediction.trim());
    }
    for batch_size in ["2", "3", "64"] {
        assert_eq!(generate(&job, &["--batch-size", batch_size]), lines, "batch size {batch_size}");
    }
    let adapted = generate(&job, &["--adapter", adapter()]);
    assert_ne!(adapted, lines, "the adapter is used");
    assert_eq!(generate(&job, &["--adapter", adapter(), "--batch-size", "2"]), adapted);
    assert_eq!(generate(&job, &["--adapter", adapter(), "--merge"]), adapted);
    job.tool("generate", &[&FILES[..], &["--merge"]].concat()).refused(&["--adapter"]);
}

#[test]
fn a_prompt_on_the_command_line_gets_the_answer_of_the_file_form() {
    let job = job();
    for adapter in [&[][..], &["--adapter", adapter()]] {
        let lines = generate(&job, adapter);
        for (line, (prompt, _)) in lines.iter().zip(PROMPTS) {
            let arguments = [&["--prompt", prompt, "--max-new-tokens", "12"], adapter].concat();
            let run = job.tool("generate", &arguments);
            run.succeeded();
            assert_eq!(run.stdout, format!("{}\n", line["prediction"].as_str().unwrap()), "{prompt}");
        }
    }
}

#[test]
fn evaluate_measures_what_generate_wrote() {
    let job = job();
    let lines = generate(&job, &[]);
    let run = job.run("evaluate", &["--input", "output.jsonl", "--output", "metrics.json"]);
    run.succeeded();
    let metrics = job.json("metrics.json");
    for name in ["rouge1", "rouge2", "rougeL", "rougeLsum"] {
        let [value, low, high] =
            ["value", "low", "high"].map(|key| number(&metrics, &format!("/{name}/{key}")));
        assert!(0.0 <= low && low <= value && value <= high && high <= 100.0, "{name}: {metrics}");
        assert!(run.stdout.contains(&format!("{value:.2}")), "{run}");
    }
    // The reference as prediction is without fault; the field is a choice.
    let perfect = lines.iter().map(|line| {
        format!("{}\n", serde_json::json!({"reference": line["reference"], "copy": line["reference"]}))
    });
    job.write("perfect.jsonl", perfect.collect::<String>());
    let arguments = [
        "--input",
        "perfect.jsonl",
        "--prediction-field",
        "copy",
        "--metrics",
        "rougeL",
        "--output",
        "metrics.json",
    ];
    job.run("evaluate", &arguments).succeeded();
    assert_eq!(number(&job.json("metrics.json"), "/rougeL/value"), 100.0);
    job.run("evaluate", &["--input", "perfect.jsonl"]).refused(&["perfect.jsonl:1", "prediction"]);
}

#[test]
fn evaluate_knows_what_a_run_wrote() {
    let job = Job::new();
    let lines = r#"{"prompt": "a", "reference": "b", "before": "c", "after": "d"}
{"prompt": "a", "reference": "b", "before": "c", "after": "d"}
"#;
    job.write("predictions.jsonl", lines);
    let refused = job.run("evaluate", &["--input", "predictions.jsonl"]);
    refused
        .refused(&["no field \"prediction\"", "`--prediction-field after` or `--prediction-field before`"]);
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    job.run("evaluate", &["--input", "predictions.jsonl", "--prediction-field", "after"]).succeeded();
    job.write("predictions.jsonl", lines.replace(", \"after\": \"d\"", ""));
    let refused = job.run("evaluate", &["--input", "predictions.jsonl", "--prediction-field", "after"]);
    refused.refused(&["no field \"after\"", "give `--prediction-field before`\n"]);
    let fields = ["--prediction-field", "before", "--baseline-field", "after"];
    job.run("evaluate", &[&["--input", "predictions.jsonl"], &fields[..]].concat())
        .refused(&["give `--baseline-field before`"]);
    // A line that is bad in another way is shown as it is.
    job.write("predictions.jsonl", r#"{"reference": "b", "prediction": 3, "after": "d"}"#);
    job.run("evaluate", &["--input", "predictions.jsonl"]).refused(&["predictions.jsonl:1:", "a number"]);
}

fn score(job: &Job, arguments: &[&str]) -> (Vec<(f64, u64)>, f64) {
    let run = job.tool("score", &[&FILES[..], arguments].concat());
    run.succeeded();
    let perplexity = run.stdout.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let lines = job.json_lines("output.jsonl");
    let scores = lines.iter().map(|line| {
        assert_eq!(line.as_object().unwrap().len(), 2, "{line}");
        (number(line, "/nll"), line["target_tokens"].as_u64().unwrap())
    });
    (scores.collect(), perplexity)
}

#[test]
fn scores_come_in_order_and_do_not_depend_on_the_batch() {
    let job = job();
    let (scores, perplexity) = score(&job, &["--batch-size", "1"]);
    assert_eq!(scores.len(), PROMPTS.len());
    let nll: f64 = scores.iter().map(|(nll, _)| nll).sum();
    let targets: u64 = scores.iter().map(|(_, targets)| targets).sum();
    let expected = (nll / targets as f64).exp();
    assert!((perplexity / expected - 1.0).abs() < 1e-4, "{perplexity} {expected}");
    for batch_size in ["2", "3", "64"] {
        let (other, _) = score(&job, &["--batch-size", batch_size]);
        for ((nll, targets), (other_nll, other_targets)) in scores.iter().zip(&other) {
            assert_eq!(targets, other_targets);
            assert!((nll / other_nll - 1.0).abs() < 1e-5, "batch size {batch_size}: {nll} {other_nll}");
        }
    }
    let (adapted, _) = score(&job, &["--adapter", adapter()]);
    assert!(adapted.iter().zip(&scores).all(|(a, b)| a.0 != b.0 && a.1 == b.1), "the adapter is used");

    // The order is that of the file: turned round, the scores turn round.
    let reversed: Vec<_> = PROMPTS.iter().rev().copied().collect();
    job.write_examples("input.jsonl", &reversed);
    let (mut reversed, _) = score(&job, &["--batch-size", "1"]);
    reversed.reverse();
    assert_eq!(reversed, scores);
}

#[test]
fn import_makes_a_model_directory_once() {
    let job = Job::new();
    let gguf = tiny_gguf();
    let arguments = ["--gguf", gguf.to_str().unwrap(), "--output", "imported"];
    job.run("import", &arguments).succeeded();
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"]
    {
        assert!(job.path("imported").join(name).is_file(), "{name}");
    }
    let again = job.run("import", &arguments);
    assert!(again.succeeded().stdout.contains("already imported"), "{again}");
    job.write("cut.gguf", &std::fs::read(&gguf).unwrap()[..1000]);
    let cut = job.run("import", &["--gguf", "cut.gguf", "--output", "cut"]);
    cut.refused(&["cut.gguf: byte "]);
    job.run("import", &["--gguf", "absent.gguf", "--output", "cut"]).refused(&["absent.gguf"]);
    job.run("import", &["--gguf", gguf.to_str().unwrap(), "--output", "train.jsonl"])
        .refused(&["train.jsonl"]);
    assert!(!job.path("cut").exists());
}

#[test]
fn every_program_says_how_it_is_used() {
    let job = Job::new();
    for name in ["finetune", "generate", "score", "evaluate", "import"] {
        let help = job.run(name, &["--help"]);
        assert!(help.succeeded().stdout.contains(&format!("--example {name} -- ")), "{help}");
        job.run(name, &["--no-such-option"]).refused(&["--no-such-option"]);
        assert!(!help.stdout.contains("{\\"), "{help}");
        job.run(name, &[]).refused(&["required"]);
    }
    job.run("generate", &["--model", "model"]).refused(&["--prompt <TEXT>|--input <FILE>"]);
    job.run("generate", &["--model", "m", "--prompt", "a", "--input", "b", "--output", "c"])
        .refused(&["cannot be used with"]);
    let help = job.run("evaluate", &["--help"]);
    for name in ["rouge1", "rougeLsum", "bleu", "chrf"] {
        assert!(help.stdout.contains(name), "{name} is not in {help}");
    }
}

#[test]
fn evaluate_tells_what_changed_with_its_paired_interval() {
    let job = Job::new();
    let lines = |texts: [[&str; 3]; 4]| {
        let line = |[reference, before, after]: [&str; 3]| {
            format!("{}\n", serde_json::json!({"reference": reference, "before": before, "after": after}))
        };
        texts.map(line).concat()
    };
    let texts = [["a b", "a x", "a b"], ["c d", "x y", "c x"], ["e f", "e x", "e f"], ["g h", "g h", "g h"]];
    job.write("both.jsonl", lines(texts));
    let after = ["--input", "both.jsonl", "--prediction-field", "after", "--metrics", "rouge1,bleu"];
    let run =
        job.run("evaluate", &[&after[..], &["--baseline-field", "before", "--output", "m.json"]].concat());
    let stdout = run.succeeded().stdout.clone();
    let metrics = job.json("m.json");
    let [before, value, change, low, high] =
        ["before/value", "after/value", "change/value", "change/low", "change/high"]
            .map(|key| number(&metrics, &format!("/rouge1/{key}")));
    assert_eq!((before, value, change), (50.0, 87.5, 37.5));
    // By example +50, +50, +50 and 0: no resample goes beyond these, though each score alone is far more uncertain.
    assert!(0.0 <= low && low < change && change < high && high <= 50.0, "{metrics}");
    assert!(stdout.contains(&format!("+37.50 [{low:+.2}, {high:+.2}]")), "{stdout}");
    assert!(metrics["bleu"]["change"]["high"].is_number(), "{metrics}");

    // The same from two files, each with its field; of one file and one field the other default is the same.
    job.write("base.jsonl", lines(texts).replace("after", "other"));
    let files = ["--baseline", "base.jsonl", "--baseline-field", "before", "--output", "two.json"];
    job.run("evaluate", &[&after[..], &files].concat()).succeeded();
    assert_eq!(job.json("two.json"), metrics);
    job.run("evaluate", &[&after[..], &["--baseline", "both.jsonl", "--output", "two.json"]].concat())
        .succeeded();
    assert_eq!(number(&job.json("two.json"), "/rouge1/change/value"), 0.0);

    // Predictions of other examples, or of fewer, are named with file and line, and nothing is written.
    let refused = |baseline: [[&str; 3]; 4], keep: usize, said: &[&str]| {
        let kept: String = lines(baseline).split_inclusive('\n').take(keep).collect();
        job.write("base.jsonl", kept);
        let files = ["--baseline", "base.jsonl", "--output", "never.json"];
        job.run("evaluate", &[&after[..], &files].concat()).refused(said);
        assert!(!job.path("never.json").exists());
    };
    let mut other = texts;
    other[2][0] = "elsewhere";
    refused(other, 4, &["base.jsonl: line 3:", "\"elsewhere\" before", "\"e f\" after", "same order"]);
    refused(texts, 3, &["both.jsonl: line 4:", "no more predictions before"]);
    job.run("evaluate", &[&after[..], &["--baseline-field", "absent"]].concat())
        .refused(&["both.jsonl:1", "absent"]);
    job.run("evaluate", &[&after[..], &["--baseline", "base.jsonl", "--output", "base.jsonl"]].concat())
        .refused(&["base.jsonl", "the input as well"]);
}
