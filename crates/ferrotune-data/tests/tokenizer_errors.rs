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
