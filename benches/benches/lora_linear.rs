//! The LoRA linear layer beside a frozen linear layer and two ways to write it with libtorch's own operators.
//!
//! - `ours`: [`lora_linear`], one node in the graph
//! - `frozen`: [`frozen_linear`], the layer without an update; its rank is that of its neighbours and changes nothing
//! - `three_products`: `x W^T + (scaling * x A^T) B^T`
//! - `peft_order`: PEFT's order, `F.linear(x, W) + F.linear(F.linear(x, A), B) * scaling`
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

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, measurement::Measurement};
use ferrotune_benches::{LINEAR_SHAPES, LinearShape, RANKS, SEED, TOKENS, ThreadTime, random};
use ferrotune_kernels::{FrozenWeight, LowRank, Mode, frozen_linear, lora_linear};
use std::time::Duration;
use tch::Tensor;

const SCALING: f64 = 2.0;
const VARIANTS: [Variant; 4] = [Variant::Ours, Variant::Frozen, Variant::ThreeProducts, Variant::PeftOrder];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Variant {
    Ours,
    Frozen,
    ThreeProducts,
    PeftOrder,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Frozen => "frozen",
            Self::ThreeProducts => "three_products",
            Self::PeftOrder => "peft_order",
        }
    }
}

/// A layer with its input and the gradient of its output.
struct Layer {
    x: Tensor,
    weight: Tensor,
    frozen: FrozenWeight,
    a: Tensor,
    b: Tensor,
    /// `[tokens * out_features]`
    grad: Tensor,
}

impl Layer {
    fn new(shape: LinearShape, rank: i64) -> Self {
        tch::manual_seed(SEED);
        let LinearShape { in_features, out_features } = shape;
        let weight = random(out_features, in_features);
        Self {
            x: random(TOKENS, in_features).set_requires_grad(true),
            frozen: FrozenWeight::new(&weight).unwrap(),
            weight,
            a: random(rank, in_features).set_requires_grad(true),
            b: random(out_features, rank).set_requires_grad(true),
            grad: random(TOKENS, out_features).view([-1]),
        }
    }

    fn forward(&self, variant: Variant) -> Tensor {
        let Self { x, weight, frozen, a, b, .. } = self;
        match variant {
            Variant::Ours => {
                let update = LowRank { a, b, scaling: SCALING, dropout: 0.0, layer: 0 };
                lora_linear(x, frozen, None, Some(update), Mode::Eval).unwrap()
            }
            Variant::Frozen => frozen_linear(x, frozen, None).unwrap(),
            Variant::ThreeProducts => x.matmul(&weight.tr()) + (x.matmul(&a.tr()) * SCALING).matmul(&b.tr()),
            Variant::PeftOrder => {
                let result = x.linear::<Tensor>(weight, None);
                result + x.linear::<Tensor>(a, None).linear::<Tensor>(b, None) * SCALING
            }
        }
    }

    /// The gradients are returned and not added to the tensors, so there is nothing to reset between two passes.
    fn forward_backward(&self, variant: Variant) -> Vec<Tensor> {
        // The derivative of this product is `grad`, a dense tensor such as the next layer hands back.
        let loss = self.forward(variant).view([-1]).dot(&self.grad);
        let inputs: &[&Tensor] = match variant {
            Variant::Frozen => &[&self.x],
            _ => &[&self.x, &self.a, &self.b],
        };
        Tensor::run_backward(&[loss], inputs, false, false)
    }

    /// A comparison of things that differ would be worth nothing.
    fn check(&self) {
        let close = |left: &Tensor, right: &Tensor| {
            let error = (left - right).abs().max().double_value(&[]);
            let size = right.abs().max().double_value(&[]);
            assert!(error <= 1e-4 * size, "{error} of {size}");
        };
        for variant in [Variant::ThreeProducts, Variant::PeftOrder] {
            close(&self.forward(Variant::Ours), &self.forward(variant));
            for (ours, other) in
                self.forward_backward(Variant::Ours).iter().zip(self.forward_backward(variant))
            {
                close(ours, &other);
            }
        }
        close(&self.forward(Variant::Frozen), &self.x.matmul(&self.weight.tr()));
    }
}

fn main() {
    // Settings on the command line win over these.
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3))
        .nresamples(10_000);
    if std::env::var_os("FERROTUNE_BENCH_CLOCK").is_some_and(|clock| clock == "thread") {
        tch::set_num_threads(1);
        benchmark(criterion.with_measurement(ThreadTime));
    } else {
        benchmark(criterion);
    }
}

fn benchmark<M: Measurement + 'static>(criterion: Criterion<M>) {
    let mut criterion = criterion.configure_from_args();
    let mut group = criterion.benchmark_group("lora_linear");
    group.sampling_mode(SamplingMode::Flat);
    for shape in LINEAR_SHAPES {
        for rank in RANKS {
            let layer = Layer::new(shape, rank);
            layer.check();
            for backward in [false, true] {
                // What is compared runs side by side, so that a machine that slows down slows all of it.
                for variant in VARIANTS {
                    let update = (variant != Variant::Frozen).then_some(rank);
                    group.throughput(Throughput::Elements(shape.flops(update, backward)));
                    let pass = if backward { "forward_backward" } else { "forward" };
                    let LinearShape { in_features, out_features } = shape;
                    let name = format!("{pass}/{}/{in_features}x{out_features}", variant.name());
                    group.bench_function(BenchmarkId::new(name, format!("r{rank}")), |bencher| {
                        if backward {
                            bencher.iter(|| layer.forward_backward(variant));
                        } else {
                            bencher.iter(|| layer.forward(variant));
                        }
                    });
                }
            }
        }
    }
    group.finish();
    criterion.final_summary();
}
