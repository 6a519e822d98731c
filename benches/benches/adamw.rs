//! One optimizer step over all 420 tensors of a SmolLM2-135M adapter, beside the formula in libtorch's operators, tensor by tensor.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::adapter_shapes;
use ferrotune_benches::{Comparison, Suite, activations};
use ferrotune_kernels::{AdamWParameter, AdamWStep, adamw_step};
use std::cell::RefCell;
use tch::Tensor;

const STEP: AdamWStep =
    AdamWStep { step: 1, learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, gradient_scale: 1.0 };
const WEIGHT_DECAY: f64 = 0.01;

/// A parameter and its moments.
struct State {
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

fn main() {
    Suite::run("adamw", |suite| {
        let rank = 16;
        let gradients: Vec<Tensor> = adapter_shapes(rank).iter().map(|shape| activations(shape)).collect();
        let parameters: Vec<Tensor> = gradients.iter().map(Tensor::randn_like).collect();
        let states = || {
            let state = |parameter: &Tensor| State {
                parameter: parameter.copy(),
                exp_avg: parameter.zeros_like(),
                exp_avg_sq: parameter.zeros_like(),
            };
            RefCell::new(parameters.iter().map(state).collect::<Vec<_>>())
        };
        let (mine, theirs) = (states(), states());
        let elements = gradients.iter().map(|it| it.numel() as u64).sum();
        suite.compare(
            Comparison { pass: "step", shape: &format!("smollm2-135m/r{rank}"), elements },
            &|| ours(&mut mine.borrow_mut(), &gradients),
            &|| libtorch(&mut theirs.borrow_mut(), &gradients),
        );
    });
}

fn ours(states: &mut [State], gradients: &[Tensor]) -> Vec<Tensor> {
    let mut parameters: Vec<AdamWParameter> = states
        .iter_mut()
        .zip(gradients)
        .map(|(State { parameter, exp_avg, exp_avg_sq }, gradient)| AdamWParameter {
            parameter,
            exp_avg,
            exp_avg_sq,
            gradient,
            weight_decay: WEIGHT_DECAY,
        })
        .collect();
    adamw_step(&mut parameters, STEP).unwrap();
    results(states)
}

fn libtorch(states: &mut [State], gradients: &[Tensor]) -> Vec<Tensor> {
    let AdamWStep { step, learning_rate, beta1, beta2, epsilon, .. } = STEP;
    let correction = |beta: f64| 1.0 - beta.powi(step as i32);
    for (State { parameter, exp_avg, exp_avg_sq }, gradient) in states.iter_mut().zip(gradients) {
        let _ = parameter.g_mul_scalar_(1.0 - learning_rate * WEIGHT_DECAY);
        let _ = exp_avg.lerp_(gradient, 1.0 - beta1);
        let _ = exp_avg_sq.g_mul_scalar_(beta2).addcmul_(gradient, &(gradient * (1.0 - beta2)));
        let denominator = (exp_avg_sq.sqrt() / correction(beta2).sqrt()) + epsilon;
        let _ = parameter.addcdiv_(&(&*exp_avg * (-learning_rate / correction(beta1))), &denominator);
    }
    results(states)
}

fn results(states: &[State]) -> Vec<Tensor> {
    states.iter().map(|state| state.parameter.shallow_clone()).collect()
}
