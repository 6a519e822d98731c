//! Rendered prompts, token ids, labels and decoded text against transformers and TRL, on three kinds of tokenizer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::path::{Path, PathBuf};

use ferrotune_data::{
    Completion, Error, Example, IGNORE, Message, Prompt, TextTokenizer, read_examples, tokenize, tokenize_all,
};
use serde_json::Value;

const NO_LIMIT: usize = usize::MAX;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer")
}

fn expected() -> Value {
    serde_json::from_str(include_str!("fixtures/tokenizer/expected.json")).unwrap()
}

/// The examples of the fixture, through a file, as a user gives them.
fn examples() -> Vec<Example> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("examples.jsonl");
    let lines: Vec<String> =
        expected()["examples"].as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, lines.concat()).unwrap();
    read_examples(&path, None).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

fn agrees_with_trl(model: &str, refused: &[usize]) {
    let (fixture, examples) = (expected(), examples());
    let expected = &fixture["models"][model];
    let tokenizer = TextTokenizer::from_dir(&fixtures().join(model)).unwrap();
    assert_eq!(tokenizer.eos_token_id().map(u64::from), expected["eos_token_id"].as_u64());
    assert_eq!(tokenizer.bos_token_id().map(u64::from), expected["bos_token_id"].as_u64());
    assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap());
    let rows = expected["rows"].as_array().unwrap();
    assert_eq!(rows.len(), examples.len());
    for (i, (example, row)) in examples.iter().zip(rows).enumerate() {
        let found = tokenize(example, &tokenizer);
        if let Some(message) = row["error"].as_str() {
            assert!(refused.contains(&i), "example {i} should have been refused: {message}");
            let Err(Error::Example { cause, .. }) = found else { panic!("example {i}: {found:?}") };
            assert!(cause.to_string().ends_with(message), "example {i}: {cause}");
            continue;
        }
        let found = found.unwrap();
        assert_eq!(
            tokenizer.render_prompt(example).unwrap(),
            row["rendered"].as_str().unwrap(),
            "example {i}"
        );
        assert_eq!(tokenizer.prompt_ids(example).unwrap(), numbers::<u32>(&row["prompt_ids"]), "example {i}");
        assert_eq!(found.input_ids, numbers::<u32>(&row["input_ids"]), "example {i}");
        assert_eq!(found.labels, numbers::<i64>(&row["labels"]), "example {i}");
        assert_eq!(found.source.line, i + 1);
        let decode = |ids: &[u32], skip| tokenizer.decode(ids, skip).unwrap();
        let answer: Vec<u32> =
            found.labels.iter().filter(|label| **label != IGNORE).map(|label| *label as u32).collect();
        assert_eq!(decode(&found.input_ids, false), row["decoded"].as_str().unwrap(), "example {i}");
        assert_eq!(decode(&found.input_ids, true), row["skipped"].as_str().unwrap(), "example {i}");
        assert_eq!(decode(&answer, true), row["answer"].as_str().unwrap(), "example {i}");
    }
}

#[test]
fn byte_level_with_files_of_transformers_5() {
    agrees_with_trl("chatml", &[]);
}

#[test]
fn byte_fallback_with_files_of_transformers_4() {
    agrees_with_trl("inst", &[]);
}

#[test]
fn start_token_and_special_tokens_map() {
    agrees_with_trl("headers", &[]);
}

#[test]
fn a_token_across_the_border_is_trained() {
    let tokenizer = TextTokenizer::from_dir(&fixtures().join("chatml")).unwrap();
    let example = &examples()[10];
    assert_eq!(example.prompt, Prompt::Text("hello ".to_string()));
    let row = tokenize(example, &tokenizer).unwrap();
    let trained: Vec<u32> =
        row.labels.iter().filter(|label| **label != IGNORE).map(|label| *label as u32).collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), " world<|stop|>");
}

#[test]
fn too_long_examples_are_all_named() {
    let tokenizer = TextTokenizer::from_dir(&fixtures().join("chatml")).unwrap();
    let examples = examples();
    let lengths: Vec<usize> =
        examples.iter().map(|example| tokenize(example, &tokenizer).unwrap().input_ids.len()).collect();
    let limit = 40;
    let long = lengths.iter().filter(|length| **length > limit).count();
    assert!(0 < long && long < examples.len());
    let error = tokenize_all(&examples, &tokenizer, limit).unwrap_err();
    let Error::TooLong { long: found } = &error else { panic!("{error}") };
    assert_eq!(found.examples.len(), long);
    let first = lengths.iter().position(|length| *length > limit).unwrap();
    let text = error.to_string();
    assert!(text.starts_with(&format!("{long} examples have more than max_length = 40 tokens: ")), "{text}");
    assert!(text.contains(&format!("examples.jsonl:{}: {} tokens, ", first + 1, lengths[first])), "{text}");
    // At the limit is not over it.
    assert_eq!(
        tokenize_all(&examples, &tokenizer, *lengths.iter().max().unwrap()).unwrap().len(),
        examples.len()
    );
}

#[test]
fn many_examples_keep_their_order() {
    let tokenizer = TextTokenizer::from_dir(&fixtures().join("chatml")).unwrap();
    let examples: Vec<Example> = examples().into_iter().cycle().take(500).collect();
    let rows = tokenize_all(&examples, &tokenizer, NO_LIMIT).unwrap();
    let single: Vec<_> = examples.iter().map(|example| tokenize(example, &tokenizer).unwrap()).collect();
    assert_eq!(rows, single);
}

fn with_files(model: &str, change: impl Fn(&Path)) -> Result<TextTokenizer, Error> {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    change(dir.path());
    TextTokenizer::from_dir(dir.path())
}

fn example(prompt: Prompt, completion: Completion) -> Example {
    Example { prompt, completion, ..examples()[0].clone() }
}

#[test]
fn the_template_file_wins_over_the_field() {
    let template = |tokenizer: &TextTokenizer| tokenizer.chat_template().unwrap().source().to_string();
    let both = with_files("headers", |dir| std::fs::write(dir.join("chat_template.jinja"), "file").unwrap());
    assert_eq!(template(&both.unwrap()), "file");
    let field = with_files("headers", |_| {});
    assert!(template(&field.unwrap()).contains("<|head|>system"));
}

#[test]
fn without_a_template_strings_work_and_messages_say_what_to_do() {
    let tokenizer =
        with_files("chatml", |dir| std::fs::remove_file(dir.join("chat_template.jinja")).unwrap()).unwrap();
    let text = example(Prompt::Text("hello".into()), Completion::Text(" world".into()));
    assert!(tokenize(&text, &tokenizer).is_ok());
    let messages = Prompt::Messages(vec![Message::new("user", "hello")]);
    let answer = Completion::Messages(vec![Message::new("assistant", "world")]);
    let error = tokenize_all(&[example(messages.clone(), answer)], &tokenizer, NO_LIMIT).unwrap_err();
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    let mixed = example(messages, Completion::Text("world".into()));
    assert!(tokenize(&mixed, &tokenizer).is_err());
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let remove = with_files("chatml", |dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    assert!(remove.unwrap_err().to_string().contains("tokenizer.json: the file does not exist"));
    for (file, content, expected) in [
        ("tokenizer.json", "{}", "tokenizer.json: expected a serialised tokenizer"),
        (
            "tokenizer.json",
            "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": [[\"a\", \"b\"]]}}",
            "tokenizer.json",
        ),
        ("tokenizer_config.json", "{\"a\": 1", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", "{\"eos_token\": 5}", "in `eos_token`"),
        ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}", "`x`"),
        ("special_tokens_map.json", "[", "special_tokens_map.json: expected a JSON object"),
        ("chat_template.jinja", "{% for %}", "chat template, line 1: not valid"),
    ] {
        let error = with_files("chatml", |dir| std::fs::write(dir.join(file), content).unwrap()).unwrap_err();
        assert!(error.to_string().contains(expected), "{file}: {error}");
    }
}

#[test]
fn only_tokenizer_json_is_enough_for_plain_text() {
    let tokenizer =
        with_files("inst", |dir| std::fs::remove_file(dir.join("tokenizer_config.json")).unwrap()).unwrap();
    let ids = tokenizer.encode("hello world, hello words, hello wonderful world", false).unwrap();
    assert!(ids.len() > 8, "the stored truncation to 8 tokens is switched off: {ids:?}");
    assert_eq!(
        tokenizer.encode("hello", false).unwrap().iter().filter(|id| **id == 2).count(),
        0,
        "no padding"
    );
    assert_eq!(tokenizer.eos_token_id(), None);
}

#[test]
fn clean_up_of_spaces_is_for_other_models_than_bpe() {
    let text = "Stop , he said .";
    let round =
        |tokenizer: &TextTokenizer| tokenizer.decode(&tokenizer.encode(text, false).unwrap(), true).unwrap();
    assert_eq!(round(&with_files("chatml", |_| {}).unwrap()), text);
    let force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    let forced = with_files("chatml", |dir| {
        let config = format!("{{\"clean_up_tokenization_spaces\": true, \"{force}\": true}}");
        std::fs::write(dir.join("tokenizer_config.json"), config).unwrap();
    });
    assert_eq!(round(&forced.unwrap()), "Stop, he said.");
}

#[test]
fn what_is_wrong_with_a_model_directory_has_its_own_variant() {
    let remove = |name: &str| with_files("chatml", |dir| std::fs::remove_file(dir.join(name)).unwrap());
    let write =
        |name: &str, text: &str| with_files("chatml", |dir| std::fs::write(dir.join(name), text).unwrap());
    assert!(matches!(remove("tokenizer.json"), Err(Error::MissingFile { .. })));
    assert!(matches!(write("tokenizer.json", "{}"), Err(Error::BadTokenizerFile { .. })));
    assert!(matches!(
        write("chat_template.jinja", "{% for %}"),
        Err(Error::BadChatTemplate { cause, .. }) if matches!(*cause, Error::TemplateSyntax { line: 1, .. })
    ));
    let huge = with_files("chatml", |dir| {
        std::fs::File::create(dir.join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    });
    assert!(matches!(huge, Err(Error::TooLarge { bytes, .. }) if bytes == 1 << 40));
    let folder = with_files("chatml", |dir| {
        std::fs::remove_file(dir.join("tokenizer_config.json")).unwrap();
        std::fs::create_dir(dir.join("tokenizer_config.json")).unwrap();
    });
    assert!(matches!(folder, Err(Error::NotAFile { found: "a folder", .. })));

    let bare = remove("chat_template.jinja").unwrap();
    let messages = Prompt::Messages(vec![Message::new("user", "hello")]);
    let answer = Completion::Messages(vec![Message::new("assistant", "world")]);
    let error = tokenize_all(&[example(messages.clone(), answer)], &bare, NO_LIMIT).unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }));
    let mixed = tokenize(
        &example(messages, Completion::Text("world".into())),
        &with_files("chatml", |_| {}).unwrap(),
    );
    assert!(matches!(mixed, Err(Error::Example { cause, .. }) if matches!(*cause, Error::MixedForms)));
    assert!(matches!(read_examples(Path::new("no/such/file.jsonl"), None), Err(Error::Io { .. })));
}
