//! What the benchmarks of ferrotune share: shapes, seeds, tensors, and clocks.

mod clock;

pub use clock::ThreadTime;

use tch::{Device, Kind, Tensor};

/// Tokens in one batch.
pub const TOKENS: i64 = 512;

/// Ranks of the low-rank updates.
pub const RANKS: [i64; 3] = [8, 16, 64];

/// Seed of every tensor of a benchmark.
pub const SEED: i64 = 0;

/// The size of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearShape {
    /// Columns of the weight.
    pub in_features: i64,
    /// Rows of the weight.
    pub out_features: i64,
}

/// The attention output and the MLP of a 135 M parameter model, and the attention output of a 7 B parameter model.
pub const LINEAR_SHAPES: [LinearShape; 3] = [
    LinearShape { in_features: 576, out_features: 576 },
    LinearShape { in_features: 576, out_features: 1536 },
    LinearShape { in_features: 4096, out_features: 4096 },
];

impl LinearShape {
    /// Multiplications and additions that the products of one pass need, none of them done twice: the frozen product, that of its
    /// input gradient, and with a rank two products for the update and four for its gradients.
    pub fn flops(self, rank: Option<i64>, backward: bool) -> u64 {
        let product = |inner: i64, columns: i64| (2 * TOKENS * inner * columns) as u64;
        let frozen = product(self.in_features, self.out_features);
        let update =
            rank.map_or(0, |rank| product(self.in_features, rank) + product(rank, self.out_features));
        if backward { 2 * frozen + 3 * update } else { frozen + update }
    }
}

/// Random numbers of the size that a layer's weights have, so that no result overflows or vanishes.
pub fn random(rows: i64, columns: i64) -> Tensor {
    Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) / (columns as f64).sqrt()
}
