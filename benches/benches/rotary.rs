//! Rotary embedding of queries and keys beside the formula in libtorch's operators.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HEAD_DIM, HEADS, KV_HEADS};
use ferrotune_benches::{Comparison, Suite, TOKENS, activations, gradients, libtorch_rotary, rotary_tables};
use ferrotune_kernels::{rotary, rotary_};

fn main() {
    Suite::run("rotary", |suite| {
        let heads = HEADS + KV_HEADS;
        let size = [TOKENS, heads, HEAD_DIM];
        let x = activations(&size).set_requires_grad(true);
        let grad = activations(&size);
        let (cos, sin) = rotary_tables(TOKENS);
        let shape = format!("{TOKENS}x{heads}x{HEAD_DIM}");
        let comparison =
            |pass| Comparison { pass, shape: &shape, elements: (TOKENS * heads * HEAD_DIM) as u64 };

        let ours = || rotary(&x, &cos, &sin).unwrap();
        let plain = || libtorch_rotary(&x, &cos, &sin);
        suite.compare(comparison("forward"), &|| vec![ours()], &|| vec![plain()]);
        suite.compare(comparison("forward_backward"), &|| gradients(&ours(), &grad, &[&x]), &|| {
            gradients(&plain(), &grad, &[&x])
        });

        // In place, each turn from the same numbers: the copy is part of ours. libtorch makes a new tensor anyway.
        let x = x.detach();
        let in_place = || {
            let mut x = x.copy();
            rotary_(&mut x, heads, &cos, &sin).unwrap();
            vec![x]
        };
        suite.compare(comparison("in_place"), &in_place, &|| vec![libtorch_rotary(&x, &cos, &sin)]);
    });
}
