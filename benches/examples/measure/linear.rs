//! The LoRA layer beside the same layer without an update, ours and libtorch's, forward and backward, in turn, some
//! passes of each at a time.

use crate::Result;
use ferrotune_benches::{SEED, TOKENS, gradients, random};
use ferrotune_kernels::{FrozenWeight, LowRank, Mode, frozen_linear, lora_linear};
use serde_json::{Value, json};
use std::time::Instant;
use tch::{Kind, Tensor};

#[derive(clap::Args)]
pub struct Arguments {
    /// Rows and columns of the weight.
    #[arg(long)]
    size: i64,
    #[arg(long, default_value_t = 16)]
    rank: i64,
    /// A weight of bf16 numbers, as in published checkpoints; otherwise they have all bits of f32.
    #[arg(long)]
    bf16_weight: bool,
    /// How often each is timed.
    #[arg(long)]
    passes: usize,
}

/// Passes of one layer that are timed before it is the next one's turn.
const TURN: usize = 4;

pub fn run(arguments: &Arguments) -> Result<Value> {
    tch::manual_seed(SEED);
    let Arguments { size, rank, bf16_weight, passes } = *arguments;
    let x = random(TOKENS, size).set_requires_grad(true);
    let mut dense = random(size, size);
    if bf16_weight {
        dense = dense.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    }
    let weight = FrozenWeight::new(&dense)?;
    let a = random(rank, size).set_requires_grad(true);
    let b = random(size, rank).set_requires_grad(true);
    let grad = random(TOKENS, size).view([-1]);
    // The derivative of the product is `grad`, a dense tensor such as the next layer hands back.
    let lora = || -> Result<Vec<Tensor>> {
        let update = LowRank { a: &a, b: &b, scaling: 2.0, dropout: 0.0, layer: 0 };
        let y = lora_linear(&x, &weight, None, Some(update), Mode::Eval)?;
        Ok(gradients(&y, &grad, &[&x, &a, &b]))
    };
    let frozen = || Ok(gradients(&frozen_linear(&x, &weight, None)?, &grad, &[&x]));
    let libtorch = || Ok(gradients(&x.linear::<Tensor>(&dense, None), &grad, &[&x]));
    let all: [&dyn Fn() -> Result<Vec<Tensor>>; 3] = [&lora, &frozen, &libtorch];
    for _ in 0..passes.div_ceil(10) {
        for pass in all {
            pass()?;
        }
    }
    let mut times = [const { Vec::new() }; 3];
    for done in (0..passes).step_by(TURN) {
        for (times, pass) in times.iter_mut().zip(all) {
            // Each begins with caches that another has filled, which is no property of a layer: PEFT's passes follow each other, too.
            pass()?;
            for _ in 0..TURN.min(passes - done) {
                times.push(seconds(pass)?);
            }
        }
    }
    let [lora_s, frozen_s, libtorch_s] = times.map(median);
    Ok(json!({ "lora_s": lora_s, "frozen_s": frozen_s, "libtorch_s": libtorch_s }))
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
