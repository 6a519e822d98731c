//! A GGUF file written by Python becomes the Hugging Face checkpoint that Python expects.

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

mod gguf_builder;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ferrotune_models::Error;
use ferrotune_models::import::{hf_dir_for, import_gguf};
use gguf_builder::GgufBuilder;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import_tiny_llama").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec()))).collect()
}

#[test]
fn weights_equal_the_expected_checkpoint_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("hf");
    let summary = import_gguf(&fixture("tiny.gguf"), &output).unwrap();
    assert!(summary.imported && summary.warnings.is_empty());
    assert_eq!((summary.tensors, summary.vocabulary), (20, 300));
    let (found, expected) =
        (tensors(&output.join("model.safetensors")), tensors(&fixture("expected.safetensors")));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (shape, data)) in &expected {
        assert_eq!(&found[name].0, shape, "{name}");
        assert!(&found[name].1 == data, "{name}");
    }
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let format = metadata.metadata().as_ref().unwrap().get("format").cloned();
    assert_eq!((metadata.metadata().as_ref().unwrap().len(), format.as_deref()), (1, Some("pt")));
}

#[test]
fn configuration_says_what_the_file_says() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("hf");
    import_gguf(&fixture("tiny.gguf"), &output).unwrap();
    let config = json(&output.join("config.json"));
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 }, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "vocab_size": 300,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    let generation = json(&output.join("generation_config.json"));
    assert_eq!(generation, json!({ "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0 }));
    let tokenizer = json(&output.join("tokenizer_config.json"));
    assert_eq!(tokenizer["bos_token"], "<|turn|>");
    assert_eq!(tokenizer["eos_token"], "<|end|>");
    assert_eq!(tokenizer["pad_token"], "<|endoftext|>");
    assert_eq!(tokenizer["model_max_length"], 128);
    let template = fs::read_to_string(output.join("chat_template.jinja")).unwrap();
    assert_eq!(json(&fixture("expected.json"))["chat_template"], template);
}

#[test]
fn tokenizer_gives_the_ids_of_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("hf");
    import_gguf(&fixture("tiny.gguf"), &output).unwrap();
    let tokenizer = Tokenizer::from_file(output.join("tokenizer.json")).unwrap();
    for sample in json(&fixture("expected.json"))["samples"].as_array().unwrap() {
        let text = sample["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(json!(ids), sample["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    // Control tokens are special, tokens that users defined are text.
    let ids = tokenizer.encode("<|turn|>a<custom>", false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<custom>");
}

#[test]
fn the_same_import_again_is_a_no_op_and_anything_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("hf");
    let first = import_gguf(&fixture("tiny.gguf"), &output).unwrap();
    let written = fs::metadata(output.join("model.safetensors")).unwrap().modified().unwrap();
    let second = import_gguf(&fixture("tiny.gguf"), &output).unwrap();
    assert!(first.imported && !second.imported);
    assert_eq!(fs::metadata(output.join("model.safetensors")).unwrap().modified().unwrap(), written);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a temporary directory is left over");

    let other = GgufBuilder::tiny_llama().write(directory.path());
    let message = import_gguf(&other, &output).unwrap_err().to_string();
    assert!(message.contains("imported from another file, tiny.gguf"), "{message}");

    fs::write(output.join("model.safetensors"), b"cut").unwrap();
    let message = import_gguf(&fixture("tiny.gguf"), &output).unwrap_err().to_string();
    assert!(message.contains("model.safetensors has 3 bytes instead of"), "{message}");

    let foreign = directory.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    assert!(
        import_gguf(&fixture("tiny.gguf"), &foreign).unwrap().imported,
        "an empty directory is no obstacle"
    );
    fs::remove_file(foreign.join("import.json")).unwrap();
    let error = import_gguf(&fixture("tiny.gguf"), &foreign).unwrap_err();
    assert!(matches!(error, Error::ImportTargetExists { .. }), "{error}");
    let message = import_gguf(&fixture("tiny.gguf"), &other).unwrap_err().to_string();
    assert!(message.contains("is not a directory"), "{message}");
}

#[test]
fn a_model_path_is_imported_into_the_cache_once() {
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(hf_dir_for(cache.path(), Path::new("unused")).unwrap(), cache.path());
    let first = hf_dir_for(&fixture("tiny.gguf"), cache.path()).unwrap();
    assert_eq!(first.parent().unwrap(), cache.path().join("models"));
    assert!(first.file_name().unwrap().to_str().unwrap().starts_with("tiny-"));
    let written = fs::metadata(first.join("model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(hf_dir_for(&fixture("tiny.gguf"), cache.path()).unwrap(), first);
    assert_eq!(fs::metadata(first.join("model.safetensors")).unwrap().modified().unwrap(), written);
    // A damaged directory of the cache is mended.
    fs::remove_file(first.join("config.json")).unwrap();
    assert_eq!(hf_dir_for(&fixture("tiny.gguf"), cache.path()).unwrap(), first);
    assert!(first.join("config.json").exists());
    assert!(
        hf_dir_for(Path::new("absent.gguf"), cache.path()).unwrap_err().to_string().contains("absent.gguf")
    );
}

/// Imports a changed `GgufBuilder::tiny_llama`.
fn import(change: impl FnOnce(&mut GgufBuilder)) -> Result<(Value, Value), String> {
    let directory = tempfile::tempdir().unwrap();
    let mut file = GgufBuilder::tiny_llama();
    change(&mut file);
    let output = directory.path().join("hf");
    import_gguf(&file.write(directory.path()), &output).map_err(|error| error.to_string())?;
    Ok((json(&output.join("config.json")), json(&output.join("tokenizer.json"))))
}

#[track_caller]
fn refused(change: impl FnOnce(&mut GgufBuilder), expected: &str) {
    let message = import(change).unwrap_err();
    assert!(message.contains(expected), "`{expected}` is not in: {message}");
}

#[test]
fn models_that_are_no_plain_llama_are_refused_by_name() {
    refused(
        |file| file.set_str("general.architecture", "qwen2"),
        "general.architecture `qwen2` is not supported (supported: llama)",
    );
    refused(|file| file.remove("general.architecture"), "`general.architecture` is missing");
    refused(|file| file.set_f32("llama.logit_scale", 0.5), "llama.logit_scale = F32(0.5)");
    refused(|file| file.set_u32("llama.expert_count", 8), "llama.expert_count `8`");
    refused(|file| file.set_u32("llama.rope.dimension_count", 2), "llama.rope.dimension_count `2`");
    refused(|file| file.set_str("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type `yarn`");
    refused(|file| file.add_f32("blk.0.attn_q_norm.weight", &[4]), "tensor `blk.0.attn_q_norm.weight`");
    refused(|file| file.add_f32("blk.1.attn_norm.weight", &[8]), "tensor `blk.1.attn_norm.weight`");
}

#[test]
fn metadata_and_tensors_must_agree() {
    refused(|file| file.set_u32("llama.block_count", u32::MAX), "tensor `blk.1.attn_norm.weight` is missing");
    refused(|file| file.set_u32("llama.block_count", 0), "expected a number from 1");
    refused(|file| file.set_u32("llama.attention.head_count", 3), "a divisor of the hidden size 8");
    refused(|file| file.set_u32("llama.attention.head_count_kv", 3), "a divisor of the 2 attention heads");
    refused(
        |file| file.set_str("llama.embedding_length", "8"),
        "`llama.embedding_length`: expected a number",
    );
    refused(
        |file| file.set_u32("llama.feed_forward_length", 32),
        "`blk.0.ffn_gate.weight`: expected shape [32, 8], found [16, 8]",
    );
    refused(
        |file| file.tensors.retain(|tensor| tensor.name != "output_norm.weight"),
        "`output_norm.weight` is missing",
    );
    refused(
        |file| file.add_f32("output.weight", &[8, 7]),
        "`output.weight`: expected shape [6, 8], found [7, 8]",
    );
    refused(|file| file.add_f32("blk.0.attn_output.bias", &[8]), "`blk.0.attn_q.bias` is missing");
}

#[test]
fn vocabularies_are_checked() {
    refused(|file| file.set_str("tokenizer.ggml.model", "bert"), "tokenizer.ggml.model `bert`");
    refused(
        |file| file.set_str("tokenizer.ggml.pre", "viking"),
        "tokenizer.ggml.pre `viking` is not supported",
    );
    refused(
        |file| file.set_str("tokenizer.ggml.pre", "viking"),
        "use the model's own Hugging Face directory",
    );
    refused(|file| file.set_strs("tokenizer.ggml.tokens", &["a", "a"]), "[1]: this token has two ids: `a`");
    refused(|file| file.set_strs("tokenizer.ggml.merges", &["a b", "b c"]), "`tokenizer.ggml.merges`[1]");
    refused(|file| file.set_strs("tokenizer.ggml.merges", &["ab"]), "two tokens with a space between");
    refused(|file| file.set_i32s("tokenizer.ggml.token_type", &[1, 1]), "one entry for each of 6 tokens");
    refused(|file| file.set_i32s("tokenizer.ggml.token_type", &[1, 1, 9, 1, 1, 1]), "[2]: not a token type");
    refused(
        |file| file.set_u32("tokenizer.ggml.eos_token_id", 6),
        "`tokenizer.ggml.eos_token_id`: expected the id of one of 6 tokens",
    );
    refused(|file| file.set_bool("tokenizer.ggml.add_bos_token", true), "false where there is no such token");
    refused(
        |file| file.set_strs("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "c", "ab", "abc", "x"]),
        "one entry for each of 7 tokens",
    );
    refused(
        |file| {
            file.set_strs("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "c", "ab", "abc", "x"]);
            file.remove("tokenizer.ggml.token_type");
        },
        "expected at most 6 tokens, for `token_embd.weight` has no more rows, found 7",
    );
}

#[test]
fn head_biases_window_and_scaling_reach_the_configuration() {
    let (config, _) = import(|file| file.add_f32("output.weight", &[8, 6])).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let (config, _) = import(|file| {
        for (name, length) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4), ("attn_output", 8)] {
            file.add_f32(&format!("blk.0.{name}.bias"), &[length]);
        }
    })
    .unwrap();
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&json!(true), &json!(false)));
    let (config, _) = import(|file| file.set_u32("llama.attention.sliding_window", 4)).unwrap();
    assert_eq!((&config["model_type"], &config["sliding_window"]), (&json!("mistral"), &json!(4)));
    let (config, _) = import(|file| {
        file.set_str("llama.rope.scaling.type", "linear");
        file.set_f32("llama.rope.scaling.factor", 2.0);
    })
    .unwrap();
    assert_eq!(
        config["rope_parameters"],
        json!({ "factor": 2.0, "rope_theta": 10000.0, "rope_type": "linear" })
    );
    assert_eq!(config["rope_scaling"], json!({ "factor": 2.0, "rope_type": "linear" }));
    // Divisors of no known scaling; the same tensor with ones is no scaling.
    refused(|file| file.add_f32_values("rope_freqs.weight", &[2], &[1.0, 3.7]), "rotary scaling");
    refused(
        |file| file.add_f32_values("rope_freqs.weight", &[3], &[1.0; 3]),
        "expected shape [2], found [3]",
    );
    let (config, _) = import(|file| file.add_f32_values("rope_freqs.weight", &[2], &[1.0, 1.0])).unwrap();
    assert_eq!(config["rope_parameters"]["rope_type"], "default");
}

#[test]
fn pre_tokenizers_are_those_of_their_models() {
    let pre = |name: &'static str| import(|file| file.set_str("tokenizer.ggml.pre", name)).unwrap().1;
    assert_eq!(pre("gpt-2")["pre_tokenizer"]["type"], "ByteLevel");
    assert_eq!(
        pre("smollm")["pre_tokenizer"]["pretokenizers"][0],
        json!({ "type": "Digits", "individual_digits": true })
    );
    let llama3 = pre("llama-bpe");
    assert!(
        llama3["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            .as_str()
            .unwrap()
            .contains(r"\p{N}{1,3}")
    );
    assert_eq!(llama3["model"]["ignore_merges"], true);
    assert_eq!(pre("qwen2")["normalizer"]["type"], "NFC");
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "default"] {
        let tokenizer: Tokenizer = pre(name).to_string().parse().unwrap();
        let ids = tokenizer.encode("abcab<|end|>", true).unwrap().get_ids().to_vec();
        assert_eq!(ids, [5, 4, 0], "{name}");
    }
}

#[test]
fn begin_and_end_tokens_are_added_where_the_file_says_so() {
    let ids = |add_bos: bool, add_eos: bool| {
        let (_, tokenizer) = import(|file| {
            file.set_u32("tokenizer.ggml.bos_token_id", 0);
            file.set_u32("tokenizer.ggml.eos_token_id", 3);
            file.set_bool("tokenizer.ggml.add_bos_token", add_bos);
            file.set_bool("tokenizer.ggml.add_eos_token", add_eos);
        })
        .unwrap();
        let tokenizer: Tokenizer = tokenizer.to_string().parse().unwrap();
        tokenizer.encode("ab", true).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(false, false), [4]);
    assert_eq!(ids(true, false), [0, 4]);
    assert_eq!(ids(true, true), [0, 4, 3]);
}

#[test]
fn sentencepiece_vocabularies_become_bpe_with_byte_fallback() {
    let (config, tokenizer) = import(|file| {
        file.set_str("tokenizer.ggml.model", "llama");
        file.remove("tokenizer.ggml.pre");
        file.remove("tokenizer.ggml.merges");
        file.remove("tokenizer.ggml.eos_token_id");
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect::<Vec<_>>();
        let mut tokens = vec!["<unk>", "<s>", "</s>"];
        tokens.extend(bytes.iter().map(String::as_str));
        tokens.extend(["▁", "a", "b", "c", "ab", "bc", "▁ab"]);
        let mut types = vec![2, 3, 3];
        types.extend([6; 256]);
        types.extend([1; 7]);
        let mut scores = vec![0.0; 259];
        // `bc` wins over `ab`; single characters come last.
        scores.extend([-10.0, -11.0, -12.0, -13.0, -2.0, -1.0, -3.0]);
        file.set_strs("tokenizer.ggml.tokens", &tokens);
        file.set_i32s("tokenizer.ggml.token_type", &types);
        file.set_f32s("tokenizer.ggml.scores", &scores);
        let rows = tokens.len() as u64;
        *file.tensor("token_embd.weight") = gguf_builder::Tensor {
            name: "token_embd.weight".into(),
            dimensions: vec![8, rows],
            type_id: 0,
            offset: None,
            data: vec![0; rows as usize * 32],
        };
    })
    .unwrap();
    assert_eq!(
        (&config["bos_token_id"], &config["eos_token_id"], &config["vocab_size"]),
        (&json!(1), &json!(2), &json!(266))
    );
    assert_eq!(tokenizer["model"]["merges"], json!([["b", "c"], ["a", "b"], ["▁", "ab"]]));
    let tokenizer: Tokenizer = tokenizer.to_string().parse().unwrap();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(encode("ab abc"), [1, 265, 259, 260, 264]);
    // `é` is not in the vocabulary: its two bytes are.
    assert_eq!(encode("é"), [1, 259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&encode("ab abc é"), true).unwrap(), "ab abc é");
}
