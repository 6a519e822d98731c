//! Each error, reached; `hostile_files.rs` has more of those that damaged files cause.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use ferrotune_lora::peft::{Half, tensor_key};
use ferrotune_lora::{
    Adaptable, Error, LoraConfig, LoraLinear, LoraWeights, RandomKey, Result, TargetModules, inject, load,
    load_adapter, save_adapter,
};
use safetensors::{Dtype, tensor::TensorView};
use std::{fs, path::Path};
use tch::{Device, Kind, Tensor};

struct Model(Vec<LoraLinear>);

impl Adaptable for Model {
    fn visit_linears(&mut self, visit: &mut dyn FnMut(&mut LoraLinear) -> Result<()>) -> Result<()> {
        self.0.iter_mut().try_for_each(visit)
    }
}

fn ones(rows: i64, columns: i64) -> Tensor {
    Tensor::ones([rows, columns], (Kind::Float, Device::Cpu))
}

fn linear(path: &str) -> LoraLinear {
    LoraLinear::new(path, &ones(5, 4), None).unwrap()
}

fn model(paths: &[&str]) -> Model {
    Model(paths.iter().map(|path| linear(path)).collect())
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const Q1: &str = "model.layers.1.self_attn.q_proj";

fn save(directory: &Path) -> Result<()> {
    save_adapter(directory, &LoraConfig::default(), &[(Q, ones(8, 4), ones(5, 8))])
}

#[test]
fn each_mistake_in_a_configuration_is_an_error_of_its_own() {
    let error = |text: &str| LoraConfig::from_json(text).unwrap_err();
    assert!(matches!(error("{"), Error::Json { line: 1, .. }));
    assert!(matches!(error(r#"{"peft_type":"LORA","r":0}"#), Error::InvalidValue { key, .. } if key == "r"));
    let unsupported = error(r#"{"peft_type":"LORA","use_dora":true}"#);
    assert!(matches!(unsupported, Error::Unsupported { key, .. } if key == "use_dora"));
    let pattern = error(r#"{"peft_type":"LORA","target_modules":"("}"#);
    assert!(matches!(pattern, Error::Pattern { key, .. } if key == "target_modules"));

    let inject = |targets: &str| {
        let target_modules = TargetModules::Names(vec![targets.into()]);
        let config = LoraConfig { target_modules, ..LoraConfig::default() };
        inject(&mut model(&[Q]), "default", 0, &config, RandomKey::from_seed(1)).unwrap_err()
    };
    assert!(matches!(inject("up_proj"), Error::NoTarget { .. }));
    assert!(matches!(inject("self_attn"), Error::NotLinear { .. }));
}

#[test]
fn each_mistake_with_a_layer_is_an_error_of_its_own() {
    let (weight, bias) = (ones(5, 4), Tensor::ones([5], (Kind::Float, Device::Cpu)));
    let mixed = LoraLinear::stacked(&[("a", &weight, None), ("b", &weight, Some(&bias))]);
    assert!(matches!(mixed, Err(Error::MixedBias { .. })));
    let mut layer = linear(Q);
    let weights = |rows| LoraWeights { a: ones(2, 4), b: ones(rows, 2), scaling: 1.0, dropout: 0.0 };
    assert!(matches!(layer.set_adapter("elsewhere", 0, weights(5)), Err(Error::NoSuchModule { .. })));
    assert!(matches!(layer.set_adapter(Q, 0, weights(6)), Err(Error::ShapeMismatch { .. })));
    let forward = layer.forward(&ones(2, 3), None, ferrotune_lora::Mode::Eval);
    assert!(matches!(forward, Err(Error::Kernel(_))));
    // What libtorch cannot do with a sparse tensor is its own error.
    let folder = tempfile::tempdir().unwrap();
    let sparse = ones(8, 4).to_sparse(None, None::<&[i64]>, None);
    let saved = save_adapter(folder.path().join("a"), &LoraConfig::default(), &[(Q, sparse, ones(5, 8))]);
    assert!(matches!(saved, Err(Error::Torch(_))));
}

#[test]
fn each_mistake_with_a_directory_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "").unwrap();
    assert!(matches!(save(&path("file/adapter")), Err(Error::Io { .. })));
    assert!(matches!(load_adapter(path("nowhere")), Err(Error::NoAdapter { .. })));
    save(&path("adapter")).unwrap();
    fs::write(path("adapter/notes.txt"), "mine").unwrap();
    assert!(matches!(save(&path("adapter")), Err(Error::ForeignFile { .. })));
    let of = |paths: &[&str]| load(&mut model(paths), "x", 0, path("adapter"), false).unwrap_err();
    let source = |error| match error {
        Error::InFile { source, .. } => *source,
        error => error,
    };
    assert!(matches!(source(of(&[Q1])), Error::OtherModel { count: 1, .. }));
    assert!(matches!(source(of(&[Q, Q1])), Error::NoWeights { path } if path == Q1));
    fs::rename(path("adapter/adapter_model.safetensors"), path("adapter/adapter_model.bin")).unwrap();
    assert!(matches!(load_adapter(path("adapter")), Err(Error::PickleRefused { .. })));
}

#[test]
fn each_mistake_in_a_file_of_weights_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("adapter")).unwrap();
    let file = folder.path().join("adapter/adapter_model.safetensors");
    let error = || match load_adapter(folder.path().join("adapter")).unwrap_err() {
        Error::InFile { path, source } if path == file => *source,
        error => error,
    };
    let (a, b) = (tensor_key(Q, Half::A), tensor_key(Q, Half::B));
    let written = |tensors: &[(&str, Dtype, [usize; 2], f32)]| {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, shape, value)| value.to_le_bytes().repeat(shape[0] * shape[1]))
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((key, dtype, shape, _), bytes)| {
            (*key, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        error()
    };
    let good = (b.as_str(), Dtype::F32, [5, 8], 1.0);
    assert!(matches!(written(&[good]), Error::MissingTensor { missing, .. } if missing == a));
    let shape = written(&[(a.as_str(), Dtype::F32, [7, 4], 1.0), good]);
    assert!(matches!(shape, Error::ShapeMismatch { tensor, .. } if tensor == a));
    let dtype = written(&[(a.as_str(), Dtype::I32, [8, 4], 1.0), good]);
    assert!(matches!(dtype, Error::Dtype { tensor, .. } if tensor == a));
    let finite = written(&[(a.as_str(), Dtype::F32, [8, 4], f32::NAN), good]);
    assert!(matches!(finite, Error::NotFinite { tensor } if tensor == a));
    let foreign = written(&[("lm_head.weight", Dtype::F32, [8, 4], 1.0), good]);
    assert!(matches!(foreign, Error::UnexpectedTensor { tensor, .. } if tensor == "lm_head.weight"));
    fs::write(&file, "not at all").unwrap();
    assert!(matches!(error(), Error::Safetensors { .. }));
    fs::write(&file, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(error().to_string().contains("git lfs pull"));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("adapter");
    save(&directory).unwrap();
    let weights = directory.join("adapter_model.safetensors");
    fs::remove_file(&weights).unwrap();
    fs::create_dir(&weights).unwrap();
    let error = load_adapter(&directory).unwrap_err();
    assert!(matches!(&error, Error::NotAFile { path, .. } if path == &weights), "{error}");
}
