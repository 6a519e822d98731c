//! Each error, reached; `gguf_hostile.rs` and the tests of the modules have more of those that damaged files cause.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the allowance for tests does not reach their helpers")]

mod gguf_builder;

use ferrotune_kernels::{Mode, SequenceLayout};
use ferrotune_models::{
    CausalLm, Checkpoint, Error, GenerationConfig, ModelConfig, PackedInputs, generate,
    gguf::{GgmlType, GgufFile, dequantize},
    import::{hf_dir_for, import_gguf, import_gguf_with_progress},
};
use gguf_builder::GgufBuilder;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

const NORM: &str = "model.norm.weight";

/// A copy of a small model that a test may change.
fn model(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder/llama_gqa_untied");
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    copy
}

fn load(directory: &Path) -> Result<CausalLm, Error> {
    CausalLm::load(directory, Device::Cpu, Kind::Float)
}

#[test]
fn each_mistake_in_a_gguf_file_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("imported");
    let import = |change: &dyn Fn(&mut GgufBuilder)| {
        let mut file = GgufBuilder::tiny_llama();
        change(&mut file);
        import_gguf(&file.write(folder.path()), &output).unwrap_err()
    };
    assert!(matches!(import(&|file| file.magic = b"GGML".to_vec()), Error::GgufMalformed { .. }));
    let other = import(&|file| file.set_str("general.architecture", "gpt2"));
    assert!(matches!(other, Error::GgufUnsupported { found, .. } if found == "gpt2"));
    let missing = import(&|file| file.remove("llama.context_length"));
    assert!(matches!(missing, Error::GgufKeyMissing { key, .. } if key == "llama.context_length"));
    let invalid = import(&|file| file.set_str("llama.context_length", "long"));
    assert!(matches!(invalid, Error::GgufKeyInvalid { key, .. } if key == "llama.context_length"));
    let tensor = import(&|file| file.tensors.retain(|tensor| tensor.name != "output_norm.weight"));
    assert!(matches!(tensor, Error::GgufTensorMissing { tensor, .. } if tensor == "output_norm.weight"));
    let shape = import(&|file| file.set_u32("llama.feed_forward_length", 32));
    assert!(matches!(shape, Error::GgufTensorShape { .. }));
    let merges = import(&|file| file.set_strs("tokenizer.ggml.merges", &["ab"]));
    assert!(matches!(merges, Error::GgufVocabulary { index: 0, .. }));
    assert!(!output.exists());
    let blocks = dequantize(GgmlType::Q4_0, &[0; 18], &mut [0.0; 31]);
    assert!(matches!(blocks, Err(Error::GgufBlockLength { elements: 31, .. })));

    let path = GgufBuilder::tiny_llama().write(folder.path());
    GgufFile::open(&path).unwrap();
    let stopped = import_gguf_with_progress(&path, &output, &|progress| progress.done_bytes == 0);
    assert!(matches!(stopped, Err(Error::ImportStopped { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a stopped import leaves nothing");
    fs::create_dir_all(output.join("mine")).unwrap();
    assert!(matches!(import_gguf(&path, &output), Err(Error::ImportTargetExists { .. })));
}

#[test]
fn each_mistake_with_a_directory_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let directory = model(folder.path());
    load(&directory).unwrap();
    let cache = folder.path().join("cache");
    let weights = directory.join("model.safetensors");
    assert!(matches!(hf_dir_for(&weights, &cache), Err(Error::NotAModel { .. })));
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(matches!(hf_dir_for(&directory, &cache), Err(Error::GitLfsPointer { .. })));
    fs::write(&weights, &whole[..100]).unwrap();
    assert!(matches!(load(&directory), Err(Error::Weights { .. })));
    fs::remove_file(&weights).unwrap();
    assert!(matches!(load(&directory), Err(Error::NoWeights { .. })));
    let config = directory.join("config.json");
    type Is = fn(&Error) -> bool;
    let cases: [(&str, Is); 3] = [
        ("{", |error| matches!(error, Error::ConfigMalformed { .. })),
        (r#"{"model_type": "gpt2"}"#, |error| matches!(error, Error::ConfigUnsupported { .. })),
        (r#"{"model_type": "llama", "vocab_size": -1}"#, |error| {
            matches!(error, Error::ConfigInvalid { .. })
        }),
    ];
    for (text, is) in cases {
        fs::write(&config, text).unwrap();
        match load(&directory) {
            Err(Error::InFile { path, source }) if path == config => assert!(is(&source), "{source}"),
            other => panic!("{other:?}"),
        }
    }
    fs::remove_file(config).unwrap();
    assert!(matches!(ModelConfig::from_dir(&directory), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_named_and_never_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let directory = model(folder.path());
    let gguf = directory.join("model.gguf");
    for name in ["config.json", "generation_config.json", "model.safetensors", "model.gguf"] {
        let path = directory.join(name);
        let aside = folder.path().join("aside");
        let was_there = fs::rename(&path, &aside).is_ok();
        let read = || match name {
            "model.gguf" => GgufFile::open(&gguf).map(|_| ()),
            _ => load(&directory).map(|_| ()),
        };
        let not_a_file = |found: &str| match read() {
            Err(Error::NotAFile { path: named, found: what }) => {
                assert!(named == path && what.contains(found))
            }
            other => panic!("{name}: {other:?}"),
        };
        fs::create_dir(&path).unwrap();
        not_a_file("a folder");
        fs::remove_dir(&path).unwrap();
        // Where a pipe would wait for ever, this cannot be opened.
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        not_a_file("a socket");
        drop(socket);
        fs::remove_file(&path).unwrap();
        for target in [name, "nowhere"] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            assert!(matches!(read(), Err(Error::Io { path: named, .. }) if named == path), "{name}");
            fs::remove_file(&path).unwrap();
        }
        if was_there {
            fs::rename(aside, path).unwrap();
        }
    }
    load(&directory).unwrap();
}

#[test]
fn each_mistake_with_a_tensor_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let directory = model(folder.path());
    let path = directory.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let hidden = tensors.tensor(NORM).unwrap().shape()[0];
    let edited = |norm: Option<(Dtype, usize, f32)>, extra: bool| {
        let bytes = norm.map(|(_, size, value)| value.to_le_bytes().repeat(size)).unwrap_or_default();
        let mut views: Vec<(String, TensorView<'_>)> = tensors.tensors();
        views.retain(|(name, _)| name != NORM);
        if let Some((dtype, size, _)) = norm {
            views.push((NORM.to_owned(), TensorView::new(dtype, vec![size], &bytes).unwrap()));
        }
        if extra {
            views.push(("extra".to_owned(), TensorView::new(Dtype::F32, vec![hidden], &bytes).unwrap()));
        }
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        load(&directory).unwrap_err()
    };
    assert!(matches!(edited(None, false), Error::TensorMissing { tensor, .. } if tensor == NORM));
    let shape = edited(Some((Dtype::F32, hidden + 1, 1.0)), false);
    assert!(matches!(shape, Error::TensorShape { tensor, .. } if tensor == NORM));
    let dtype = edited(Some((Dtype::I32, hidden, 1.0)), false);
    assert!(matches!(dtype, Error::TensorDtype { found, .. } if found == "I32"));
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let error = edited(Some((Dtype::F32, hidden, value)), false);
        assert!(matches!(error, Error::TensorNotFinite { tensor, .. } if tensor == NORM));
    }
    let extra = edited(Some((Dtype::F32, hidden, 1.0)), true);
    assert!(matches!(extra, Error::TensorsUnexpected { count: 1, first, .. } if first == "extra"));
    // Numbers so large that their sum overflows are finite all the same.
    let large = f32::MAX.to_le_bytes().repeat(hidden);
    let view = TensorView::new(Dtype::F32, vec![hidden], &large).unwrap();
    fs::write(&path, safetensors::serialize([("large", view)], None).unwrap()).unwrap();
    let _ = Checkpoint::open(&directory).unwrap().tensor("large", &[hidden as i64], Kind::Float).unwrap();
}

#[test]
fn each_mistake_with_a_model_in_use_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = load(&model(folder.path())).unwrap();
    let layout = SequenceLayout::from_cu_seqlens(&[0, 3]).unwrap();
    let run = |ids: &[i64]| model.logits(ids, &layout, None);
    assert!(matches!(run(&[1, 2, 1 << 40]), Err(Error::TokenOutOfRange { .. })));
    assert!(matches!(run(&[1, 2]), Err(Error::Inputs { .. })));
    let config =
        GenerationConfig { max_new_tokens: 1, batch_size: 1, eos_token_ids: Vec::new(), adapter: None };
    assert!(matches!(generate(&model, &[vec![]], &config, &mut |_, _| true), Err(Error::Inputs { .. })));
    assert!(matches!(model.logits(&[1, 2, 3], &layout, Some(&[99])), Err(Error::Torch(_))));
    let inputs = PackedInputs {
        input_ids: vec![1, 2, 3],
        layout: layout.clone(),
        target_rows: vec![0],
        target_ids: vec![model.config().vocab_size],
    };
    assert!(matches!(model.target_nll(&inputs, Mode::Eval), Err(Error::Kernel(_))));
    // An adapter of another kind of numbers than the model's.
    ferrotune_lora::Adaptable::visit_linears(&mut model, &mut |layer| {
        let module = layer.modules().next().unwrap().clone();
        let counts = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Int64, Device::Cpu));
        let (a, b) = (counts([2, module.in_features]), counts([module.out_features, 2]));
        layer.set_adapter(&module.path, 0, ferrotune_lora::LoraWeights { a, b, scaling: 1.0, dropout: 0.0 })
    })
    .unwrap();
    let adapted = model.logits(&[1, 2, 3], &layout.with_adapter(Some(0)), None);
    assert!(matches!(adapted, Err(Error::Lora(_))), "{adapted:?}");
}
