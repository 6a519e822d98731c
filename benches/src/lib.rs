//! What the benchmarks of ferrotune share: the frame, the clock, shapes, seeds and tensors.

mod clock;
mod suite;

pub use clock::Clock;
pub use suite::{Comparison, Suite, Variant, gradients};

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

/// What the layers of SmolLM2-135M are made of.
pub mod model {
    /// Columns of an activation between two layers.
    pub const HIDDEN: i64 = 576;
    /// Columns of gate and of up.
    pub const INTERMEDIATE: i64 = 1536;
    /// Query heads.
    pub const HEADS: i64 = 9;
    /// Key and value heads.
    pub const KV_HEADS: i64 = 3;
    /// Columns of a head.
    pub const HEAD_DIM: i64 = 64;
    /// Rows of the output head.
    pub const VOCABULARY: i64 = 49_152;
    /// Decoder layers.
    pub const LAYERS: usize = 30;

    /// Shapes of all tensors of an adapter on the seven linear layers of each decoder layer.
    pub fn adapter_shapes(rank: i64) -> Vec<[i64; 2]> {
        let kv = KV_HEADS * HEAD_DIM;
        let (attention, mlp) = (HIDDEN, INTERMEDIATE);
        let linears = [
            (attention, HIDDEN),
            (kv, HIDDEN),
            (kv, HIDDEN),
            (HIDDEN, attention),
            (mlp, HIDDEN),
            (mlp, HIDDEN),
            (HIDDEN, mlp),
        ];
        let layer = linears.map(|(out_features, in_features)| [[rank, in_features], [out_features, rank]]);
        vec![layer.concat(); LAYERS].concat()
    }
}

/// Multiplications and additions of a product of `[rows, inner]` and `[inner, columns]`.
pub fn product_flops(rows: i64, inner: i64, columns: i64) -> u64 {
    (2 * rows * inner * columns) as u64
}

impl LinearShape {
    /// Multiplications and additions that the products of one pass need, none of them done twice: the frozen product, that of its
    /// input gradient, and with a rank two products for the update and four for its gradients.
    pub fn flops(self, rank: Option<i64>, backward: bool) -> u64 {
        let frozen = product_flops(TOKENS, self.in_features, self.out_features);
        let update = rank.map_or(0, |rank| {
            product_flops(TOKENS, self.in_features, rank) + product_flops(TOKENS, rank, self.out_features)
        });
        if backward { 2 * frozen + 3 * update } else { frozen + update }
    }
}

/// Random numbers of the size that a layer's weights have, so that no result overflows or vanishes.
pub fn random(rows: i64, columns: i64) -> Tensor {
    Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) / (columns as f64).sqrt()
}

/// Normally distributed activations.
pub fn activations(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Cosine and sine, `[tokens, head_dim / 2]` each, of the angles by which positions `0..tokens` rotate a head.
pub fn rotary_tables(tokens: i64) -> (Tensor, Tensor) {
    let options = (Kind::Float, Device::Cpu);
    let half = model::HEAD_DIM / 2;
    let frequencies = (Tensor::arange(half, options) * (-(10_000f64.ln()) / half as f64)).exp();
    let angles = Tensor::arange(tokens, options).outer(&frequencies);
    (angles.cos(), angles.sin())
}

/// The rotation in libtorch's operators: `x [cos, cos] + [-x2, x1] [sin, sin]`.
pub fn libtorch_rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let double = |table: &Tensor| Tensor::cat(&[table, table], 1).unsqueeze(1);
    let halves = x.chunk(2, 2);
    x * double(cos) + Tensor::cat(&[&halves[1].neg(), &halves[0]], 2) * double(sin)
}
