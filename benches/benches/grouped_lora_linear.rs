//! LoRA linear layers on one input, as one product: q, k and v, and gate and up of SmolLM2-135M.
//!
//! - `ours`: [`grouped_lora_linear`] with the frozen weights stacked
//! - `separate`: [`lora_linear`] for each
//! - `frozen`, the reference: [`frozen_linear`] of the stacked weight, without an update

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HEAD_DIM, HIDDEN, INTERMEDIATE, KV_HEADS};
use ferrotune_benches::{Comparison, LinearShape, Suite, TOKENS, gradients, random};
use ferrotune_kernels::{
    FrozenWeight, GroupMember, LowRank, Mode, Prologue, frozen_linear, grouped_lora_linear, lora_linear,
};
use tch::Tensor;

const RANK: i64 = 16;

fn main() {
    Suite::run("grouped_lora_linear", |suite| {
        group(suite, "qkv", &[HIDDEN, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]);
        group(suite, "gate_up", &[INTERMEDIATE, INTERMEDIATE]);
    });
}

fn group(suite: &mut Suite, name: &str, rows: &[i64]) {
    let weights: Vec<Tensor> = rows.iter().map(|rows| random(*rows, HIDDEN)).collect();
    let separate: Vec<FrozenWeight> =
        weights.iter().map(|weight| FrozenWeight::new(weight).unwrap()).collect();
    let stacked = FrozenWeight::stacked(&weights.iter().collect::<Vec<_>>()).unwrap();
    let adapters: Vec<[Tensor; 2]> = rows
        .iter()
        .map(|rows| [random(RANK, HIDDEN), random(*rows, RANK)].map(|it| it.set_requires_grad(true)))
        .collect();
    let x = random(TOKENS, HIDDEN).set_requires_grad(true);
    let grad = random(TOKENS, stacked.out_features());

    let ours = || {
        let members: Vec<GroupMember> = rows
            .iter()
            .zip(&adapters)
            .map(|(rows, adapter)| GroupMember { out_features: *rows, update: Some(update(adapter)) })
            .collect();
        grouped_lora_linear(&x, Prologue::None, &stacked, None, &members, Mode::Eval).unwrap()
    };
    let apart = || {
        let parts: Vec<Tensor> = separate
            .iter()
            .zip(&adapters)
            .map(|(weight, adapter)| {
                lora_linear(&x, weight, None, Some(update(adapter)), Mode::Eval).unwrap()
            })
            .collect();
        Tensor::cat(&parts, 1)
    };
    let without = || frozen_linear(&x, &stacked, None).unwrap();
    let all: Vec<&Tensor> = std::iter::once(&x).chain(adapters.iter().flatten()).collect();

    let flops = |rank, backward| {
        rows.iter()
            .map(|rows| LinearShape { in_features: HIDDEN, out_features: *rows }.flops(rank, backward))
            .sum()
    };
    let shape = format!("{name}/r{RANK}");
    let comparison =
        |pass, backward| Comparison { pass, shape: &shape, elements: flops(Some(RANK), backward) };
    suite.compare_with_frozen(
        comparison("forward", false),
        &[("ours", &|| vec![ours()]), ("separate", &|| vec![apart()])],
        (&|| vec![without()], flops(None, false)),
    );
    suite.compare_with_frozen(
        comparison("forward_backward", true),
        &[("ours", &|| gradients(&ours(), &grad, &all)), ("separate", &|| gradients(&apart(), &grad, &all))],
        (&|| gradients(&without(), &grad, &[&x]), flops(None, true)),
    );
}

fn update([a, b]: &[Tensor; 2]) -> LowRank<'_> {
    LowRank { a, b, scaling: 2.0, dropout: 0.0, layer: 0 }
}
