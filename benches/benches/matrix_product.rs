//! The products with a frozen weight, beside libtorch's `matmul`; a shape is rows x out_features x in_features.
//!
//! 620 rows are a micro-batch of four examples, eight a step of generation.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use ferrotune_benches::model::{HIDDEN, INTERMEDIATE};
use ferrotune_benches::{Comparison, Suite, product_flops, random};
use ferrotune_kernels::FrozenWeight;

const SHAPES: [[i64; 3]; 7] = [
    [620, HIDDEN, HIDDEN],
    [620, 2 * INTERMEDIATE, HIDDEN],
    [620, HIDDEN, INTERMEDIATE],
    [512, 4096, 4096],
    [8, HIDDEN, HIDDEN],
    [8, 2 * INTERMEDIATE, HIDDEN],
    [8, HIDDEN, INTERMEDIATE],
];

fn main() {
    Suite::run("matrix_product", |suite| {
        for [rows, out_features, in_features] in SHAPES {
            let weight = random(out_features, in_features);
            let frozen = FrozenWeight::new(&weight).unwrap();
            let (x, grad) = (random(rows, in_features), random(rows, out_features));
            let shape = format!("{rows}x{out_features}x{in_features}");
            let elements = product_flops(rows, in_features, out_features);
            suite.compare(
                Comparison { pass: "forward", shape: &shape, elements },
                &|| vec![frozen.forward_product(&x).unwrap()],
                &|| vec![x.matmul(&weight.tr())],
            );
            suite.compare(
                Comparison { pass: "input_gradient", shape: &shape, elements },
                &|| vec![frozen.input_gradient(&grad).unwrap()],
                &|| vec![grad.matmul(&weight)],
            );
        }
    });
}
