//! Model directories with damage at random places: an error that names the file, or a model; never a panic or an absurd allocation.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use ferrotune_models::{CausalLm, Error, ModelConfig, ModelSize};
use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tch::{Device, Kind};

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder").join(name)
}

/// The fixture's files, one of them changed, in a new directory.
fn directory_with(name: &str, file: &str, bytes: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with(file) {
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    fs::write(copy.path().join(file), bytes).unwrap();
    copy
}

/// Loads what may be a model; an error has to say where.
fn load(directory: &Path) {
    match CausalLm::load(directory, Device::Cpu, Kind::Float) {
        Ok(model) => assert!(model.parameter_count() > 0),
        Err(error) => {
            let place = directory.display().to_string();
            assert!(matches!(error, Error::Torch(_)) || error.to_string().contains(&place), "{error}");
        }
    }
}

fn weights() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fs::read(fixture("llama_gqa_untied").join("model.safetensors")).unwrap())
}

/// Puts `piece` over the bytes from `at` on.
fn overwritten(bytes: &[u8], at: usize, piece: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len();
    let length = piece.len().min(bytes.len() - at);
    bytes[at..at + length].copy_from_slice(&piece[..length]);
    bytes
}

/// What is likely to be read as something else.
const PIECES: &[&[u8]] = &[
    b"0",
    b"9",
    b"-",
    b"1e9",
    b"99999999999999999999",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b",",
    b":",
    b"null",
    b"[]",
    b"F64",
    b"I8",
    b"F8_E4M3",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"lm_head",
    b"../",
    b"\\u0000",
];

const KEYS: &[&str] = &[
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "eos_token_id",
    "hidden_act",
    "layer_types",
    "attention_dropout",
    "partial_rotary_factor",
];

const VALUES: &[&str] = &[
    "null",
    "true",
    "\"\"",
    "\"llama\"",
    "[]",
    "{}",
    "[[]]",
    "0",
    "1",
    "-1",
    "3",
    "1.5",
    "1e30",
    "1e400",
    "-0.0",
    "2147483648",
    "2147483649",
    "9223372036854775807",
    "18446744073709551616",
    "{\"rope_type\": \"llama3\"}",
    "{\"type\": \"linear\", \"factor\": 0}",
    "{\"rope_type\": \"llama3\", \"factor\": 1e30, \"low_freq_factor\": 1e-30, \"high_freq_factor\": 1e30}",
    "{\"rope_theta\": -1}",
    "[\"full_attention\", 3]",
    "[1, -1, null]",
    "\"NaN\"",
];

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn a_damaged_header_is_refused_or_read(at in 0_usize..1 << 16, piece in prop::sample::select(PIECES)) {
        let header = 8 + u64::from_le_bytes(weights()[..8].try_into().unwrap()) as usize;
        let bytes = overwritten(weights(), at % header, piece);
        load(directory_with("llama_gqa_untied", "model.safetensors", &bytes).path());
    }

    #[test]
    fn a_shard_that_is_cut_is_refused(length in any::<prop::sample::Index>()) {
        let length = length.index(weights().len());
        let directory = directory_with("llama_gqa_untied", "model.safetensors", &weights()[..length]);
        prop_assert!(ModelSize::of(directory.path()).is_err());
    }

    #[test]
    fn a_damaged_index_is_refused_or_read(at in 0_usize..1 << 16, piece in prop::sample::select(PIECES)) {
        const INDEX: &str = "model.safetensors.index.json";
        let bytes = fs::read(fixture("llama_sharded_bf16").join(INDEX)).unwrap();
        load(directory_with("llama_sharded_bf16", INDEX, &overwritten(&bytes, at, piece)).path());
    }

    #[test]
    fn a_damaged_configuration_is_refused_or_read(at in 0_usize..1 << 16, piece in prop::sample::select(PIECES)) {
        let bytes = fs::read(fixture("llama_gqa_untied").join("config.json")).unwrap();
        load(directory_with("llama_gqa_untied", "config.json", &overwritten(&bytes, at, piece)).path());
    }

    #[test]
    fn senseless_values_are_refused_or_consistent(
        changes in prop::collection::vec((prop::sample::select(KEYS), prop::sample::select(VALUES)), 1..4),
    ) {
        let text = fs::read_to_string(fixture("llama_gqa_untied").join("config.json")).unwrap();
        // Of two keys of one name the last counts.
        let changes: Vec<String> = changes.iter().map(|(key, value)| format!(", \"{key}\": {value}")).collect();
        let text = format!("{}{}}}", text.trim_end().trim_end_matches('}').trim_end(), changes.concat());
        if let Ok(config) = ModelConfig::from_json(&text) {
            prop_assert!(config.num_attention_heads % config.num_key_value_heads == 0 && config.head_dim % 2 == 0);
            prop_assert!(config.rms_norm_eps.is_finite() && config.rms_norm_eps > 0.0);
            prop_assert!(config.rope_theta.is_finite() && config.rope_theta > 0.0 && config.vocab_size > 0);
            load(directory_with("llama_gqa_untied", "config.json", text.as_bytes()).path());
        }
    }
}
