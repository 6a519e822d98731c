//! SwiGLU beside the formula in libtorch's operators.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::INTERMEDIATE;
use ferrotune_benches::{Comparison, Suite, TOKENS, activations, gradients};
use ferrotune_kernels::swiglu;

fn main() {
    Suite::run("swiglu", |suite| {
        for intermediate in [INTERMEDIATE, 11_008] {
            let gate_up = activations(&[TOKENS, 2 * intermediate]).set_requires_grad(true);
            let grad = activations(&[TOKENS, intermediate]);
            let shape = format!("{TOKENS}x{intermediate}");
            let comparison =
                |pass| Comparison { pass, shape: &shape, elements: (TOKENS * intermediate) as u64 };

            let ours = || swiglu(&gate_up).unwrap();
            let plain = || {
                let halves = gate_up.chunk(2, 1);
                halves[0].silu() * &halves[1]
            };
            suite.compare(comparison("forward"), &|| vec![ours()], &|| vec![plain()]);
            suite.compare(
                comparison("forward_backward"),
                &|| gradients(&ours(), &grad, &[&gate_up]),
                &|| gradients(&plain(), &grad, &[&gate_up]),
            );
        }
    });
}
