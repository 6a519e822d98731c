//! What is counted before a run, and which runs are refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::path::Path;

use ferrotune_data::{Error, IGNORE, Preflight, Source, Spread, TextTokenizer, Tokenized};

fn tokenizer() -> TextTokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/chatml");
    TextTokenizer::from_dir(&dir).unwrap()
}

/// A row of which the tokens from `start` are targets.
fn row(line: usize, text: &str, start: usize) -> Tokenized {
    let input_ids = tokenizer().encode(text, false).unwrap();
    let label = |(t, id): (usize, &u32)| if t < start { IGNORE } else { i64::from(*id) };
    let labels = input_ids.iter().enumerate().map(label).collect();
    Tokenized { input_ids, labels, source: Source { file: Path::new("train.jsonl").into(), line } }
}

#[test]
fn counts_rows_tokens_and_targets() {
    let stop = tokenizer().eos_token_id().unwrap();
    let rows = [row(1, "1234", 9), row(2, "12345<|stop|>", 3), row(3, "12", 0), row(4, "123<|stop|>5", 4)];
    let report = Preflight::new(&rows, &tokenizer(), &[7, stop], 5).unwrap();
    assert_eq!((report.rows, report.tokens, report.targets), (4, 17, 5));
    assert_eq!(report.tokens_per_row, Spread { min: 2, median: 4, max: 6 });
    assert_eq!(report.targets_per_row, Spread { min: 0, median: 1, max: 3 });
    assert_eq!(report.rows_without_target, [rows[0].source.clone()]);
    assert_eq!(report.rows_cut, [rows[1].source.clone()]);
    // Row 4 has the stop token as context only.
    assert_eq!(report.rows_with_stop_target, 1);
    assert_eq!(report.marked_source, Some(rows[1].source.clone()));
    assert_eq!(report.marked_example, "123⟦45<|stop|>⟧");
    report.check().unwrap();
    let text = report.to_string();
    assert!(text.contains("targets   5, 29.4 % of the tokens (min 0, median 1, max 3 per row)"), "{text}");
    assert!(text.contains("no target 1 row: train.jsonl:1\n"), "{text}");
    assert!(text.contains("cut       1 row: train.jsonl:2\n"), "{text}");
    assert!(text.contains("stop      trained in 1 of 4 rows"), "{text}");
    assert!(text.contains("example   train.jsonl:2, trained text in ⟦ ⟧:\n  | 123⟦45<|stop|>⟧\n"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rows_without_target"], serde_json::json!(["train.jsonl:1"]));
    assert_eq!(json["targets_per_row"]["median"], 1);
}

#[test]
fn a_run_that_would_learn_nothing_is_refused() {
    let error = Preflight::new(&[], &tokenizer(), &[], 5).unwrap().check().unwrap_err();
    assert_eq!(error.to_string(), "there is nothing to learn: no examples");
    // The label of a first token is no target.
    let rows = [row(1, "123", 9), row(2, "1", 0)];
    let report = Preflight::new(&rows, &tokenizer(), &[], 5).unwrap();
    let error = report.check().unwrap_err();
    assert!(matches!(&error, Error::NothingToLearn { rows: 2, without_target } if without_target.len() == 2));
    let text = error.to_string();
    assert!(
        text.contains("none of the 2 rows has a target token (train.jsonl:1, train.jsonl:2): "),
        "{text}"
    );
    assert_eq!(report.marked_example, "123");
}

#[test]
fn a_missing_stop_token_is_said() {
    let rows = [row(1, "123", 1)];
    let report = |stop: &[u32]| Preflight::new(&rows, &tokenizer(), stop, 5).unwrap().to_string();
    assert!(report(&[2]).contains("stop      not trained: the model will not learn to end its answer"));
    assert!(report(&[]).contains("stop      not known: no stop token was given"));
    let all = Preflight::new(&[row(1, "1<|stop|>", 1)], &tokenizer(), &[2], 5).unwrap().to_string();
    assert!(all.contains("stop      trained in every row"), "{all}");
}

#[test]
fn the_marked_text_is_the_text_of_the_row() {
    let tokenizer = tokenizer();
    let mut marked = row(1, "naïve, 1234567", 9);
    marked.labels[10] = IGNORE;
    let text = Preflight::marked_text(&marked, &tokenizer).unwrap();
    assert_eq!(text, "naïve, 1234⟦5⟧6⟦7⟧");
    // A border within the bytes of a character.
    let split = row(1, "世", 1);
    assert!(split.input_ids.len() > 1);
    let text = Preflight::marked_text(&split, &tokenizer).unwrap();
    assert!(text.contains('\u{fffd}'), "{text}");
}

#[test]
fn rows_with_too_few_labels_are_refused() {
    let mut bad = row(3, "123", 0);
    bad.labels.pop();
    let error = Preflight::new(&[bad], &tokenizer(), &[], 5).unwrap_err();
    assert!(matches!(error, Error::LabelCount { tokens: 3, labels: 2, .. }));
    assert_eq!(
        error.to_string(),
        "train.jsonl:3: 3 tokens but 2 labels: every token needs one label (-100 for no target)"
    );
}
