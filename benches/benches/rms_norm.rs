//! RMSNorm, alone and after a residual addition, beside the formula in libtorch's operators.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::HIDDEN;
use ferrotune_benches::{Comparison, Suite, TOKENS, activations, gradients};
use ferrotune_kernels::{add_rms_norm, rms_norm};
use tch::{Kind, Tensor};

const EPS: f64 = 1e-5;

fn main() {
    Suite::run("rms_norm", |suite| {
        for hidden in [HIDDEN, 4096] {
            norm(suite, hidden);
        }
    });
}

fn libtorch(x: &Tensor, weight: &Tensor) -> Tensor {
    let mean: Tensor = x.square().mean_dim(-1, true, Kind::Float);
    x * (mean + EPS).rsqrt() * weight
}

fn norm(suite: &mut Suite, hidden: i64) {
    let size = [TOKENS, hidden];
    let [x, residual] = [activations(&size), activations(&size)].map(|it| it.set_requires_grad(true));
    let weight = activations(&[hidden]);
    let [grad, sum_grad] = [activations(&size), activations(&size)];
    let shape = format!("{TOKENS}x{hidden}");
    let elements = (TOKENS * hidden) as u64;
    let comparison = |pass| Comparison { pass, shape: &shape, elements };

    let ours = || rms_norm(&x, &weight, EPS).unwrap();
    let plain = || libtorch(&x, &weight);
    suite.compare(comparison("forward"), &|| vec![ours()], &|| vec![plain()]);
    suite.compare(comparison("forward_backward"), &|| gradients(&ours(), &grad, &[&x]), &|| {
        gradients(&plain(), &grad, &[&x])
    });

    // Both results have a use, as in a decoder layer.
    let ours = || {
        let (sum, normed) = add_rms_norm(&x, &residual, &weight, EPS).unwrap();
        [sum, normed]
    };
    let plain = || {
        let sum = &x + &residual;
        let normed = libtorch(&sum, &weight);
        [sum, normed]
    };
    suite.compare(comparison("add_forward"), &|| ours().into(), &|| plain().into());
    let backward = |[sum, normed]: [Tensor; 2]| {
        let loss = sum.view([-1]).dot(&sum_grad.view([-1])) + normed.view([-1]).dot(&grad.view([-1]));
        Tensor::run_backward(&[loss], &[&x, &residual], false, false)
    };
    suite.compare(comparison("add_forward_backward"), &|| backward(ours()), &|| backward(plain()));
}
