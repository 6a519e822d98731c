//! A tokenizer that refuses a text.

use ferrotune_data::{Error, TextTokenizer};

#[test]
fn a_word_that_a_tokenizer_cannot_encode_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Without the token for unknown words that it promises.
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"known": 0}, "unk_token": "[UNK]"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let tokenizer = TextTokenizer::from_dir(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("known", false).unwrap(), [0]);
    let error = tokenizer.encode("other", false).unwrap_err();
    assert!(matches!(&error, Error::Tokenizer { action, .. } if action.contains("other")), "{error}");
}

#[test]
fn a_part_that_panics_in_the_tokenizer_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    // It takes ten letters from both ends of a token that has three.
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": {"type": "Strip", "content": "a", "start": 10, "stop": 10},
        "model": {"type": "WordLevel", "vocab": {"aaa": 0}, "unk_token": "aaa"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let error = TextTokenizer::from_dir(folder.path()).unwrap().decode(&[0], false).unwrap_err();
    assert!(
        matches!(&error, Error::Tokenizer { path, action, .. } if path.ends_with("tokenizer.json") && action == "decode 1 ids"),
        "{error}"
    );
}

#[test]
fn the_same_text_is_the_same_tokens_whatever_dropout_the_file_asks_for() {
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/chatml");
    let folder = tempfile::tempdir().unwrap();
    let mut file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(model.join("tokenizer.json")).unwrap()).unwrap();
    assert_eq!(file["model"]["type"], "BPE");
    file["model"]["dropout"] = 0.9.into();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let text = "What is the capital of France? Paris.";
    let plain = TextTokenizer::from_dir(&model).unwrap().encode(text, false).unwrap();
    let tokenizer = TextTokenizer::from_dir(folder.path()).unwrap();
    for _ in 0..5 {
        assert_eq!(tokenizer.encode(text, false).unwrap(), plain);
    }
}
