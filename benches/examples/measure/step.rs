//! Optimizer steps on one sequence of random tokens each, every one of them a target.

use crate::{Result, tell};
use ferrotune::job::{CausalLmTask, PackedDataset};
use ferrotune_data::{Source, Tokenized};
use ferrotune_kernels::RandomKey;
use ferrotune_lora::{LoraConfig, TargetModules, inject};
use ferrotune_models::CausalLm;
use ferrotune_trainer::{Callback, StepRecord, Trainer, TrainingArguments};
use serde_json::{Value, json};
use std::{error::Error, path::PathBuf};
use tch::{Device, Kind};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the sequence.
    #[arg(long)]
    tokens: usize,
    #[arg(long, default_value_t = 16)]
    rank: usize,
    #[arg(long)]
    steps: usize,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    let mut model = CausalLm::load(&arguments.model, Device::Cpu, Kind::Float)?;
    let vocabulary = model.config().vocab_size as u32;
    let config = LoraConfig {
        rank: arguments.rank,
        lora_alpha: 2.0 * arguments.rank as f64,
        target_modules: TargetModules::AllLinear,
        ..LoraConfig::default()
    };
    let adapter = inject(&mut model, "default", 0, &config, RandomKey::from_seed(0))?;
    let mut state = 1_u32;
    let mut token = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    let row = |line: usize, input_ids: Vec<u32>| {
        let labels = input_ids.iter().copied().map(i64::from).collect();
        Tokenized { input_ids, labels, source: Source { file: PathBuf::from("random").into(), line } }
    };
    let rows = (1..=arguments.steps).map(|line| row(line, (0..arguments.tokens).map(|_| token()).collect()));
    let data = PackedDataset::new(rows.collect::<Vec<_>>(), 0);
    let training = TrainingArguments {
        num_train_epochs: 1.0,
        per_device_train_batch_size: 1,
        ..TrainingArguments::default()
    };
    let task = CausalLmTask::new(&model, &adapter);
    Trainer::new(&task, training, &data)?.with_callback(Tell).train()?;
    Ok(json!({ "parameters": model.parameter_count() }))
}

struct Tell;

impl Callback for Tell {
    fn on_step_end(&mut self, record: &StepRecord) -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
        tell("step", json!({ "step": record.global_step, "loss": record.loss, "seconds": record.seconds }));
        Ok(())
    }
}
