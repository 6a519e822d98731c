//! A model, and what some work adds to the memory of the process.

use ferrotune::{
    data::{Source, Tokenized},
    job::{CausalLmTask, MemoryNeed, PackedDataset},
    kernels::{Mode, RandomKey},
    lora::{LoraConfig, TargetModules, inject},
    models::CausalLm,
    precision::{peak_rss_mib, resident_bytes},
    trainer::{Dataset, TrainableModel, TrainingArguments},
};
use safetensors::{Dtype, tensor::TensorView};
use std::{fs, path::Path};

const HIDDEN: usize = 512;
const INTERMEDIATE: usize = 1536;
const LAYERS: usize = 5;
const VOCABULARY: usize = 4000;

/// A model of 19 million numbers that are all alike: what it computes does not matter.
pub fn write_model(directory: &Path) {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
        "tie_word_embeddings": true,
    });
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN, HIDDEN),
            ("self_attn.v_proj", HIDDEN, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![rows, columns]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![HIDDEN]));
        }
    }
    let small = 0.01_f32.to_le_bytes().repeat(VOCABULARY * HIDDEN);
    let tensors = shapes.iter().map(|(name, shape)| {
        let bytes = &small[..4 * shape.iter().product::<usize>()];
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(tensors, None, &directory.join("model.safetensors")).unwrap();
}

/// What `work` adds to the memory of the process at its peak, in bytes.
pub fn growth<T>(work: impl FnOnce() -> T) -> (T, f64) {
    // Resets the peak to what is in use now.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident_bytes().unwrap() as f64;
    let result = work();
    (result, peak_rss_mib().unwrap() * f64::from(1 << 20) - before)
}

#[track_caller]
pub fn agree(predicted: &MemoryNeed, measured: f64) {
    let ratio = predicted.bytes() as f64 / measured;
    assert!(
        (0.65..1.35).contains(&ratio),
        "predicted {} bytes ({predicted}), measured {measured}",
        predicted.bytes()
    );
}

/// Forward and backward of a micro-batch of 1,700 tokens as the arguments want it.
#[allow(dead_code, reason = "each test binary uses a part of it")]
pub fn training_takes_what_is_predicted(mut model: CausalLm, arguments: &TrainingArguments) {
    let config = LoraConfig { target_modules: TargetModules::AllLinear, ..LoraConfig::default() };
    let adapter = inject(&mut model, "default", 0, &config, RandomKey::from_seed(1)).unwrap();
    let row = |length: u32| Tokenized {
        input_ids: (0..length).collect(),
        labels: (0..length).map(|id| if id > length / 2 { i64::from(id) } else { -100 }).collect(),
        source: Source { file: Path::new("rows").into(), line: 1 },
    };
    let data = PackedDataset::new(vec![row(200), row(800), row(700)], 1);
    let parameters = adapter.parameter_count() as u64;
    let need = MemoryNeed::of_training(&model, parameters, &data, arguments, 1);
    let (_, measured) = growth(|| {
        let batch = data.batch(&[0, 1, 2]).unwrap();
        let task = CausalLmTask::new(&model, &adapter)
            .with_forward_arguments(arguments.forward_arguments())
            .unwrap();
        task.loss(&batch, Mode::Train(RandomKey::from_seed(1))).unwrap().backward();
    });
    agree(&need, measured);
}
