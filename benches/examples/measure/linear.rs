//! The LoRA layer beside the same layer without an update, forward and backward, in turn.

use crate::Result;
use ferrotune_benches::{SEED, TOKENS, random};
use ferrotune_kernels::{FrozenWeight, LowRank, Mode, frozen_linear, lora_linear};
use serde_json::{Value, json};
use std::time::Instant;
use tch::Tensor;

#[derive(clap::Args)]
pub struct Arguments {
    /// Rows and columns of the weight.
    #[arg(long)]
    size: i64,
    #[arg(long, default_value_t = 16)]
    rank: i64,
    /// How often each is timed.
    #[arg(long)]
    passes: usize,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    tch::manual_seed(SEED);
    let Arguments { size, rank, passes } = *arguments;
    let x = random(TOKENS, size).set_requires_grad(true);
    let weight = FrozenWeight::new(&random(size, size))?;
    let a = random(rank, size).set_requires_grad(true);
    let b = random(size, rank).set_requires_grad(true);
    let grad = random(TOKENS, size).view([-1]);
    // The derivative of the product is `grad`, a dense tensor such as the next layer hands back.
    let lora = || -> Result<Vec<Tensor>> {
        let update = LowRank { a: &a, b: &b, scaling: 2.0, dropout: 0.0, layer: 0 };
        let y = lora_linear(&x, &weight, None, Some(update), Mode::Eval)?;
        Ok(Tensor::run_backward(&[y.view([-1]).dot(&grad)], &[&x, &a, &b], false, false))
    };
    let frozen = || -> Result<Vec<Tensor>> {
        let y = frozen_linear(&x, &weight, None)?;
        Ok(Tensor::run_backward(&[y.view([-1]).dot(&grad)], &[&x], false, false))
    };
    for _ in 0..passes.div_ceil(10) {
        lora()?;
        frozen()?;
    }
    let (mut lora_seconds, mut frozen_seconds) = (Vec::new(), Vec::new());
    for _ in 0..passes {
        lora_seconds.push(seconds(&lora)?);
        frozen_seconds.push(seconds(&frozen)?);
    }
    Ok(json!({ "lora_s": median(lora_seconds), "frozen_s": median(frozen_seconds) }))
}

fn seconds(pass: &dyn Fn() -> Result<Vec<Tensor>>) -> Result<f64> {
    let start = Instant::now();
    pass()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let (lower, upper) = (seconds.len().saturating_sub(1) / 2, seconds.len() / 2);
    (seconds[lower] + seconds[upper]) / 2.0
}
