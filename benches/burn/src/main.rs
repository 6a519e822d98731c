//! burn's LoRA on the layers of `benches/benches/lora_linear.rs`: 512 tokens, rank 16, f32, forward and backward, on its CPU backend.
//!
//! - `lora`: burn's own, `Module::apply_lora`, which forms `W + scaling * A B` and multiplies once
//! - `three_products`: `x W + scaling * (x A) B` in three of its linear layers, the first one frozen
//! - `frozen`: the layer without an update
//!
//! The gradients are those of input, A and B. `RAYON_NUM_THREADS` sets the threads.

use std::time::Instant;

use burn::module::{Lora, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Gradients, Tensor};

const TOKENS: usize = 512;
const RANK: usize = 16;
const SCALING: f64 = 2.0;

fn main() {
    let device = Device::flex().autodiff();
    for (size, passes) in [(576, 80), (4096, 11)] {
        let linear = |from: usize, to: usize| LinearConfig::new(from, to).with_bias(false).init(&device);
        let random = |columns: usize| Tensor::<2>::random([TOKENS, columns], Distribution::Normal(0.0, 1.0), &device);
        let x = random(size).require_grad();
        let grad = random(size);
        let frozen = linear(size, size).freeze();
        let lora = linear(size, size).apply_lora(Lora::new(RANK, SCALING * RANK as f64));
        let (down, up) = (linear(size, RANK), linear(RANK, size));

        // The derivative of this sum by `y` is `grad`, a dense tensor such as the next layer hands back.
        let backward = |y: Tensor<2>| {
            let gradients = (y * grad.clone()).sum().backward();
            assert!(x.grad(&gradients).is_some());
            gradients
        };
        let milliseconds = [
            median(passes, || {
                backward(frozen.forward(x.clone()));
            }),
            median(passes, || {
                let gradients = backward(lora.forward(x.clone()));
                let adapter = lora.weight.adapter().expect("a matrix has an adapter");
                assert!(adapter.a.val().grad(&gradients).is_some() && adapter.b.val().grad(&gradients).is_some());
            }),
            median(passes, || {
                let y = frozen.forward(x.clone()) + up.forward(down.forward(x.clone())) * SCALING;
                let gradients = backward(y);
                assert!(has_gradient(&down, &gradients) && has_gradient(&up, &gradients));
            }),
        ];
        let [frozen, lora, three_products] = milliseconds;
        println!(
            "{size}x{size}/r{RANK}, median of {passes} passes: frozen {frozen:.2} ms, lora {lora:.2} ms ({:.2}), \
             three_products {three_products:.2} ms ({:.2})",
            lora / frozen,
            three_products / frozen,
        );
    }
}

fn has_gradient(linear: &Linear, gradients: &Gradients) -> bool {
    linear.weight.val().grad(gradients).is_some()
}

/// The median of the times of some passes, in milliseconds, after three that prepare.
fn median(passes: usize, mut pass: impl FnMut()) -> f64 {
    for _ in 0..3 {
        pass();
    }
    let mut times: Vec<f64> = (0..passes)
        .map(|_| {
            let start = Instant::now();
            pass();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[passes / 2]
}
