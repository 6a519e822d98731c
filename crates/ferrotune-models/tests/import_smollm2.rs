//! The real model that the project's set-up fetches; without it there is nothing to test.

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_models::import::import_gguf;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The directory that set-up makes, if it is there.
fn model() -> Option<PathBuf> {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.models/smollm2-135m-instruct"));
    directory.join("hf").is_dir().then(|| directory.to_owned())
}

fn gguf(model: &Path) -> PathBuf {
    let mut files = fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "gguf")).unwrap()
}

#[test]
fn the_imported_directory_is_what_this_importer_makes() {
    let Some(model) = model() else {
        eprintln!("skipped: run `cargo xtask setup` to fetch the model");
        return;
    };
    let summary = import_gguf(&gguf(&model), &model.join("hf")).unwrap();
    assert!(!summary.imported);
    assert_eq!((summary.tensors, summary.parameters, summary.vocabulary), (272, 134_515_008, 49_152));

    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("hf");
    assert!(import_gguf(&gguf(&model), &output).unwrap().imported);
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ] {
        assert!(
            fs::read(output.join(name)).unwrap() == fs::read(model.join("hf").join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn configuration_and_tokenizer_are_those_of_the_model() {
    let Some(model) = model() else {
        eprintln!("skipped: run `cargo xtask setup` to fetch the model");
        return;
    };
    let config: Value = serde_json::from_slice(&fs::read(model.join("hf/config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", 576),
        ("num_hidden_layers", 30),
        ("num_attention_heads", 9),
        ("num_key_value_heads", 3),
        ("vocab_size", 49_152),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!(config["rope_parameters"]["rope_theta"], 100_000.0);
    let tokenizer = Tokenizer::from_file(model.join("hf/tokenizer.json")).unwrap();
    // Ids from transformers.
    for (text, expected) in [
        ("What is the capital of France?", &[1780, 314, 260, 3575, 282, 4649, 47][..]),
        (
            "In 2024, 1234567 items cost 3.14 each.",
            &[
                788, 216, 34, 32, 34, 36, 28, 216, 33, 34, 35, 36, 37, 38, 39, 3723, 1708, 216, 35, 30, 33,
                36, 971, 30,
            ][..],
        ),
        ("<|im_start|>user\nhi<|im_end|>\n", &[1, 4093, 198, 6004, 2, 198][..]),
        ("  def f(x):\n\treturn x**2", &[216, 753, 275, 24, 104, 727, 198, 197, 5406, 1792, 828, 34][..]),
        ("naïve 日本 🙂 ½", &[3546, 46494, 17097, 241, 115, 40993, 47526, 216, 16738][..]),
    ] {
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}
