//! What is wrong with a model directory.

use crate::{common::Job, refused};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;

#[test]
fn a_model_directory_without_a_part_is_refused() {
    for (file, words) in [
        ("tokenizer.json", ["model/tokenizer.json", "does not exist"]),
        ("config.json", ["model/config.json", "No such file"]),
        ("model.safetensors", ["model", "has neither model.safetensors nor"]),
        ("chat_template.jinja", ["model", "no chat template"]),
    ] {
        let job = Job::new();
        fs::remove_file(job.own_model().join(file)).unwrap();
        refused(&job, &[], &words);
        job.tool("generate", &["--prompt", "the cat"]).refused(&words);
    }
    let job = Job::new();
    refused(&job, &["model.path=train.jsonl"], &["`model.path`", "is a file"]);
    job.write("fake.gguf", "not a GGUF file");
    refused(&job, &["model.path=fake.gguf"], &["fake.gguf"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_read() {
    let job = Job::new();
    let model = job.own_model();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        let (path, aside) = (model.join(name), job.path("aside"));
        let was_there = fs::rename(&path, &aside).is_ok();
        let expected = [&format!("model/{name}"), "a pipe, a socket or a device", "expected a file"];
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        job.finetune(&[]).refused(&expected);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        job.finetune(&[]).refused(&expected);
        fs::remove_file(&path).unwrap();
        if was_there {
            fs::rename(aside, path).unwrap();
        }
    }
}

#[test]
fn damaged_and_foreign_weights_are_refused() {
    let job = Job::new();
    let weights = job.own_model().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 100, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        refused(&job, &[], &["model/model.safetensors"]);
    }
    let mut absurd = whole.clone();
    absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&weights, absurd).unwrap();
    refused(&job, &[], &["model/model.safetensors", "header"]);

    type Tensors<'a> = Vec<(String, TensorView<'a>)>;
    let edited = |edit: &dyn Fn(&mut Tensors<'_>)| {
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let mut tensors: Tensors<'_> = tensors.tensors();
        edit(&mut tensors);
        fs::write(&weights, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    const NORM: &str = "model.norm.weight";
    edited(&|tensors| tensors.retain(|(name, _)| name != NORM));
    refused(&job, &[], &[NORM, "missing"]);
    static ZEROS: [u8; 4 * 33] = [0; 4 * 33];
    edited(&|tensors| {
        let norm = tensors.iter_mut().find(|(name, _)| name == NORM).unwrap();
        norm.1 = TensorView::new(Dtype::F32, vec![33], &ZEROS).unwrap();
    });
    refused(&job, &[], &[NORM, "[33]", "[32]"]);
    edited(&|tensors| {
        tensors.push(("model.extra".to_owned(), TensorView::new(Dtype::F32, vec![33], &ZEROS).unwrap()))
    });
    refused(&job, &[], &["model.extra", "no place"]);
    edited(&|tensors| {
        let norm = tensors.iter_mut().find(|(name, _)| name == NORM).unwrap();
        norm.1 = TensorView::new(Dtype::I32, vec![32], &ZEROS[..4 * 32]).unwrap();
    });
    refused(&job, &[], &[NORM, "I32", "F32"]);
    for value in [f32::NAN, f32::INFINITY] {
        let mut spoiled = whole.clone();
        let place = spoiled.len() - 4;
        spoiled[place..].copy_from_slice(&value.to_le_bytes());
        fs::write(&weights, spoiled).unwrap();
        refused(&job, &[], &["model/model.safetensors", "tensor `", "NaN or infinity"]);
    }
    // The header, byte by byte: a shape that disagrees with its bytes, a gap, an overlap, an end beyond the file.
    let header_length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..8 + header_length]).unwrap();
    for (offsets, words) in [
        (serde_json::json!([0, 4]), "model/model.safetensors"),
        (serde_json::json!([8, 136]), "model/model.safetensors"),
        (serde_json::json!([1_u64 << 60, (1_u64 << 60) + 128]), "model/model.safetensors"),
        (serde_json::json!([128, 0]), "model/model.safetensors"),
        (serde_json::json!([-1, 127]), "model/model.safetensors"),
    ] {
        let mut header = header.clone();
        header[NORM]["data_offsets"] = offsets;
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(&whole[8 + header_length..]);
        fs::write(&weights, file).unwrap();
        refused(&job, &[], &[words]);
    }

    fs::rename(&weights, job.path("outside.safetensors")).unwrap();
    for (file, word) in
        [("../outside.safetensors", "not a file in the same directory"), ("gone.safetensors", "missing")]
    {
        let index = serde_json::json!({ "weight_map": { NORM: file } });
        job.write("model/model.safetensors.index.json", index.to_string());
        refused(&job, &[], &["model.safetensors.index.json", file, word]);
    }
}

#[test]
fn configurations_that_change_the_maths_are_refused_by_name() {
    let job = Job::new();
    let path = job.own_model().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value, words) in [
        ("model_type", "mamba".into(), &["model/config.json", "`model_type`", "mamba"][..]),
        ("hidden_act", "gelu".into(), &["model/config.json", "`hidden_act`", "gelu"]),
        ("hidden_size", 0.into(), &["model/config.json", "`hidden_size`"]),
        ("num_hidden_layers", 1_000_000_000_000_i64.into(), &["model"]),
        ("vocab_size", 299.into(), &["model.embed_tokens.weight", "[300, 32]", "[299, 32]"]),
        ("num_key_value_heads", 3.into(), &["model/config.json", "num_key_value_heads"]),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).unwrap();
        refused(&job, &[], words);
    }
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    refused(&job, &[], &["model/config.json", "line "]);
    fs::write(&path, &text).unwrap();
    let tokenizer = job.read("model/tokenizer.json");
    let mut more: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let added = more["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    (token["id"], token["content"]) = (300.into(), "<|one more|>".into());
    added.push(token);
    job.write("model/tokenizer.json", more.to_string());
    refused(&job, &[], &["model", "token ids up to 300", "300 embeddings"]);
    job.write("model/tokenizer.json", "{}");
    refused(&job, &[], &["model/tokenizer.json"]);
}

#[test]
fn chat_templates_that_fail_are_refused_with_the_line() {
    let job = Job::new();
    // Enough examples that a template which uses up its steps on each of them would take minutes.
    job.write_examples("train.jsonl", &[("the cat", "the dog"); 300]);
    let template = job.own_model().join("chat_template.jinja");
    for (text, words) in [
        ("{% for message in messages %}\n{{ message.content }", &["model/chat_template.jinja", "line 2"][..]),
        ("\n\n{{ raise_exception('no roles, please') }}", &["train.jsonl:1: ", "no roles, please"]),
        ("{{ messages[0].content }}\n{{ messages.nothing.at.all }}", &["train.jsonl:1: ", "line 2"]),
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            &["train.jsonl:", "line 1", "steps"],
        ),
        ("{{ messages[0].content }}", &["nothing to learn", "train.jsonl:1"]),
    ] {
        fs::write(&template, text).unwrap();
        refused(&job, &[], words);
    }
    fs::write(&template, "{{ raise_exception('not you') }}").unwrap();
    job.tool("generate", &["--prompt", "the cat"]).refused(&["not you"]);
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.tool("generate", &files).refused(&["3 bad examples", "test.jsonl:1: ", "test.jsonl:3: ", "not you"]);
    // A template in tokenizer_config.json is named by that file.
    fs::remove_file(&template).unwrap();
    let path = job.path("model/tokenizer_config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = "{{ 1 +".into();
    fs::write(&path, config.to_string()).unwrap();
    refused(&job, &[], &["model/tokenizer_config.json", "`chat_template`", "line 1"]);
}

#[test]
fn what_is_no_model_is_told_what_it_is() {
    let job = Job::new();
    let model = job.own_model();
    // Git without its extension for large files leaves these.
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 269060552\n";
    for name in ["model.safetensors", "tokenizer.json"] {
        let whole = fs::read(model.join(name)).unwrap();
        fs::write(model.join(name), POINTER).unwrap();
        refused(&job, &[], &[&format!("model/{name}"), "Git LFS pointer", "git lfs pull"]);
        job.tool("generate", &["--prompt", "the cat"]).refused(&[name, "git lfs pull"]);
        fs::write(model.join(name), whole).unwrap();
    }
    // Its weights alone, then its directory with weights of another form.
    let run = job.run("generate", &["--model", "model/model.safetensors", "--prompt", "the cat"]);
    run.refused(&["one file of a model directory", "give the directory, model"]);
    let whole = fs::read(model.join("model.safetensors")).unwrap();
    fs::remove_file(model.join("model.safetensors")).unwrap();
    job.write("model/pytorch_model.bin", &whole);
    refused(&job, &[], &["weights as pickle (pytorch_model.bin)", "save_pretrained"]);
    job.write("model/x.Q4_1.gguf", "GGUF");
    refused(&job, &[], &["a folder around x.Q4_1.gguf", "give the file itself, model/x.Q4_1.gguf"]);
    // Directory and file change places: a GGUF file that is a directory.
    fs::create_dir(job.path("directory.gguf")).unwrap();
    refused(&job, &["model.path=directory.gguf"], &["directory.gguf"]);
    // An adapter as the model.
    fs::create_dir(job.path("adapter")).unwrap();
    job.write("adapter/adapter_config.json", "{}");
    let run = job.run("generate", &["--model", "adapter", "--prompt", "the cat"]);
    run.refused(&["adapter is not a model directory but a LoRA adapter", "base model"]);
}
