//! What is wrong with an adapter.

use crate::common::{Job, copy_of, shared_adapter};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// An adapter of the tiny model, trained once.
fn adapter() -> &'static Path {
    static ADAPTER: OnceLock<PathBuf> = OnceLock::new();
    ADAPTER.get_or_init(|| shared_adapter(&["training.max_steps=1"]))
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let job = Job::new();
    copy_of(adapter(), &job.path("adapter"));
    let weights = job.path("adapter/adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let config = job.read("adapter/adapter_config.json");
    let rejected = |words: &[&str]| {
        job.tool("generate", &["--adapter", "adapter", "--prompt", "the cat"]).refused(words);
    };
    /// Every tensor through `edit`: name, shape, values.
    fn rewrite(whole: &[u8], path: &Path, edit: impl Fn(&mut String, &mut Vec<usize>, &mut Vec<u8>)) {
        let tensors = SafeTensors::deserialize(whole).unwrap();
        let owned: Vec<_> = tensors
            .tensors()
            .into_iter()
            .map(|(mut name, view)| {
                let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
                edit(&mut name, &mut shape, &mut data);
                (name, shape, data)
            })
            .collect();
        let views = owned
            .iter()
            .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

    rewrite(&whole, &weights, |name, _, data| {
        if name == B {
            data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    rejected(&["adapter/adapter_model.safetensors", B, "NaN"]);
    // Of a model with more layers, and of one with wider ones.
    rewrite(&whole, &weights, |name, _, _| *name = name.replace("layers.1.", "layers.7."));
    rejected(&["adapter", "model.layers.7.self_attn.q_proj", "another model"]);
    rewrite(&whole, &weights, |name, shape, data| {
        if name == B {
            shape[0] *= 2;
            data.extend_from_within(..);
        }
    });
    rejected(&["adapter", "layers.0.self_attn.q_proj", "[64, 4]", "[32, 4]"]);
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    rejected(&["adapter/adapter_model.safetensors", "not a whole safetensors file"]);
    fs::write(&weights, &whole).unwrap();

    job.write("adapter/adapter_config.json", config.replacen('{', "{\"use_dora\": true, ", 1));
    rejected(&["adapter/adapter_config.json", "`use_dora`"]);
    job.write("adapter/adapter_config.json", &config[..config.len() / 2]);
    rejected(&["adapter/adapter_config.json", "line "]);
    job.write("adapter/adapter_config.json", config);
    #[cfg(unix)]
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let (path, aside) = (job.path("adapter").join(name), job.path("aside"));
        fs::rename(&path, &aside).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        rejected(&[&format!("adapter/{name}"), "a pipe, a socket or a device", "expected a file"]);
        fs::rename(aside, path).unwrap();
    }
    fs::rename(&weights, job.path("adapter/adapter_model.bin")).unwrap();
    rejected(&["adapter/adapter_model.bin", "pickle"]);
    fs::remove_file(job.path("adapter/adapter_model.bin")).unwrap();
    rejected(&["adapter", "adapter_model.safetensors is missing"]);
    fs::remove_dir_all(job.path("adapter")).unwrap();
    rejected(&["adapter"]);
    let model = crate::common::model().to_str().unwrap();
    job.tool("generate", &["--adapter", model, "--prompt", "the cat"])
        .refused(&[model, "it is a whole model"]);
    job.tool("generate", &["--adapter", "test.jsonl", "--prompt", "the cat"])
        .refused(&["test.jsonl", "not a file"]);
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.tool("score", &[&["--adapter", "adapter"], &files[..]].concat()).refused(&["adapter"]);
    assert!(!job.path("o.jsonl").exists());
}
