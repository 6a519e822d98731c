//! The LoRA linear layer beside a frozen linear layer and two ways to write it with libtorch's own operators.
//!
//! - `ours`: [`lora_linear`], one node in the graph
//! - `three_products`: `x W^T + (scaling * x A^T) B^T`
//! - `peft_order`: PEFT's order, `F.linear(x, W) + F.linear(F.linear(x, A), B) * scaling`
//! - `frozen`, the reference: [`frozen_linear`], the layer without an update; its rank is that of its neighbours and changes nothing
//!
//! The input wants a gradient, as it does in every layer but a model's first. `forward` records the graph and drops it;
//! `forward_backward` also computes the gradients of `x`, `A` and `B`.
//!
//! ```text
//! cargo bench -p ferrotune-benches --bench lora_linear
//! cargo bench -p ferrotune-benches --bench lora_linear -- 'forward_backward/.*/576x576/r8$'
//! FERROTUNE_BENCH_CLOCK=thread cargo bench -p ferrotune-benches --bench lora_linear
//! ```
//!
//! The last of these computes on one thread and measures that thread's time, for machines that also do other things.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::{Comparison, LINEAR_SHAPES, LinearShape, RANKS, Suite, TOKENS, gradients, random};
use ferrotune_kernels::{FrozenWeight, LowRank, Mode, frozen_linear, lora_linear};
use tch::Tensor;

const SCALING: f64 = 2.0;

fn main() {
    Suite::run("lora_linear", |suite| {
        for shape in LINEAR_SHAPES {
            for rank in RANKS {
                layer(suite, shape, rank);
            }
        }
    });
}

fn layer(suite: &mut Suite, shape: LinearShape, rank: i64) {
    let LinearShape { in_features, out_features } = shape;
    let weight = random(out_features, in_features);
    let frozen = FrozenWeight::new(&weight).unwrap();
    let x = random(TOKENS, in_features).set_requires_grad(true);
    let a = random(rank, in_features).set_requires_grad(true);
    let b = random(out_features, rank).set_requires_grad(true);
    let grad = random(TOKENS, out_features);

    let ours = || {
        let update = LowRank { a: &a, b: &b, scaling: SCALING, dropout: 0.0, layer: 0 };
        lora_linear(&x, &frozen, None, Some(update), Mode::Eval).unwrap()
    };
    let three_products = || x.matmul(&weight.tr()) + (x.matmul(&a.tr()) * SCALING).matmul(&b.tr());
    let peft_order = || {
        let result = x.linear::<Tensor>(&weight, None);
        result + x.linear::<Tensor>(&a, None).linear::<Tensor>(&b, None) * SCALING
    };
    let without = || frozen_linear(&x, &frozen, None).unwrap();
    let all = [&x, &a, &b];

    let name = format!("{in_features}x{out_features}/r{rank}");
    let comparison =
        |pass, backward| Comparison { pass, shape: &name, elements: shape.flops(Some(rank), backward) };
    suite.compare_with_frozen(
        comparison("forward", false),
        &[
            ("ours", &|| vec![ours()]),
            ("three_products", &|| vec![three_products()]),
            ("peft_order", &|| vec![peft_order()]),
        ],
        (&|| vec![without()], shape.flops(None, false)),
    );
    suite.compare_with_frozen(
        comparison("forward_backward", true),
        &[
            ("ours", &|| gradients(&ours(), &grad, &all)),
            ("three_products", &|| gradients(&three_products(), &grad, &all)),
            ("peft_order", &|| gradients(&peft_order(), &grad, &all)),
        ],
        (&|| gradients(&without(), &grad, &[&x]), shape.flops(None, true)),
    );
}
