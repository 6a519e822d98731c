//! Each error that no test of a module names, reached.

#![allow(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use ferrotune::{
    Error,
    data::{PackedBatch, Source, Tokenized, read_examples},
    job::{Assistant, Observer, packed_inputs, run},
    models::import::import_gguf,
    precision::DtypePolicy,
    recipe::Recipe,
    tch::{Device, Tensor},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A small model with a tokenizer and a template, made in `folder`.
fn model(folder: &Path) -> PathBuf {
    let gguf = "../ferrotune-models/tests/fixtures/import_tiny_llama/tiny.gguf";
    let model = folder.join("model");
    import_gguf(&Path::new(env!("CARGO_MANIFEST_DIR")).join(gguf), &model).unwrap();
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    model
}

fn load(model: &Path) -> Result<Assistant, Error> {
    Assistant::load(model, Device::Cpu, DtypePolicy::default(), &model.join("cache"))
}

#[test]
fn each_mistake_with_a_model_and_its_inputs_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let mut assistant = load(&model).unwrap();
    let data = folder.path().join("data.jsonl");
    let long = "the cat sat on the mat ".repeat(400);
    fs::write(&data, format!("{{\"instruction\": \"{long}\", \"output\": \"the dog\"}}\n")).unwrap();
    let examples = read_examples(&data, None).unwrap();
    assert!(matches!(assistant.prompt_ids(&examples, 1 << 40), Err(Error::PromptTooLong { .. })));
    let tokenized = assistant.tokenize(&examples, usize::MAX);
    assert!(matches!(tokenized, Err(Error::BeyondContext { total: 1, .. })), "{tokenized:?}");
    assert!(matches!(assistant.load_adapter(folder.path()), Err(Error::Lora(_))));
    let source = Source { file: data.as_path().into(), line: 1 };
    let empty = Tokenized { input_ids: Vec::new(), labels: Vec::new(), source };
    assert!(matches!(packed_inputs(&PackedBatch::pack(&[&empty]), None), Err(Error::Kernels(_))));

    let config = model.join("tokenizer_config.json");
    let whole = fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&whole).unwrap();
    json["eos_token"] = "<nope>".into();
    fs::write(&config, json.to_string()).unwrap();
    let error = load(&model).unwrap_err();
    assert!(
        matches!(&error, Error::VocabularyTooLarge { new_tokens, .. } if new_tokens == &["<nope>"]),
        "{error}"
    );
    fs::write(&config, whole).unwrap();

    let tokenizer = model.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&tokenizer).unwrap()).unwrap();
    let mut token = json["added_tokens"][0].clone();
    (token["id"], token["content"]) = (300.into(), "<|one more|>".into());
    json["added_tokens"].as_array_mut().unwrap().push(token);
    fs::write(&tokenizer, json.to_string()).unwrap();
    assert!(matches!(load(&model), Err(Error::VocabularyTooLarge { tokens: 301, embeddings: 300, .. })));
    fs::remove_file(tokenizer).unwrap();
    assert!(matches!(load(&model), Err(Error::Data(_))));
    fs::remove_file(model.join("config.json")).unwrap();
    assert!(matches!(load(&model), Err(Error::Models(_))));
}

#[test]
fn each_mistake_in_a_recipe_is_an_error_of_its_own() {
    struct Silent;
    impl Observer for Silent {}
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(folder.path().join("model")).unwrap();
    for file in ["train.jsonl", "test.jsonl"] {
        fs::write(folder.path().join(file), "not JSON\n").unwrap();
    }
    let text = format!(
        "output_dir = {:?}\n[model]\npath = {:?}\n[data]\ntrain = {:?}\ntest = {:?}\n",
        path("out"),
        path("model"),
        path("train.jsonl"),
        path("test.jsonl")
    );
    let result = |recipe: &Recipe| run(recipe, false, &mut Silent, std::sync::Arc::default()).unwrap_err();
    let mut recipe = Recipe::parse(&text, "recipe.toml", &[]).unwrap();
    assert!(matches!(result(&recipe), Error::Several { errors } if errors.len() == 2));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        recipe.output_dir = PathBuf::from(std::ffi::OsStr::from_bytes(b"\xff"));
        assert!(matches!(recipe.to_toml(), Err(Error::RecipeToToml { .. })));
    }
}

#[test]
fn errors_of_the_parts_keep_their_kind() {
    let metric = Error::from(ferrotune::metrics::perplexity(1.0, 0).unwrap_err());
    assert!(matches!(metric, Error::Metrics(_)) && metric.is_bad_input());
    let device = Error::from(ferrotune::precision::parse_device("gpu").unwrap_err());
    assert!(matches!(device, Error::Precision(_)) && device.is_bad_input());
    let wrong = ferrotune::trainer::TrainingArguments { learning_rate: -1.0, ..Default::default() };
    let trainer = Error::from(wrong.validate().unwrap_err());
    assert!(matches!(trainer, Error::Trainer(_)) && trainer.is_bad_input());
    let torch = Error::from(Tensor::from_slice(&[1]).f_view([7]).unwrap_err());
    assert!(matches!(torch, Error::Torch(_)) && !torch.is_bad_input());
}
