//! What is wrong with a data file.

use crate::{GOOD, common::Job, refused};

#[test]
fn bad_lines_are_named_all_at_once() {
    let job = Job::new();
    let mut lines: Vec<Vec<u8>> = [
        GOOD,
        "not JSON",
        r#"{"instruction": "cut off"#,
        r#"{"instruction": "a", "output": "b"} {"instruction": "c", "output": "d"}"#,
        "{\"instruction\": \"a\0b\", \"output\": \"c\"}",
        r#"{"instruction": "\ud800", "output": "b"}"#,
        r#"{"instruction": "a", "instruction": "b", "output": "c"}"#,
        r#"{"instruction": "a"}"#,
        r#"{"instruction": "", "output": "b"}"#,
        r#"{"instruction": "a", "output": null}"#,
        r#"{"instruction": "a", "output": 5}"#,
        r#"["a", "b"]"#,
    ]
    .iter()
    .map(|line| line.as_bytes().to_vec())
    .collect();
    lines.push(b"{\"instruction\": \"\xff\", \"output\": \"b\"}".to_vec());
    lines.push([vec![b'['; 100_000], vec![b']'; 100_000]].concat());
    job.write("train.jsonl", lines.join(&b'\n'));
    let run = refused(&job, &[], &["13 bad lines", "`output`", "UTF-8", "a number"]);
    for line in 2..=14 {
        assert!(run.stderr.contains(&format!("train.jsonl:{line}:")), "line {line}: {run}");
    }
    assert!(run.stderr.len() < 10_000, "{run}");

    job.write("train.jsonl", "nonsense\n".repeat(100));
    let run = refused(&job, &[], &["100 bad lines", "train.jsonl:20:1: ", "and 80 more"]);
    assert!(!run.stderr.contains("train.jsonl:21:"), "{run}");

    // The same for the other files, and for the tools.
    job.write_examples("train.jsonl", &[("a", "b")]);
    job.write("validation.jsonl", format!("{GOOD}\n{{\n"));
    refused(&job, &[], &["validation.jsonl:2:"]);
    job.write("test.jsonl", "{}");
    job.write_examples("validation.jsonl", &[("a", "b")]);
    refused(&job, &[], &["test.jsonl:1:1: expected the fields `instruction` and `output`"]);
    for tool in ["generate", "score"] {
        job.tool(tool, &["--input", "test.jsonl", "--output", "o.jsonl"]).refused(&["test.jsonl:1:1: "]);
        assert!(!job.path("o.jsonl").exists());
    }
}

#[test]
fn a_byte_order_mark_and_crlf_are_no_mistakes() {
    let job = Job::new();
    job.write("train.jsonl", format!("\u{feff}{GOOD}\r\n{GOOD}\r\n"));
    job.finetune(&["training.max_steps=1", "evaluation.before=false", "evaluation.after=false"]).succeeded();
}

#[test]
fn empty_and_missing_data_are_told_before_the_model_is_read() {
    let job = Job::new();
    job.write("train.jsonl", "");
    refused(&job, &[], &["train.jsonl", "no examples"]);
    job.write("train.jsonl", "\n\n");
    refused(&job, &[], &["train.jsonl", "no examples"]);
    refused(
        &job,
        &["data.train=absent.jsonl", "data.test=nowhere/test.jsonl", "model.path=gone"],
        &["absent.jsonl", "nowhere/test.jsonl", "\"gone\"", "does not exist", "3 problems"],
    );
    refused(&job, &["data.train=."], &["`data.train`", "is a folder"]);
    for tool in ["generate", "score"] {
        let run = job.tool(tool, &["--input", "absent.jsonl", "--output", "o.jsonl"]);
        run.refused(&["absent.jsonl"]);
    }
    job.run("evaluate", &["--input", "absent.jsonl"]).refused(&["absent.jsonl"]);
    job.run("finetune", &["absent.toml"]).refused(&["absent.toml"]);
}

#[test]
fn examples_that_are_too_long_are_named() {
    let job = Job::new();
    let long = "one two three ".repeat(40);
    job.write_examples("train.jsonl", &[("a", "b"), ("the cat", &long), ("c", "d"), (&long, "e")]);
    refused(
        &job,
        &["data.max_length=100"],
        &["train.jsonl:2: ", "train.jsonl:4: ", "max_length = 100", "raise"],
    );
    // Beyond the model's context no setting helps.
    let run =
        refused(&job, &["data.max_length=4096"], &["train.jsonl:2: ", "train.jsonl:4: ", "context of 128"]);
    assert!(!run.stderr.contains("max_length"), "{run}");
    job.write_examples("train.jsonl", &[("a", "b")]);
    job.write_examples("test.jsonl", &[("a", "b"), (&long, "b")]);
    refused(&job, &[], &["test.jsonl:2: ", "context of 128", "max_new_tokens"]);
    refused(
        &job,
        &["generation.max_new_tokens=500"],
        &["test.jsonl:1: ", "context of 128", "max_new_tokens"],
    );
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.tool("score", &files).refused(&["test.jsonl:2: ", "context of 128"]);
    let run = job.tool("generate", &[&files[..], &["--max-new-tokens", "20"]].concat());
    run.refused(&["test.jsonl:2: ", "context of 128"]);
    job.tool("generate", &["--prompt", &long]).refused(&["--prompt", "context of 128"]);
    assert!(!job.path("o.jsonl").exists());
}
