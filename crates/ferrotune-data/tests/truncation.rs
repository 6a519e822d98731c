//! What is kept of examples that are too long, against TRL, and what is said of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::path::{Path, PathBuf};

use ferrotune_data::{
    Error, Example, IGNORE, OnError, Source, TextTokenizer, TokenizeOptions, Tokenized, Truncation,
    prompt_ids_with, read_examples, tokenize_with,
};
use proptest::prelude::*;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The examples of the tokenizer fixture, through a file, as a user gives them.
fn examples() -> Vec<Example> {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/tokenizer/expected.json")).unwrap();
    let rows = fixture["examples"].as_array().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("examples.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    read_examples(&path, None).unwrap()
}

fn tokenizer(model: &str) -> TextTokenizer {
    TextTokenizer::from_dir(&fixtures().join("tokenizer").join(model)).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn keeps_what_trl_keeps() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/truncation/expected.json")).unwrap();
    let examples = examples();
    let (mut cut, mut left_out) = (0, 0);
    for case in fixture["cases"].as_array().unwrap() {
        let tokenizer = tokenizer(case["model"].as_str().unwrap());
        let places: Vec<usize> = numbers(&case["examples"]);
        let chosen: Vec<Example> = places.iter().map(|place| examples[*place].clone()).collect();
        let options = TokenizeOptions {
            max_length: case["max_length"].as_u64().unwrap() as usize,
            truncation: Truncation::from_name(case["truncation"].as_str().unwrap()).unwrap(),
            on_error: OnError::Strict,
        };
        let expected = case["rows"].as_array().unwrap();
        if expected.is_empty() {
            let error = tokenize_with(&chosen, &tokenizer, &options).unwrap_err();
            assert!(matches!(error, Error::NothingLeft { .. }), "{options:?}: {error}");
            continue;
        }
        let found = tokenize_with(&chosen, &tokenizer, &options).unwrap();
        assert_eq!(found.rows.len(), expected.len(), "{options:?}");
        for (row, expected) in found.rows.iter().zip(expected) {
            assert_eq!(row.input_ids, numbers::<u32>(&expected["input_ids"]), "{options:?}");
            assert_eq!(row.labels, numbers::<i64>(&expected["labels"]), "{options:?}");
        }
        cut += found.long.cut().count();
        left_out += found.long.left_out();
    }
    assert!(cut > 20 && left_out > 5, "the fixture shows too little: {cut} cut, {left_out} left out");
}

fn row(line: usize, prompt: usize, completion: usize) -> Tokenized {
    let tokens = prompt + completion;
    Tokenized {
        input_ids: (0..tokens as u32).collect(),
        labels: (0..tokens).map(|t| if t < prompt { IGNORE } else { t as i64 }).collect(),
        source: Source { file: Path::new("train.jsonl").into(), line },
    }
}

#[test]
fn each_choice_says_what_it_did() {
    let rows = || vec![row(1, 2, 2), row(2, 3, 4), row(3, 6, 2), row(4, 1, 9)];
    let said = |truncation: Truncation| {
        let (rows, long) = truncation.apply(rows(), 5).unwrap();
        let kept: Vec<(usize, Vec<u32>)> =
            rows.into_iter().map(|row| (row.source.line, row.input_ids)).collect();
        (kept, long.to_string())
    };
    let first = |tokens: u32| (0..tokens).collect::<Vec<_>>();
    let last = |tokens: u32| (tokens - 5..tokens).collect::<Vec<_>>();

    let error = Truncation::Error.apply(rows(), 5).unwrap_err();
    assert!(matches!(&error, Error::TooLong { long } if long.examples.len() == 3));
    assert_eq!(
        error.to_string(),
        "3 examples have more than max_length = 5 tokens: shorten or remove them, raise max_length, or set truncation = \
         \"drop\" (leaves them out), \"keep_start\" or \"keep_end\" (cuts them)\n  \
         train.jsonl:2: 7 tokens, 4 of them targets\n  train.jsonl:3: 8 tokens, 2 of them targets\n  \
         train.jsonl:4: 10 tokens, 9 of them targets"
    );
    assert_eq!(
        said(Truncation::Drop),
        (
            vec![(1, first(4))],
            "3 examples have more than max_length = 5 tokens: left out, with 15 target tokens\n  \
             train.jsonl:2: 7 tokens, 4 of them targets\n  train.jsonl:3: 8 tokens, 2 of them targets\n  \
             train.jsonl:4: 10 tokens, 9 of them targets"
                .to_string()
        )
    );
    assert_eq!(
        said(Truncation::KeepStart),
        (
            vec![(1, first(4)), (2, first(5)), (4, first(5))],
            "3 examples have more than max_length = 5 tokens: cut to the first 5 tokens; 9 of their 15 target tokens are \
             lost; 1 left out, for no target is left\n  \
             train.jsonl:2: 7 tokens, 2 of 4 targets lost\n  train.jsonl:3: 8 tokens, 2 of 2 targets lost: left out\n  \
             train.jsonl:4: 10 tokens, 5 of 9 targets lost"
                .to_string()
        )
    );
    // The first token that is kept has nothing before it to be predicted from: a target less where it was one.
    assert_eq!(
        said(Truncation::KeepEnd),
        (
            vec![(1, first(4)), (2, last(7)), (3, last(8)), (4, last(10))],
            "3 examples have more than max_length = 5 tokens: cut to the last 5 tokens; 5 of their 15 target tokens are \
             lost\n  train.jsonl:2: 7 tokens, 0 of 4 targets lost\n  train.jsonl:3: 8 tokens, 0 of 2 targets lost\n  \
             train.jsonl:4: 10 tokens, 5 of 9 targets lost"
                .to_string()
        )
    );
    let many = (1..=30).map(|line| row(line, 5, 5)).collect();
    let text = Truncation::Drop.apply(many, 9).unwrap().1.to_string();
    assert!(text.ends_with("train.jsonl:20: 10 tokens, 5 of them targets\n  ... and 10 more"), "{text}");
    for truncation in Truncation::ALL {
        assert_eq!(Truncation::from_name(truncation.name()), Some(truncation));
        assert!(truncation.apply(rows(), 10).unwrap().1.is_empty());
    }
    assert_eq!(Truncation::from_name("keep"), None);
}

/// A folder like that of `chatml`, whose template refuses what holds `word`.
fn refusing(word: &str) -> TextTokenizer {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures().join("tokenizer/chatml").join(name), dir.path().join(name)).unwrap();
    }
    let template = format!(
        "{{% for m in messages %}}{{% if '{word}' in m.content %}}{{{{ raise_exception('no {word}') }}}}{{% endif %}}\
         {{{{ m.content }}}}|{{% endfor %}}"
    );
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    TextTokenizer::from_dir(dir.path()).unwrap()
}

fn read(lines: &[&str]) -> Vec<Example> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.jsonl");
    let line = |text: &&str| format!("{{\"instruction\": \"{text}\", \"output\": \"some words\"}}\n");
    std::fs::write(&path, lines.iter().map(line).collect::<String>()).unwrap();
    read_examples(&path, None).unwrap()
}

#[test]
fn examples_that_the_template_refuses_can_be_skipped() {
    let tokenizer = refusing("tea");
    let examples = read(&["coffee", "tea", "milk", "tea and milk"]);
    let strict = TokenizeOptions::strict(100);
    let error = tokenize_with(&examples, &tokenizer, &strict).unwrap_err();
    assert!(matches!(error, Error::BadExamples { total: 2, .. }), "{error}");

    let skip = TokenizeOptions { on_error: OnError::Skip, ..strict };
    let found = tokenize_with(&examples, &tokenizer, &skip).unwrap();
    assert_eq!(found.rows.iter().map(|row| row.source.line).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(found.refused.total, 2);
    assert!(
        found.refused.to_string().contains("train.jsonl:2: the chat template refuses the messages: no tea")
    );

    let prompts = prompt_ids_with(&examples, &tokenizer, OnError::Skip).unwrap();
    let there: Vec<bool> = prompts.prompts.iter().map(Option::is_some).collect();
    assert_eq!((there, prompts.refused.total), (vec![true, false, true, false], 2));

    // What is refused and what is too long are told together.
    let error = tokenize_with(&examples, &tokenizer, &TokenizeOptions::strict(3)).unwrap_err();
    let Error::Several { errors } = &error else { panic!("{error}") };
    assert!(matches!(errors[..], [Error::BadExamples { total: 2, .. }, Error::TooLong { .. }]), "{error}");

    let all = read(&["tea", "more tea"]);
    for error in [
        tokenize_with(&all, &tokenizer, &skip).map(drop).unwrap_err(),
        prompt_ids_with(&all, &tokenizer, OnError::Skip).map(drop).unwrap_err(),
    ] {
        let Error::NothingLeft { path, cause } = &error else { panic!("{error}") };
        assert!(path.ends_with("train.jsonl") && matches!(**cause, Error::BadExamples { total: 2, .. }));
    }
    let drop_all = TokenizeOptions { max_length: 2, truncation: Truncation::Drop, ..skip };
    let error = tokenize_with(&examples, &tokenizer, &drop_all).unwrap_err();
    assert!(
        matches!(&error, Error::NothingLeft { cause, .. } if matches!(**cause, Error::TooLong { .. })),
        "{error}"
    );
}

#[test]
fn no_examples_are_no_error() {
    let tokenizer = tokenizer("chatml");
    let options = TokenizeOptions { on_error: OnError::Skip, ..TokenizeOptions::strict(10) };
    assert!(tokenize_with(&[], &tokenizer, &options).unwrap().rows.is_empty());
    assert!(prompt_ids_with(&[], &tokenizer, OnError::Skip).unwrap().prompts.is_empty());
}

proptest! {
    #[test]
    fn rows_fit_and_every_target_is_kept_or_counted(
        shapes in proptest::collection::vec((0usize..12, 0usize..12), 0..12),
        max_length in 1usize..16,
        choice in 1usize..4,
    ) {
        let rows: Vec<Tokenized> =
            shapes.iter().enumerate().map(|(line, (prompt, completion))| row(line, *prompt, *completion)).collect();
        let before: usize = rows.iter().map(Tokenized::target_tokens).sum();
        let (kept, long) = Truncation::ALL[choice].apply(rows.clone(), max_length).unwrap();
        prop_assert!(kept.iter().all(|row| row.input_ids.len() <= max_length));
        prop_assert!(kept.iter().all(|row| row.input_ids.len() == row.labels.len()));
        let after: usize = kept.iter().map(Tokenized::target_tokens).sum();
        prop_assert_eq!(before, after + long.targets_lost());
        prop_assert_eq!(rows.len(), kept.len() + long.left_out());
        prop_assert!(kept.is_sorted_by_key(|row| row.source.line));
    }
}
