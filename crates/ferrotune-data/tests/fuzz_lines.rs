//! Damaged data files: never a panic, every problem at a place that exists, and the same verdict with either choice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use ferrotune_data::{Error, Example, LineProblem, OnError, Problems, read_examples_with};
use proptest::prelude::*;

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

const LINES: [&str; 5] = [
    r#"{"instruction": "Name a colour.", "input": null, "output": "Blue \u00e9\ud83d\ude00\n", "id": [1, -2.5e3, true]}"#,
    r#"{"prompt": "1 + 1 =", "completion": " 2", "meta": {"a": {"b": []}}}"#,
    r#"{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "hé"}, {"role": "assistant", "content": "ho"}]}"#,
    r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
    r#"{"system": "Be brief.", "instruction": "Add.", "output": "3", "tools": []}"#,
];

const PIECES: [&[u8]; 20] = [
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\"",
    b"\\",
    b"\\ud800",
    b"\\u12",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"\"prompt\": 1, ",
    b"\xe2\x80\xa8",
];

#[derive(Clone, Debug)]
enum Edit {
    Flip(u8),
    Cut(u8),
    Insert(usize),
    Repeat(u8, u16),
    Splice(u16, u8),
}

fn edit() -> impl Strategy<Value = (u16, Edit)> {
    let edit = prop_oneof![
        (0u8..8).prop_map(Edit::Flip),
        any::<u8>().prop_map(Edit::Cut),
        (0..PIECES.len()).prop_map(Edit::Insert),
        (1u8..16, 1u16..3000).prop_map(|(length, times)| Edit::Repeat(length, times)),
        any::<(u16, u8)>().prop_map(|(from, length)| Edit::Splice(from, length)),
    ];
    (any::<u16>(), edit)
}

fn apply(bytes: &mut Vec<u8>, at: u16, edit: &Edit) {
    let place = |number: u16, bytes: &[u8]| usize::from(number) % (bytes.len() + 1);
    let at = place(at, bytes);
    let end = |length: usize| (at + length).min(bytes.len());
    match edit {
        Edit::Flip(bit) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        Edit::Cut(length) => drop(bytes.drain(at..end(usize::from(*length)))),
        Edit::Insert(piece) => drop(bytes.splice(at..at, PIECES[*piece].iter().copied())),
        Edit::Repeat(length, times) => {
            let run = bytes[at..end(usize::from(*length))].repeat(usize::from(*times));
            bytes.splice(at..at, run);
        }
        Edit::Splice(from, length) => {
            let from = place(*from, bytes);
            let piece = bytes[from..(from + usize::from(*length)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

type Outcome = Result<(Vec<Example>, Problems<LineProblem>), Error>;

/// The file read with either choice.
fn read(bytes: &[u8]) -> [Outcome; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, bytes).unwrap();
    [OnError::Strict, OnError::Skip].map(|on_error| read_examples_with(&path, None, on_error))
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn damaged_files_are_read_or_refused_line_by_line(edits in proptest::collection::vec(edit(), 0..8)) {
        let mut bytes = LINES.join("\n").into_bytes();
        for (at, edit) in &edits {
            apply(&mut bytes, *at, edit);
        }
        let [strict, skip] = read(&bytes);
        // What a person sees in an editor.
        let shown: Vec<String> =
            bytes.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        if let Err(Error::BadLines { problems, total }) = &strict {
            prop_assert!(*total >= problems.len() && !problems.is_empty());
            for problem in problems {
                let line = shown.get(problem.source.line - 1);
                prop_assert!(line.is_some_and(|line| problem.column <= line.chars().count() + 1), "{}", problem);
                prop_assert!(problem.to_string().chars().count() < 500, "{}", problem);
            }
        }
        match (strict, skip) {
            (Ok((all, none)), Ok((same, no_problems))) => {
                prop_assert_eq!(all, same);
                prop_assert!(none.is_empty() && no_problems.is_empty());
            }
            (Err(Error::BadLines { total, .. }), Ok((kept, skipped))) => {
                prop_assert!(!kept.is_empty() && skipped.total == total);
            }
            (Err(Error::BadLines { .. }), Err(Error::NothingLeft { .. })) => {}
            (Err(a), Err(b)) => {
                prop_assert!(matches!(&a, Error::NotJsonLines { .. } | Error::EmptyFile { .. }), "{}", a);
                prop_assert_eq!(a.to_string(), b.to_string());
            }
            (strict, skip) => prop_assert!(false, "{:?} but {:?}", strict, skip),
        }
    }

    #[test]
    fn noise_is_no_crash(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for outcome in read(&bytes) {
            prop_assert!(outcome.err().is_none_or(|error| error.to_string().len() < 20_000));
        }
    }
}
