//! A real model against transformers and PEFT: SmolLM2-135M-Instruct, as the project's set-up imports it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)] // also in the helpers of tests

use ferrotune_kernels::{Mode, RandomKey, SequenceLayout};
use ferrotune_lora::{LoraConfig, TargetModules, inject};
use ferrotune_models::{CausalLm, PackedInputs};
use std::{collections::HashMap, path::Path};
use tch::{Device, Kind, Tensor};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smollm2/expected.safetensors");

fn model() -> Option<CausalLm> {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.models/smollm2-135m-instruct/hf"));
    if !directory.join("model.safetensors").exists() {
        eprintln!(
            "{} is absent: `cargo xtask setup` and the import bring it; nothing was compared",
            directory.display()
        );
        assert!(std::env::var_os("CI").is_none(), "continuous integration compares with the real model");
        return None;
    }
    Some(CausalLm::load(directory, Device::Cpu, Kind::Float).unwrap())
}

#[test]
fn logits_loss_and_every_gradient_equal_transformers_and_peft() {
    let Some(mut model) = model() else { return };
    let expected: HashMap<String, Tensor> = Tensor::read_safetensors(FIXTURE).unwrap().into_iter().collect();
    let input_ids: Vec<i64> = Vec::try_from(&expected["input_ids"]).unwrap();
    let labels: Vec<i64> = Vec::try_from(&expected["labels"]).unwrap();
    let layout = SequenceLayout::from_cu_seqlens(&[0, input_ids.len() as i64]).unwrap();
    let largest_difference = |model: &CausalLm, layout: &SequenceLayout, reference: &str| {
        let logits = model.logits(&input_ids, layout, None).unwrap().index_select(1, &expected["columns"]);
        (logits - &expected[reference]).abs().max().double_value(&[])
    };
    let base = largest_difference(&model, &layout, "base_logits");
    assert!(base < 1e-3, "base logits differ by {base}");

    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let config = LoraConfig {
        rank: 2,
        lora_alpha: 6.0,
        target_modules: TargetModules::Names(names.map(str::to_owned).to_vec()),
        ..LoraConfig::default()
    };
    let adapter = inject(&mut model, "default", 0, &config, RandomKey::from_seed(0)).unwrap();
    let mut parameters = adapter.named_parameters();
    parameters.sort_by(|(left, _), (right, _)| left.cmp(right));
    for (number, (_, parameter)) in parameters.iter().enumerate() {
        let index = Tensor::arange(parameter.numel() as i64, (Kind::Double, Device::Cpu));
        let values = (index * 0.7 + number as f64).sin() * 0.03;
        tch::no_grad(|| {
            parameter.shallow_clone().copy_(&values.to_kind(Kind::Float).reshape(parameter.size()))
        });
    }
    let adapted = largest_difference(&model, &layout, "adapted_logits");
    assert!(adapted < 1e-3, "adapted logits differ by {adapted}");

    let target_rows: Vec<i64> =
        (0..input_ids.len() as i64 - 1).filter(|&row| labels[row as usize + 1] != -100).collect();
    let target_ids = target_rows.iter().map(|&row| labels[row as usize + 1]).collect();
    let inputs = PackedInputs { input_ids: input_ids.clone(), layout, target_rows, target_ids };
    let loss = model.target_nll(&inputs, Mode::Eval).unwrap().sum(Kind::Float);
    loss.backward();
    let reference = expected["loss"].double_value(&[]);
    let error = (loss.double_value(&[]) - reference).abs() / reference;
    assert!(error < 1e-5, "loss: {error}");

    assert_eq!(parameters.len(), 30 * 7 * 2);
    let mut worst: f64 = 0.0;
    for (name, parameter) in &parameters {
        let gradient = parameter.grad().flatten(0, -1);
        let places: Vec<i64> = (0..16).map(|place| place * gradient.numel() as i64 / 16).collect();
        let sample = gradient.index_select(0, &Tensor::from_slice(&places));
        let reference = &expected[&format!("grad.{name}")];
        let norm = reference.double_value(&[16]);
        assert!(norm > 0.0, "{name} is zero in the reference");
        // The reference is in f32, and itself as far as 2.0e-4 from the gradients of this model in f64 (its loss 4.8e-6).
        assert!((gradient.norm().double_value(&[]) - norm).abs() / norm < 3e-4, "{name}: norm");
        // The sampled error against the share of the norm that the sample stands for.
        let share = norm * (16.0 / gradient.numel() as f64).sqrt();
        let error = (sample - reference.narrow(0, 0, 16)).norm().double_value(&[]) / share;
        worst = worst.max(error);
        assert!(error < 3e-4, "{name}: {error}");
    }
    println!("logits {base:.1e} {adapted:.1e}, loss {error:.1e}, worst gradient {worst:.1e}");
}
