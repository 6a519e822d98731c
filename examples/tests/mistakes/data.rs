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

    // All files in one run, and the same for the tools.
    job.write("validation.jsonl", format!("{GOOD}\n{{\n"));
    job.write("test.jsonl", "{}");
    refused(
        &job,
        &[],
        &[
            "100 bad lines",
            "validation.jsonl:2:",
            "test.jsonl:1:1: expected the fields `instruction` and `output`",
        ],
    );
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
        &["train.jsonl:2: ", "train.jsonl:4: ", "max_length = 100", "raise", "truncation = \"drop\""],
    );
    // Beyond the model's context a higher limit does not help.
    for truncation in ["data.truncation=error", "data.truncation=keep_start"] {
        let run = refused(
            &job,
            &["data.max_length=4096", truncation],
            &["train.jsonl:2: ", "train.jsonl:4: ", "context of 128", "`data.truncation`"],
        );
        assert!(!run.stderr.contains("raise"), "{run}");
    }
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

const QUICK: [&str; 3] = ["training.max_steps=1", "evaluation.before=false", "evaluation.after=false"];

#[test]
fn files_of_another_kind_and_pipes_are_told_at_once() {
    let job = Job::new();
    for (content, words) in [
        (&b"\xff\xfe{\0\"\0"[..], ["UTF-16", "iconv"]),
        (b"\x1f\x8b\x08\0\0", ["gzip", "unpack"]),
        (b"PAR1\x15\x04", ["Parquet", "to_json"]),
        (b"[\n  {\"instruction\": \"a\"}\n]\n", ["JSON array", "jq -c '.[]'"]),
        (b"instruction,output\na,b\n", ["CSV", "read_csv"]),
    ] {
        job.write("train.jsonl", content);
        refused(&job, &[], &[&["train.jsonl: expected one JSON object a line"], &words[..]].concat());
    }
    job.write("train.jsonl", format!("{GOOD}\r{GOOD}\r"));
    refused(&job, &[], &["train.jsonl:1:", "carriage return"]);
    refused(&job, &["data.train=/dev/zero"], &["`data.train`", "/dev/zero", "a pipe, a socket or a device"]);
    job.tool("score", &["--input", "/dev/zero", "--output", "o.jsonl"])
        .refused(&["/dev/zero", "regular file"]);
}

#[test]
fn conversations_that_are_no_example_are_named() {
    let job = Job::new();
    let user = r#"{"role": "user", "content": "a"}"#;
    let assistant = r#"{"role": "assistant", "content": "b"}"#;
    let lines = [
        format!(r#"{{"messages": [{user}, {{"role": "asistant", "content": "b"}}]}}"#),
        r#"{"messages": []}"#.to_owned(),
        format!(r#"{{"messages": [{user}]}}"#),
        format!(r#"{{"messages": [{assistant}]}}"#),
        format!(r#"{{"prompt": [{user}], "completion": "b"}}"#),
        format!(r#"{{"messages": [{user}, {assistant}], "prompt": "a", "completion": "b"}}"#),
    ];
    job.write("train.jsonl", lines.join("\n"));
    let run = refused(&job, &[], &["6 bad lines", "`asistant`", "an empty list", "as in `prompt`"]);
    for line in 1..=6 {
        assert!(run.stderr.contains(&format!("train.jsonl:{line}:")), "line {line}: {run}");
    }
}

#[test]
fn bad_lines_and_refused_examples_are_skipped_and_said_on_request() {
    let job = Job::new();
    let template = job.own_model().join("chat_template.jinja");
    let refusing = "{% for m in messages %}{% if 'log' in m.content %}{{ raise_exception('no logs') }}{% endif %}{% endfor %}";
    std::fs::write(&template, format!("{refusing}{}", crate::common::CHAT_TEMPLATE)).unwrap();
    for file in ["train.jsonl", "validation.jsonl", "test.jsonl"] {
        job.write(file, format!("nonsense\n{}", job.read(file)));
    }
    let run = refused(&job, &[], &["train.jsonl:1:1: ", "validation.jsonl:1:1: ", "test.jsonl:1:1: "]);
    assert!(!run.stderr.contains("no logs"), "the model is not read: {run}");

    let run = job.finetune(&[&QUICK[..], &["data.on_error=skip", "evaluation.after=true"]].concat());
    run.succeeded();
    for words in [
        "train.jsonl: 1 bad line was skipped\n  train.jsonl:1:1: expected a JSON value, found `n`",
        "train.jsonl: 1 example that the chat template or the tokenizer refuses was skipped\n  train.jsonl:3: ",
        "validation.jsonl: 1 bad line was skipped",
        "validation.jsonl: 1 example that",
        "test.jsonl: 1 bad line was skipped",
        "no logs",
    ] {
        assert!(run.stderr.contains(words), "{words}: {run}");
    }
    let metrics = job.json("out/metrics.json");
    for (path, expected) in [
        ("/data/train/examples", 3),
        ("/data/train/skipped", 2),
        ("/data/validation/skipped", 2),
        ("/data/validation/examples", 1),
        ("/data/test/examples", 3),
        ("/data/test/skipped", 1),
        ("/data/train/too_long", 0),
    ] {
        assert_eq!(metrics.pointer(path), Some(&expected.into()), "{path}: {metrics:#}");
    }
    assert_eq!(job.json_lines("out/predictions.jsonl").len(), 3);
    assert!(job.read("out/report.html").contains("Left out"));
    assert!(job.read("out/recipe.toml").contains("on_error = \"skip\""));

    // Nothing left is an error, whatever took it.
    std::fs::remove_dir_all(job.path("out")).unwrap();
    job.write("test.jsonl", "nonsense\n");
    refused(&job, &["data.on_error=skip"], &["test.jsonl: nothing is left of it: 1 bad line"]);
    job.write_examples("test.jsonl", &[("log", "b")]);
    let words = ["test.jsonl: nothing is left of it: 1 bad example", "no logs"];
    refused(&job, &["data.on_error=skip"], &words);
}

#[test]
fn long_examples_are_dropped_or_cut_and_said_on_request() {
    let job = Job::new();
    let long = "one two three ".repeat(20);
    job.write_examples("train.jsonl", &[("a", "b"), ("the cat", &long), ("c", "d"), (&long, "e")]);
    job.write_examples("validation.jsonl", &[(&long, &long), ("c", "d")]);
    for (truncation, said, used, cut, left_out) in [
        ("drop", "left out, with ", 2, 0, 2),
        ("keep_start", "cut to the first 50 tokens; ", 3, 1, 1),
        ("keep_end", "cut to the last 50 tokens; ", 4, 2, 0),
    ] {
        let truncation = format!("data.truncation={truncation}");
        let settings = ["data.max_length=50", &truncation, "overwrite_output_dir=true"];
        let run = job.finetune(&[&QUICK[..], &settings].concat());
        run.succeeded();
        let headline = format!("train.jsonl: 2 examples have more than max_length = 50 tokens: {said}");
        for words in
            [&headline, "  train.jsonl:2: ", "  train.jsonl:4: ", "validation.jsonl: 1 example has more"]
        {
            assert!(run.stderr.contains(words), "{words}: {run}");
        }
        assert_eq!(run.stderr.matches("train.jsonl: 2 examples have").count(), 1, "{run}");
        let train = &job.json("out/metrics.json")["data"]["train"];
        let expected = serde_json::json!([used, 2, cut, left_out]);
        assert_eq!(
            serde_json::json!([train["examples"], train["too_long"], train["cut"], train["left_out"]]),
            expected,
            "{train}"
        );
        assert_eq!(
            train["target_tokens_lost"].as_u64().unwrap() > 0,
            truncation != "data.truncation=keep_end" || cut > 0
        );
    }
    std::fs::remove_dir_all(job.path("out")).unwrap();
    job.write_examples("train.jsonl", &[(&long, "a")]);
    for truncation in ["drop", "keep_start"] {
        let truncation = format!("data.truncation={truncation}");
        let words = ["train.jsonl: nothing is left of it: 1 example has more than max_length = 50 tokens"];
        refused(&job, &["data.max_length=50", &truncation], &words);
    }
}
