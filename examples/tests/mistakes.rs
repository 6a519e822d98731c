//! Each mistake gets exit code 2 and a message with the place and the remedy, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod common;

use common::{Job, RECIPE, Run, copy_of, model, shared_adapter, snapshot};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Runs the recipe, which has to be refused with these words, and nothing may be left of the run.
#[track_caller]
fn refused(job: &Job, settings: &[&str], words: &[&str]) -> Run {
    let before = snapshot(job.folder());
    let run = job.finetune(settings);
    run.refused(words);
    assert!(run.stdout.is_empty(), "errors go to standard error: {run}");
    let after = snapshot(job.folder());
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(before == after, "left behind: {new:?}");
    run
}

/// As [`refused`], for a recipe with `found` in place of `text`.
#[track_caller]
fn recipe_refused(text: &str, found: &str, words: &[&str]) {
    let job = Job::new();
    let recipe = job.read("recipe.toml");
    assert!(recipe.contains(text), "{text}");
    job.write("recipe.toml", recipe.replace(text, found));
    refused(&job, &[], words);
}

const GOOD: &str = r#"{"instruction": "the cat", "output": "the dog"}"#;

#[test]
fn bad_lines_are_named_all_at_once() {
    let job = Job::new();
    let mut lines: Vec<Vec<u8>> = [
        GOOD,
        "not JSON",
        r#"{"instruction": "cut off"#,
        r#"{"instruction": "a", "output": "b"} {"instruction": "c", "output": "d"}"#,
        "{\"instruction\": \"a\0b\", \"output\": \"c\"}",
        r#"{"instruction": "\ud800", "output": "b"}"#,
        r#"{"instruction": "a", "instruction": "b", "output": "c"}"#,
        r#"{"instruction": "a"}"#,
        r#"{"instruction": "", "output": "b"}"#,
        r#"{"instruction": "a", "output": null}"#,
        r#"{"instruction": "a", "output": 5}"#,
        r#"["a", "b"]"#,
    ]
    .iter()
    .map(|line| line.as_bytes().to_vec())
    .collect();
    lines.push(b"{\"instruction\": \"\xff\", \"output\": \"b\"}".to_vec());
    lines.push([vec![b'['; 100_000], vec![b']'; 100_000]].concat());
    job.write("train.jsonl", lines.join(&b'\n'));
    let run = refused(&job, &[], &["13 bad lines", "`output`", "UTF-8", "a number"]);
    for line in 2..=14 {
        assert!(run.stderr.contains(&format!("train.jsonl:{line}:")), "line {line}: {run}");
    }
    assert!(run.stderr.len() < 10_000, "{run}");

    job.write("train.jsonl", "nonsense\n".repeat(100));
    let run = refused(&job, &[], &["100 bad lines", "train.jsonl:20:1: ", "and 80 more"]);
    assert!(!run.stderr.contains("train.jsonl:21:"), "{run}");

    // The same for the other files, and for the tools.
    job.write_examples("train.jsonl", &[("a", "b")]);
    job.write("validation.jsonl", format!("{GOOD}\n{{\n"));
    refused(&job, &[], &["validation.jsonl:2:"]);
    job.write("test.jsonl", "{}");
    job.write_examples("validation.jsonl", &[("a", "b")]);
    refused(&job, &[], &["test.jsonl:1:1: expected the fields `instruction` and `output`"]);
    for tool in ["generate", "score"] {
        job.tool(tool, &["--input", "test.jsonl", "--output", "o.jsonl"]).refused(&["test.jsonl:1:1: "]);
        assert!(!job.path("o.jsonl").exists());
    }
}

#[test]
fn a_byte_order_mark_and_crlf_are_no_mistakes() {
    let job = Job::new();
    job.write("train.jsonl", format!("\u{feff}{GOOD}\r\n{GOOD}\r\n"));
    job.finetune(&["training.max_steps=1", "evaluation.before=false", "evaluation.after=false"]).succeeded();
}

#[test]
fn empty_and_missing_data_are_told_before_the_model_is_read() {
    let job = Job::new();
    job.write("train.jsonl", "");
    refused(&job, &[], &["train.jsonl", "no examples"]);
    job.write("train.jsonl", "\n\n");
    refused(&job, &[], &["train.jsonl", "no examples"]);
    refused(
        &job,
        &["data.train=absent.jsonl", "data.test=nowhere/test.jsonl", "model.path=gone"],
        &["absent.jsonl", "nowhere/test.jsonl", "\"gone\"", "does not exist", "3 problems"],
    );
    refused(&job, &["data.train=."], &["`data.train`", "is a folder"]);
    for tool in ["generate", "score"] {
        let run = job.tool(tool, &["--input", "absent.jsonl", "--output", "o.jsonl"]);
        run.refused(&["absent.jsonl"]);
    }
    job.run("evaluate", &["--input", "absent.jsonl"]).refused(&["absent.jsonl"]);
    job.run("finetune", &["absent.toml"]).refused(&["absent.toml"]);
}

#[test]
fn examples_that_are_too_long_are_named() {
    let job = Job::new();
    let long = "one two three ".repeat(40);
    job.write_examples("train.jsonl", &[("a", "b"), ("the cat", &long), ("c", "d"), (&long, "e")]);
    refused(
        &job,
        &["data.max_length=100"],
        &["train.jsonl:2: ", "train.jsonl:4: ", "max_length = 100", "raise"],
    );
    // Beyond the model's context no setting helps.
    let run =
        refused(&job, &["data.max_length=4096"], &["train.jsonl:2: ", "train.jsonl:4: ", "context of 128"]);
    assert!(!run.stderr.contains("max_length"), "{run}");
    job.write_examples("train.jsonl", &[("a", "b")]);
    job.write_examples("test.jsonl", &[("a", "b"), (&long, "b")]);
    refused(&job, &[], &["test.jsonl:2: ", "context of 128", "max_new_tokens"]);
    refused(
        &job,
        &["generation.max_new_tokens=500"],
        &["test.jsonl:1: ", "context of 128", "max_new_tokens"],
    );
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.tool("score", &files).refused(&["test.jsonl:2: ", "context of 128"]);
    let run = job.tool("generate", &[&files[..], &["--max-new-tokens", "20"]].concat());
    run.refused(&["test.jsonl:2: ", "context of 128"]);
    job.tool("generate", &["--prompt", &long]).refused(&["--prompt", "context of 128"]);
    assert!(!job.path("o.jsonl").exists());
}

#[test]
fn recipes_are_checked_key_by_key() {
    recipe_refused(
        "learning_rate = ",
        "learning_rat = ",
        &["recipe.toml:17:1: ", "did you mean `training.learning_rate`?"],
    );
    recipe_refused(
        "learning_rate = 1e-3",
        "learning_rate = \"high\"",
        &["recipe.toml:17:1: ", "`training.learning_rate`", "number"],
    );
    recipe_refused(
        "per_device_train_batch_size = 2",
        "per_device_train_batch_size = 0",
        &[
            "recipe.toml:15:1: ",
            "`training.per_device_train_batch_size` is 0; expected an integer of at least 1",
        ],
    );
    recipe_refused("[lora]", "[lora", &["recipe.toml:10:6: ", "not valid TOML"]);
    recipe_refused("[lora]", "[loar]", &["recipe.toml:10:", "did you mean `[lora]`?"]);
    recipe_refused("output_dir = \"out\"", "", &["`output_dir` is missing"]);
    recipe_refused(
        "max_length = 128",
        "max_length = 1.5\nmax_train = -1",
        &["2 problems", "`data.max_length`", "`data.max_train`"],
    );
    let job = Job::new();
    refused(
        &job,
        &["training.lerning_rate=1"],
        &["training.lerning_rate=1", "did you mean `training.learning_rate`?"],
    );
    refused(&job, &["lora.r=0"], &["`lora.r` is 0"]);
    refused(&job, &["lora.r=1000000000"], &["`lora.r` is 1000000000; expected an integer from 1 to"]);
    refused(&job, &["nonsense"], &["section.key=value"]);
    refused(&job, &["runtime.threads=0"], &["`runtime.threads`"]);
    refused(&job, &["evaluation.metrics=[\"rouge\"]"], &["`evaluation.metrics`", "rougeL"]);
    job.write("recipe.toml", b"output_dir = \"\xff\"");
    refused(&job, &[], &["recipe.toml", "UTF-8"]);
}

#[test]
fn target_modules_that_match_nothing_are_answered_with_what_there_is() {
    let job = Job::new();
    refused(
        &job,
        &["lora.target_modules=[\"query\"]"],
        &["query", "q_proj", "down_proj", "matches no linear layer"],
    );
    refused(&job, &["lora.target_modules=[\"mlp\"]"], &["mlp", "not a linear layer", "gate_proj"]);
}

#[test]
fn output_directories_that_cannot_be_are_told_first() {
    let job = Job::new();
    job.write("file", "");
    refused(&job, &["output_dir=file"], &["`output_dir`", "is a file"]);
    refused(&job, &["output_dir=file/run"], &["file/run"]);
    refused(&job, &["output_dir=train.jsonl"], &["`output_dir`", "`data.train`"]);
    // Where results would replace what is no result.
    fs::create_dir_all(job.path("out/report.html/mine")).unwrap();
    refused(&job, &["overwrite_output_dir=true"], &["report.html"]);
    for tool in ["generate", "score"] {
        for output in ["file/o.jsonl", ".", "out"] {
            let run = job.tool(tool, &["--input", "test.jsonl", "--output", output]);
            run.refused(&[output]);
            assert!(!run.stderr.contains("prompt "), "before the work begins: {run}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_result_never_replaces_its_input() {
    let job = Job::new();
    let before = snapshot(job.folder());
    std::os::unix::fs::symlink("test.jsonl", job.path("link.jsonl")).unwrap();
    for output in ["test.jsonl", "./test.jsonl", "link.jsonl"] {
        for tool in ["generate", "score"] {
            job.tool(tool, &["--input", "test.jsonl", "--output", output])
                .refused(&[output, "it is the input"]);
        }
        let run = job.run("evaluate", &["--input", "test.jsonl", "--output", output]);
        run.refused(&[output, "it is the input"]);
    }
    fs::remove_file(job.path("link.jsonl")).unwrap();
    assert!(before == snapshot(job.folder()));
}

#[test]
fn arguments_out_of_range_are_refused() {
    let job = Job::new();
    for arguments in
        [["--threads", "0"], ["--batch-size", "0"], ["--max-new-tokens", "0"], ["--threads", "1000000"]]
    {
        let run = job.run("generate", &[&["--model", "gone", "--prompt", "a"], &arguments[..]].concat());
        run.refused(&arguments);
    }
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.run("score", &[&["--model", "gone", "--threads", "0"], &files[..]].concat()).refused(&["--threads"]);
    job.run("score", &[&["--model", "gone"], &files[..]].concat()).refused(&["gone"]);
    job.tool("generate", &["--prompt", "a", "--device", "gpu"]).refused(&["gpu", "cpu"]);
    job.tool("generate", &["--prompt", ""]).refused(&["--prompt"]);
}

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
        ("vocab_size", 299.into(), &["model", "300 tokens", "299"]),
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
    fs::rename(&weights, job.path("adapter/adapter_model.bin")).unwrap();
    rejected(&["adapter/adapter_model.bin", "pickle"]);
    fs::remove_file(job.path("adapter/adapter_model.bin")).unwrap();
    rejected(&["adapter", "adapter_model.safetensors is missing"]);
    fs::remove_dir_all(job.path("adapter")).unwrap();
    rejected(&["adapter"]);
    let files = ["--input", "test.jsonl", "--output", "o.jsonl"];
    job.tool("score", &[&["--adapter", "adapter"], &files[..]].concat()).refused(&["adapter"]);
    assert!(!job.path("o.jsonl").exists());
}

#[test]
fn a_recipe_in_the_wrong_place_is_no_recipe() {
    let job = Job::new();
    // The model's path is relative to where the program runs, not to the recipe.
    fs::create_dir(job.path("recipes")).unwrap();
    copy_of(model(), &job.path("recipes/model"));
    job.write("recipes/recipe.toml", RECIPE.replace("MODEL", "model"));
    let run = job.run("finetune", &["recipes/recipe.toml"]);
    run.refused(&["\"model\" does not exist", "paths are not relative to the recipe"]);
    job.run("finetune", &["train.jsonl"]).refused(&["train.jsonl:1:", "not valid TOML"]);
    job.run("finetune", &["recipes"]).refused(&["recipes"]);
}
