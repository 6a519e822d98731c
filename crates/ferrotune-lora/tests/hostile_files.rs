//! Damaged, foreign and hostile adapter directories: each is refused with what is wrong, and none crashes.

#![allow(clippy::unwrap_used)] // the allowance for tests does not reach their helpers

use ferrotune_lora::peft::{Half, parse_key, tensor_key};
use ferrotune_lora::{Error, LoraConfig, TargetModules, load_adapter, matches, save_adapter};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

/// Tensors to write: key, dtype, shape, bytes.
type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

fn raw(half: Half, shape: [usize; 2]) -> Raw {
    let bytes = 0.5_f32.to_le_bytes().repeat(shape[0] * shape[1]);
    (tensor_key(MODULE, half), Dtype::F32, shape.to_vec(), bytes)
}

fn good() -> Vec<Raw> {
    vec![raw(Half::A, [8, 4]), raw(Half::B, [6, 8])]
}

fn bytes_of(tensors: &[Raw]) -> Vec<u8> {
    let views = tensors.iter().map(|(key, dtype, shape, bytes)| {
        (key.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

fn load(config: &str, weights: &[u8]) -> Result<(), Error> {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("adapter_config.json"), config).unwrap();
    fs::write(root.path().join("adapter_model.safetensors"), weights).unwrap();
    load_adapter(root.path()).map(drop)
}

fn refused(tensors: &[Raw]) -> String {
    load(&config(), &bytes_of(tensors)).unwrap_err().to_string()
}

fn config() -> String {
    LoraConfig::default().to_json().unwrap()
}

#[test]
fn a_good_file_is_read() {
    load(&config(), &bytes_of(&good())).unwrap();
}

#[test]
fn half_a_pair_is_named_with_its_other_half() {
    for (index, missing) in [(0, "lora_B"), (1, "lora_A")] {
        let error = refused(&good()[index..=index]);
        assert!(error.contains(&format!("{missing}.weight` is not")), "{error}");
    }
}

#[test]
fn wrong_shapes_are_named_with_both_shapes() {
    let cases: [(usize, [usize; 2], &str); 4] =
        [(0, [4, 4], "[8, -1]"), (1, [6, 4], "[-1, 8]"), (0, [8, 0], "[8, -1]"), (1, [0, 8], "[-1, 8]")];
    for (index, shape, expected) in cases {
        let mut tensors = good();
        tensors[index] = raw([Half::A, Half::B][index], shape);
        let error = refused(&tensors);
        assert!(error.contains(expected) && error.contains(&format!("{shape:?}")), "{error}");
    }
    let mut tensors = good();
    tensors[0].2 = vec![32];
    assert!(refused(&tensors).contains("[32]"));
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tensors = good();
        tensors[1].3[4..8].copy_from_slice(&value.to_le_bytes());
        assert!(refused(&tensors).contains("lora_B.weight` holds NaN or infinity"));
    }
}

#[test]
fn other_dtypes_are_refused_by_name() {
    let mut tensors = good();
    tensors[0].1 = Dtype::I32;
    assert!(refused(&tensors).contains("dtype I32"));
}

#[test]
fn tensors_that_are_no_lora_weights_are_named_with_a_way_out() {
    for (key, hint) in [
        (format!("{MODULE}.lora_A.weight"), "does not begin with"),
        (format!("base_model.model.{MODULE}.lora_A.default.weight"), "save_pretrained"),
        ("base_model.model.model.embed_tokens.lora_embedding_A".into(), "embeddings"),
        (format!("base_model.model.{MODULE}.lora_magnitude_vector"), "DoRA"),
        ("base_model.model.lm_head.weight".into(), "modules_to_save"),
        ("base_model.model..lora_A.weight".into(), "adapter"),
    ] {
        let mut tensors = good();
        tensors.push((key.clone(), Dtype::F32, vec![1, 1], vec![0; 4]));
        let error = refused(&tensors);
        assert!(error.contains(&key) && error.contains(hint), "{error}");
    }
    // A module that `target_modules` does not name: PEFT would drop it in silence.
    let mut tensors = good();
    for tensor in &mut tensors {
        tensor.0 = tensor.0.replace("q_proj", "up_proj");
    }
    assert!(refused(&tensors).contains("target_modules"));
}

#[test]
fn what_is_missing_is_named() {
    let root = tempfile::tempdir().unwrap();
    let error = || load_adapter(root.path()).unwrap_err();
    fs::create_dir(root.path().join("expert")).unwrap();
    fs::write(root.path().join("expert/adapter_config.json"), "{}").unwrap();
    assert!(error().to_string().contains("adapter_config.json is missing; there is one in"));
    fs::write(root.path().join("adapter_config.json"), config()).unwrap();
    assert!(matches!(error(), Error::NoAdapter { missing: "adapter_model.safetensors", .. }));
    fs::write(root.path().join("adapter_model.bin"), "").unwrap();
    let pickle = error();
    assert!(matches!(pickle, Error::PickleRefused { .. }) && pickle.to_string().contains("save_pretrained"));
    assert!(matches!(load_adapter(Path::new("no/such/place")).unwrap_err(), Error::NoAdapter { .. }));
}

#[test]
fn a_fault_in_the_configuration_names_the_file_and_the_option() {
    let text = config().replace("\"fan_in_fan_out\": false", "\"use_dora\": true");
    let error = load(&text, &bytes_of(&good())).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json") && error.contains("`use_dora` is true"), "{error}");
}

#[test]
fn every_truncation_and_every_lie_about_the_length_is_refused() {
    let bytes = bytes_of(&good());
    for length in 0..bytes.len() {
        assert!(load(&config(), &bytes[..length]).is_err(), "{length}");
    }
    for claimed in [0, 1, 99_999_999, 100_000_001, u64::MAX - 8, u64::MAX] {
        let mut lying = bytes.clone();
        lying[..8].copy_from_slice(&claimed.to_le_bytes());
        assert!(load(&config(), &lying).is_err(), "{claimed}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(load(&config(), &longer).is_err());
}

#[test]
fn a_header_that_claims_absurd_sizes_allocates_nothing() {
    let key = tensor_key(MODULE, Half::A);
    for (shape, end) in [
        ("[4611686018427387904, 1]", "18446744073709551615"),
        ("[1099511627776, 8]", "35184372088832"),
        ("[18446744073709551615, 18446744073709551615]", "4"),
        ("[8, 4]", "64"),
    ] {
        let header = format!(r#"{{"{key}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend([0; 128]);
        let error = load(&config(), &bytes).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors"), "{error}");
    }
}

#[test]
fn what_would_not_load_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let tensor = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let save = |path: &str, a: Tensor, b: Tensor| save_adapter(&dir, &LoraConfig::default(), &[(path, a, b)]);
    assert!(save(MODULE, tensor([4, 4]), tensor([6, 8])).unwrap_err().to_string().contains("[8, -1]"));
    assert!(save("model.layers.0.mlp.up_proj", tensor([8, 4]), tensor([6, 8])).is_err());
    assert!(save(MODULE, tensor([8, 4]), tensor([6, 8]) * f64::NAN).unwrap_err().to_string().contains("NaN"));
    let twice = [(MODULE, tensor([8, 4]), tensor([6, 8])), (MODULE, tensor([8, 4]), tensor([6, 8]))];
    assert!(save_adapter(&dir, &LoraConfig::default(), &twice).unwrap_err().to_string().contains("twice"));
    assert!(save_adapter(&dir, &LoraConfig::default(), &twice[..0]).is_err());
    assert!(fs::read_dir(root.path()).unwrap().next().is_none());
}

#[test]
fn all_linear_is_written_as_paths_and_values_of_any_kind_as_f32() {
    let root = tempfile::tempdir().unwrap();
    let config = LoraConfig { target_modules: TargetModules::AllLinear, ..LoraConfig::default() };
    let a = Tensor::randn([8, 4], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let b = Tensor::randn([8, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true).transpose(0, 1);
    save_adapter(root.path(), &config, &[(MODULE, a.shallow_clone(), b.shallow_clone())]).unwrap();
    let read = load_adapter(root.path()).unwrap();
    assert_eq!(read.config.target_modules, TargetModules::Names(vec![MODULE.into()]));
    let (read_a, read_b) = &read.tensors[MODULE];
    assert_eq!((read_a, read_b), (&a.to_kind(Kind::Float), &b));
}

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_key_leads_back_to_its_path(path in "[a-zA-Z0-9_.\\-\u{e9}]{1,40}", b in any::<bool>()) {
        let half = if b { Half::B } else { Half::A };
        let key = tensor_key(&path, half);
        prop_assert_eq!(parse_key(&key), Some((path.as_str(), half)));
    }

    #[test]
    fn a_key_that_is_read_is_written_alike(key in "(base_model\\.model\\.)?[a-z.]{0,8}(\\.lora_[ABC](\\.default)?)?(\\.weight)?") {
        if let Some((path, half)) = parse_key(&key) {
            prop_assert_eq!(tensor_key(path, half), key);
        }
    }

    #[test]
    fn random_weights_are_no_adapter(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(load(&config(), &bytes).is_err());
    }

    #[test]
    fn a_header_of_random_text_is_no_adapter(header in "[\\[\\]{}\",:0-9a-zF_]{0,80}", rest in 0_usize..64) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend(vec![0; rest]);
        prop_assert!(load(&config(), &bytes).is_err());
    }

    #[test]
    fn a_flipped_byte_is_refused_or_read(index in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = bytes_of(&good());
        let index = index.index(bytes.len());
        bytes[index] = byte;
        let _ = load(&config(), &bytes);
    }

    #[test]
    fn random_json_never_panics(text in "\\PC{0,60}") {
        let _ = LoraConfig::from_json(&text);
    }

    #[test]
    fn random_values_of_options_never_panic(
        key in prop::sample::select(vec![
            "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
            "layers_to_transform", "layers_pattern", "init_lora_weights", "task_type", "use_rslora", "bias",
        ]),
        value in prop::sample::select(vec![
            "0", "-1", "1e400", "18446744073709551616", "\"\"", "\"(\"", "[]", "[\"\"]", "[null]", "{}", "{\"(\":1}",
            "{\"a\":0}", "{\"a\":null}", "true", "null", "[[[]]]", "\"\\u0000\"", "[1,\"a\"]",
        ]),
    ) {
        if let Ok(config) = LoraConfig::from_json(&format!(r#"{{"peft_type":"LORA","{key}":{value}}}"#)) {
            prop_assert!(config.scaling_for(MODULE).unwrap().is_finite());
            let _ = matches(&config, MODULE);
            prop_assert_eq!(LoraConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn random_patterns_never_panic(pattern in "[a-z.*+?|(){}\\[\\]\\\\^$0-9:=!<>P-]{0,16}", path in "[a-z.0-9]{0,12}") {
        let config = LoraConfig { target_modules: TargetModules::Pattern(pattern.clone()), ..LoraConfig::default() };
        let _ = matches(&config, &path);
        let config = LoraConfig { rank_pattern: vec![(pattern, 3)], ..LoraConfig::default() };
        let _ = config.rank_for(&path);
    }
}

/// The metadata that transformers looks for.
#[test]
fn the_file_says_that_its_format_is_pt() {
    let root = tempfile::tempdir().unwrap();
    let tensor = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    save_adapter(root.path(), &LoraConfig::default(), &[(MODULE, tensor([8, 4]), tensor([6, 8]))]).unwrap();
    let bytes = fs::read(root.path().join("adapter_model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(*metadata.metadata(), Some(HashMap::from([("format".to_owned(), "pt".to_owned())])));
}
