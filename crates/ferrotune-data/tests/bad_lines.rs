//! Every form of example, and every way a line can be bad.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::path::Path;

use ferrotune_data::{
    Completion, Error, Example, MAX_LINE_BYTES, MAX_LISTED, Message, OnError, Prompt, read_examples,
    read_examples_with, read_records,
};

fn read(content: impl AsRef<[u8]>) -> Result<Vec<Example>, Error> {
    read_first(content, None)
}

fn read_first(content: impl AsRef<[u8]>, limit: Option<usize>) -> Result<Vec<Example>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, content).unwrap();
    read_examples(&path, limit)
}

fn chat(messages: &[(&str, &str)]) -> Vec<Message> {
    messages.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

#[track_caller]
fn one(line: &str) -> (Prompt, Completion) {
    let mut examples = read(line).unwrap();
    assert_eq!(examples.len(), 1);
    let Example { prompt, completion, source } = examples.remove(0);
    assert_eq!(source.line, 1);
    (prompt, completion)
}

#[test]
fn every_form_is_read() {
    let answer = |text| Completion::Messages(chat(&[("assistant", text)]));
    let conversation = |messages: &[(&str, &str)]| Prompt::Messages(chat(messages));
    assert_eq!(
        one(r#"{"instruction": "Add.", "output": "3", "package": ["x"], "input": null, "system": " "}"#),
        (conversation(&[("user", "Add.")]), answer("3"))
    );
    assert_eq!(
        one(r#"{"system": "Be brief.", "input": "1 + 2", "instruction": "Add.", "output": " 3\n"}"#),
        (conversation(&[("system", "Be brief."), ("user", "Add.\n\n1 + 2")]), answer(" 3\n"))
    );
    assert_eq!(
        one(r#"{"prompt": "a ", "completion": " b", "tools": [1]}"#),
        (Prompt::Text("a ".into()), Completion::Text(" b".into()))
    );
    assert_eq!(
        one(
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#
        ),
        (conversation(&[("user", "a")]), answer("b"))
    );
    assert_eq!(
        one(r#"{"messages": [{"role": "system", "content": ""}, {"content": "a", "role": "user", "tool_calls": null},
            {"role": "assistant", "content": "\u00e9\ud83d\ude00"}], "tools": []}"#.replace('\n', " ").as_str()),
        (conversation(&[("system", ""), ("user", "a")]), answer("é😀"))
    );
}

/// The message of the only bad line, without the path.
#[track_caller]
fn problem(content: impl AsRef<[u8]>) -> String {
    match read(content) {
        Err(Error::BadLines { problems, total: 1 }) => {
            let problem = problems[0].to_string();
            problem[problem.find("data.jsonl:").unwrap() + "data.jsonl:".len()..].to_string()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_fields_are_named_with_their_column() {
    let user = r#"{"role": "user", "content": "a"}"#;
    let assistant = r#"{"role": "assistant", "content": "b"}"#;
    for (line, expected) in [
        (
            r#"{"instruction": "a"}"#.to_string(),
            "1:1: expected a field `output` beside `instruction`, found none",
        ),
        (
            r#"{"instruction": "a", "output": null}"#.into(),
            "1:32: expected a field `output` beside `instruction`, found null",
        ),
        (
            r#"{"instruction": "é", "output": 5}"#.into(),
            "1:32: expected a string in `output`, found a number",
        ),
        (
            r#"{"instruction": "a", "output": ""}"#.into(),
            "1:32: expected some text in `output`, found an empty string",
        ),
        (
            r#"{"instruction": " \n", "output": "b"}"#.into(),
            "1:17: expected some text in `instruction`, found only white space",
        ),
        (
            r#"{"instruction": "a", "output": "b", "input": 5}"#.into(),
            "1:46: expected a string in `input`, found a number",
        ),
        (
            r#"{"text": "a", "label": 1}"#.into(),
            "1:1: expected the fields `instruction` and `output`, or `prompt` and `completion`, or `messages`, found `text`, `label`",
        ),
        (
            "{}".into(),
            "1:1: expected the fields `instruction` and `output`, or `prompt` and `completion`, or `messages`, found an empty object",
        ),
        (
            r#"{"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}"#.into(),
            "1:1: expected one form of example: `instruction` and `output`, or `prompt` and `completion`, or `messages`, found more than one of them: rename or remove the fields that are not meant",
        ),
        (
            r#"{"prompt": 5, "completion": "b"}"#.into(),
            "1:12: expected a string or a list of messages in `prompt`, found a number",
        ),
        (
            r#"{"prompt": "a", "completion": 5}"#.into(),
            "1:31: expected a string in `completion`, found a number",
        ),
        (
            format!(r#"{{"prompt": "a", "completion": [{assistant}]}}"#),
            "1:31: expected a string in `completion`, as in `prompt`, found an array",
        ),
        (
            format!(r#"{{"prompt": [{user}], "completion": "b"}}"#),
            "1:62: expected a list of messages in `completion`, as in `prompt`, found a string",
        ),
        (
            format!(r#"{{"prompt": [{user}], "completion": [{user}]}}"#),
            "1:62: expected a completion that begins with role `assistant`, found `user`",
        ),
        (
            format!(r#"{{"prompt": [], "completion": [{assistant}]}}"#),
            "1:12: expected at least one message in `prompt`, found an empty list",
        ),
        (
            format!(r#"{{"messages": [{user}]}}"#),
            "1:15: expected messages that end with role `assistant`, found `user`",
        ),
        (
            format!(r#"{{"messages": [{assistant}]}}"#),
            "1:14: expected at least one message before the answer, found only the answer",
        ),
        (r#"{"messages": "a"}"#.into(), "1:14: expected a list of messages in `messages`, found a string"),
        (
            r#"{"messages": []}"#.into(),
            "1:14: expected at least one message in `messages`, found an empty list",
        ),
        (
            r#"{"messages": ["a"]}"#.into(),
            "1:15: expected a message {\"role\": \"...\", \"content\": \"...\"}, found a string",
        ),
        (
            r#"{"messages": [{"role": "user"}]}"#.into(),
            "1:15: expected a message {\"role\": \"...\", \"content\": \"...\"}, found no field `content`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"text": "a"}]}]}"#.into(),
            "1:43: expected a string in `content`, found an array",
        ),
        (
            r#"{"messages": [{"role": "user", "content": ""}]}"#.into(),
            "1:43: expected some text in `content`, found an empty string",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}"#.into(),
            "1:62: expected no field `tool_calls`, which is not supported, found an array",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#.into(),
            "1:97: expected no `weight`, or 1: a message is trained or not by its place, found a number",
        ),
        (
            r#"{"instruction": "a", "inptu": "b", "output": "c"}"#.into(),
            "1:31: expected the field `input`, or another name, found `inptu`, which would be passed over: rename it",
        ),
        (
            r#"{"instruction": "a", "Input": "b", "output": "c"}"#.into(),
            "1:31: expected the field `input`, or another name, found `Input`, which would be passed over: rename it",
        ),
        (
            format!(r#"{{"messages": [{user}, {assistant}], "tools": [{{"name": "f"}}]}}"#),
            "1:98: expected no field `tools`, which is not supported, found an array",
        ),
    ] {
        assert_eq!(problem(&line), expected, "{line}");
    }
}

#[test]
fn bad_lines_are_named_with_their_column() {
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    for (content, expected) in [
        ("hello".as_bytes().to_vec(), "1:1: expected a JSON value, found `h`"),
        (
            format!("{good}\n[1]").into_bytes(),
            "2:1: expected one JSON object a line, found an array: write its items one a line",
        ),
        (b"5".to_vec(), "1:1: expected one JSON object a line, found a number"),
        (
            format!("{good}{good}").into_bytes(),
            "1:35: expected the end of the line after the first value, found a second object: put each on a line of its own",
        ),
        (
            format!("{good}\n{}\n", &good[..20]).into_bytes(),
            "2:21: expected `\"` at the end of the string, found the end of the line: the line is cut",
        ),
        (
            br#"{"prompt": "a", "prompt": "b", "completion": "c"}"#.to_vec(),
            "1:17: expected every field at most once, found the field `prompt` a second time",
        ),
        (
            b"{\"prompt\": \"\xc3\xa9\xff\", \"completion\": \"b\"}".to_vec(),
            "1:14: expected valid UTF-8, found the byte 0xff: save the file as UTF-8",
        ),
        (
            b"{\"prompt\": \"a\0\", \"completion\": \"b\"}".to_vec(),
            "1:14: expected text without raw control characters (write them as \\n, \\t, \\u....), found the control character U+0000",
        ),
        (
            br#"{"prompt": "a\u0000", "completion": "b"}"#.to_vec(),
            "1:14: expected text without NUL characters, found `\\u0000`",
        ),
        (
            format!("{good}\r{good}\r").into_bytes(),
            "1:36: expected the end of the line after the first value, found a second object after a bare carriage return: end the lines with \\n, as tr '\\r' '\\n' does",
        ),
        (
            format!("{good}\n\u{feff}{good}").into_bytes(),
            "2:1: expected a JSON value, found the invisible character U+FEFF",
        ),
        (
            format!("{good}\n{{\n").into_bytes(),
            "2:2: expected a field name in double quotes, found the end of the line: the line is cut",
        ),
    ] {
        assert_eq!(
            problem(&content),
            expected.replace("\\\\u", "\\u"),
            "{}",
            String::from_utf8_lossy(&content)
        );
    }
}

#[test]
fn all_bad_lines_are_counted_and_the_first_listed() {
    let mut lines = vec![r#"{"prompt": "a", "completion": "b"}"#.to_string(); 50];
    for bad in (1..50).step_by(2) {
        lines[bad] = format!("{{\"prompt\": {bad}, \"completion\": \"b\"}}");
    }
    let error = read(lines.join("\n")).unwrap_err();
    let Error::BadLines { problems, total } = &error else { panic!("{error}") };
    assert_eq!((problems.len(), *total), (MAX_LISTED, 25));
    assert_eq!((problems[0].source.line, problems[19].source.line), (2, 40));
    let text = error.to_string();
    assert!(text.starts_with("25 bad lines:\n  "), "{text}");
    assert!(text.ends_with("\n  ... and 5 more"), "{text}");
}

#[test]
fn marks_line_ends_and_blank_lines_are_no_trouble() {
    let line = |text: &str| format!("{{\"prompt\": \"{text}\", \"completion\": \"b\"}}");
    let content = format!("\u{feff}{}\r\n\r\n{}\n  \n{}\r\n\n \t\n\n", line("1"), line("2"), line("3"));
    let lines: Vec<usize> = read(&content).unwrap().iter().map(|example| example.source.line).collect();
    assert_eq!(lines, [1, 3, 5]);
    assert_eq!(read(line("no line end")).unwrap().len(), 1);
    let error = read("\u{feff}{\"prompt\": 5, \"completion\": \"b\"}").unwrap_err().to_string();
    assert!(error.contains("data.jsonl:1:12: "), "{error}");
}

#[test]
fn files_without_examples_are_refused() {
    for content in ["", "\n", " \r\n\n", "\u{feff}", "\u{feff}\n"] {
        assert!(matches!(read(content), Err(Error::EmptyFile { .. })), "{content:?}");
    }
    let missing = read_examples(Path::new("no/such/file.jsonl"), None).unwrap_err().to_string();
    assert!(missing.starts_with("no/such/file.jsonl: cannot read the file: "), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read_examples(folder.path(), None), Err(Error::NotAFile { found: "a folder", .. })));
}

#[test]
fn the_limit_takes_the_first_examples() {
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let content = format!("{good}\n\n{good}\nbad\n{good}\n");
    assert_eq!(read_first(&content, Some(2)).unwrap().len(), 2);
    assert!(read_first(&content, Some(3)).is_err());
    // A bad line is one of the first, and what follows it is not looked at.
    match read_first(format!("bad\n{good}\nbad\n"), Some(1)) {
        Err(Error::BadLines { problems, total: 1 }) => assert_eq!(problems[0].source.line, 1),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        read_first(format!("bad\n{good}\nbad\n"), Some(2)),
        Err(Error::BadLines { total: 1, .. })
    ));
    assert!(read_first(&content, Some(0)).unwrap().is_empty());
    assert_eq!(read_first(format!("{good}\n"), Some(9)).unwrap().len(), 1);
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let content = format!("{good}\n{}\n{good}\nbad", "x".repeat(3 * MAX_LINE_BYTES));
    let Err(Error::BadLines { problems, total: 2 }) = read(content) else { panic!() };
    assert_eq!(problems[0].expected, "lines of at most 16 MiB");
    assert_eq!((problems[0].source.line, problems[1].source.line), (2, 4));
}

#[test]
fn records_of_any_shape_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    std::fs::write(&path, "{\"a\": 1.5, \"b\": [null, \"x\"]}\n{\"a\": 18446744073709551615}\n").unwrap();
    let records = read_records(&path, None).unwrap();
    assert_eq!(records[0].1, serde_json::json!({"a": 1.5, "b": [null, "x"]}));
    assert_eq!(records[1].1["a"], u64::MAX);
    std::fs::write(&path, "{\"a\": 1}\n5\n{\"a\": 1e999}\n").unwrap();
    let error = read_records(&path, None).unwrap_err().to_string();
    assert!(error.contains("records.jsonl:2:1: expected a JSON object, found a number"), "{error}");
    assert!(error.contains("records.jsonl:3:1: expected numbers that fit 64 bits"), "{error}");
}

#[test]
fn a_file_of_another_kind_is_one_error_with_a_remedy() {
    let utf16: Vec<u8> = "{\"prompt\": \"a\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (content, found, remedy) in [
        ([b"\xff\xfe".to_vec(), utf16.clone()].concat(), "UTF-16 text", "iconv"),
        (utf16, "UTF-16 text", "iconv"),
        (b"\x1f\x8b\x08\0\0\n\n\n".to_vec(), "a gzip file", "unpack"),
        (b"PK\x03\x04\x14\0".to_vec(), "a zip file, as spreadsheets are", "unpack"),
        (b"PAR1\x15\0\n\0\n".to_vec(), "a Parquet file", "to_json"),
        (b"\n [\n  {\"prompt\": \"a\"},\n  {\"prompt\": \"b\"}\n]\n".to_vec(), "a JSON array", "jq -c '.[]'"),
        (b"[{\"prompt\": \"a\", \"completion\": \"b\"}]".to_vec(), "a JSON array", "jq -c '.[]'"),
        (
            b"{\n  \"prompt\": \"a\",\n  \"completion\": \"b\"\n}\n".to_vec(),
            "JSON over several lines",
            "jq -c .",
        ),
        (b"\xef\xbb\xbfinstruction,output\na,b\n".to_vec(), "a CSV or TSV table", "read_csv"),
    ] {
        let error = read(&content).unwrap_err();
        assert!(matches!(&error, Error::NotJsonLines { found: kind, .. } if *kind == found), "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    let paths = [made.is_ok_and(|status| status.success()).then_some(pipe), Some("/dev/zero".into())];
    for path in paths.into_iter().flatten() {
        assert!(matches!(read_examples(&path, None), Err(Error::NotAFile { .. })), "{path:?}");
        assert!(matches!(read_records(&path, None), Err(Error::NotAFile { .. })), "{path:?}");
    }
}

#[test]
fn a_line_of_countless_small_values_does_not_fill_the_memory() {
    let line = format!("{{\"prompt\": \"a\", \"completion\": \"b\", \"ids\": [0{}]}}", ",0".repeat(1 << 21));
    let problem = problem(line);
    assert!(problem.contains("expected at most 1048576 values in a line"), "{problem}");
}

#[test]
fn bad_lines_can_be_skipped_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let mut lines = vec!["bad"; 30];
    lines[3] = good;
    lines[29] = good;
    std::fs::write(&path, lines.join("\n")).unwrap();
    let (examples, skipped) = read_examples_with(&path, None, OnError::Skip).unwrap();
    assert_eq!(examples.iter().map(|example| example.source.line).collect::<Vec<_>>(), [4, 30]);
    assert_eq!((skipped.total, skipped.first.len()), (28, MAX_LISTED));
    assert_eq!((skipped.first[0].source.line, skipped.first[3].source.line), (1, 5));
    assert!(skipped.to_string().ends_with("\n  ... and 8 more"), "{skipped}");
    // The limit takes lines, good and bad.
    let (examples, skipped) = read_examples_with(&path, Some(6), OnError::Skip).unwrap();
    assert_eq!((examples.len(), skipped.total), (1, 5));
    // Good files give the same with either choice, and so do files that are bad as a whole.
    std::fs::write(&path, good).unwrap();
    assert_eq!(
        read_examples_with(&path, None, OnError::Skip).unwrap().0,
        read_examples(&path, None).unwrap()
    );
    std::fs::write(&path, "\n").unwrap();
    assert!(matches!(read_examples_with(&path, None, OnError::Skip), Err(Error::EmptyFile { .. })));
    std::fs::write(&path, "[1]\n").unwrap();
    assert!(matches!(read_examples_with(&path, None, OnError::Skip), Err(Error::NotJsonLines { .. })));
}

#[test]
fn a_file_of_which_nothing_is_left_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, "bad\nbad\n").unwrap();
    let error = read_examples_with(&path, None, OnError::Skip).unwrap_err();
    assert!(
        matches!(&error, Error::NothingLeft { cause, .. } if matches!(**cause, Error::BadLines { total: 2, .. }))
    );
    let text = error.to_string();
    assert!(text.contains("data.jsonl: nothing is left of it: 2 bad lines:\n  "), "{text}");
}
