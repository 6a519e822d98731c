//! The output head of SmolLM2-135M with its loss, beside `F.cross_entropy(F.linear(hidden, W), ids)`, which keeps all logits.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HIDDEN, VOCABULARY};
use ferrotune_benches::{Comparison, Suite, gradients, product_flops, random};
use ferrotune_kernels::{FrozenWeight, linear_cross_entropy};
use tch::{Device, Kind, Reduction, Tensor};

fn main() {
    Suite::run("linear_cross_entropy", |suite| {
        let targets = 128;
        let weight = random(VOCABULARY, HIDDEN);
        let frozen = FrozenWeight::new(&weight).unwrap();
        let hidden = random(targets, HIDDEN).set_requires_grad(true);
        let ids = Tensor::randint(VOCABULARY, [targets], (Kind::Int64, Device::Cpu));
        let grad = random(targets, 1).view([-1]);

        let ours = || linear_cross_entropy(&hidden, &frozen, &ids).unwrap();
        let plain = || {
            let logits = hidden.linear::<&Tensor>(&weight, None);
            logits.cross_entropy_loss::<&Tensor>(&ids, None, Reduction::None, -100, 0.0)
        };
        let product = product_flops(targets, HIDDEN, VOCABULARY);
        let shape = format!("{targets}x{HIDDEN}x{VOCABULARY}");
        suite.compare(
            Comparison { pass: "forward_backward", shape: &shape, elements: 2 * product },
            &|| gradients(&ours(), &grad, &[&hidden]),
            &|| gradients(&plain(), &grad, &[&hidden]),
        );
        let hidden = hidden.detach();
        suite.compare(
            Comparison { pass: "forward", shape: &shape, elements: product },
            &|| vec![linear_cross_entropy(&hidden, &frozen, &ids).unwrap()],
            &|| {
                let logits = hidden.linear::<&Tensor>(&weight, None);
                vec![logits.cross_entropy_loss::<&Tensor>(&ids, None, Reduction::None, -100, 0.0)]
            },
        );
    });
}
