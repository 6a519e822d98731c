//! Greedy answers of one length: end tokens end nothing, so that every program generates the same number of tokens.

use crate::Result;
use ferrotune::{
    data::read_examples,
    job::{Assistant, default_cache_dir},
    precision::{ComputeDtype, DtypePolicy},
};
use ferrotune_lora::Adapter;
use ferrotune_models::{GenerationConfig, generate};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Instant};
use tch::Device;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    model: PathBuf,
    /// A PEFT adapter, applied beside the weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Fold it into the weights instead, before anything is timed.
    #[arg(long, requires = "adapter")]
    merge: bool,
    /// JSONL of `{"prompt", "completion"}`; all are answered in one batch.
    #[arg(long)]
    prompts: PathBuf,
    #[arg(long)]
    new_tokens: usize,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    let policy = DtypePolicy::for_compute(ComputeDtype::F32).map_err(ferrotune::Error::from)?;
    let mut assistant = Assistant::load(&arguments.model, Device::Cpu, policy, &default_cache_dir())?;
    if let Some(adapter) = &arguments.adapter {
        assistant.load_adapter(adapter)?;
    }
    let start = Instant::now();
    if arguments.merge {
        assistant.merge_adapter()?;
    }
    let seconds_merge = start.elapsed().as_secs_f64();
    let examples = read_examples(&arguments.prompts, None).map_err(ferrotune::Error::from)?;
    let prompts = assistant.prompt_ids(&examples, arguments.new_tokens + 1)?;
    let answer = |max_new_tokens: usize| -> Result<(f64, Vec<Vec<i64>>)> {
        let config = GenerationConfig {
            max_new_tokens,
            batch_size: prompts.len(),
            eos_token_ids: Vec::new(),
            adapter: assistant.adapter.as_ref().map(Adapter::index),
        };
        let start = Instant::now();
        let answers = generate(&assistant.model, &prompts, &config, &mut |_, _| true)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((seconds, answers.into_iter().map(|answer| answer.token_ids).collect()))
    };
    answer(2)?; // the first call prepares
    let (seconds, answers) = answer(arguments.new_tokens)?;
    let (seconds_one_more, _) = answer(arguments.new_tokens + 1)?;
    let (seconds_one, _) = answer(1)?;
    Ok(json!({
        "prompt_tokens": prompts.iter().map(Vec::len).sum::<usize>(),
        "answers": answers,
        "seconds_merge": seconds_merge,
        "seconds": seconds,
        "seconds_one_more": seconds_one_more,
        "seconds_one": seconds_one,
    }))
}
