//! The norm of all 420 gradients of a SmolLM2-135M adapter, beside the norm of their norms in libtorch's operators.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::adapter_shapes;
use ferrotune_benches::{Comparison, Suite, activations};
use ferrotune_kernels::squared_norms;
use tch::Tensor;

fn main() {
    Suite::run("gradient_norm", |suite| {
        let rank = 16;
        let gradients: Vec<Tensor> = adapter_shapes(rank).iter().map(|shape| activations(shape)).collect();
        let all: Vec<&Tensor> = gradients.iter().collect();
        let elements = gradients.iter().map(|it| it.numel() as u64).sum();
        suite.compare(
            Comparison { pass: "norm", shape: &format!("smollm2-135m/r{rank}"), elements },
            &|| vec![Tensor::from(squared_norms(&all).unwrap().iter().sum::<f64>().sqrt())],
            &|| {
                let norms: Vec<Tensor> = gradients.iter().map(Tensor::norm).collect();
                vec![Tensor::stack(&norms, 0).norm()]
            },
        );
    });
}
