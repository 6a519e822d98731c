//! How much arithmetic a training step is, and how fast the machine does it: what a step takes beyond that is overhead.

use crate::{decoder::CausalLm, error::Result, layer::Layer};
use ferrotune_kernels::{CHUNK_LOGITS, SequenceLayout, matmul};
use ferrotune_lora::LoraLinear;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Time that a measurement of the rate takes at the least, where a single pass takes less.
const MEASURED: Duration = Duration::from_millis(60);
/// Passes of a measurement, where they do not take several times as long.
const PASSES: usize = 3;

/// Tokens of a sequence at the most, of products that are measured.
const LONGEST: i64 = 512;

/// Arithmetic of a training step's matrix products, in floating-point operations, by what they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProductWork {
    /// The frozen layers, and what adapters add in the same pass: their `p B^T` and `q A`.
    pub linear: f64,
    /// The other products of adapters, of a few columns or rows: `x A^T`, and in backward those with the gradients.
    pub adapters: f64,
    /// Scores and weighted sums, forward and backward, for pairs that are seen.
    pub attention: f64,
    /// The head, for rows of targets.
    pub head: f64,
}

impl ProductWork {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.linear + self.adapters + self.attention + self.head
    }

    /// Adds the work of another batch.
    pub fn add(&mut self, other: &Self) {
        self.linear += other.linear;
        self.adapters += other.adapters;
        self.attention += other.attention;
        self.head += other.head;
    }
}

/// At how many floating-point operations a second this machine does each kind of product, with nothing between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductRates(ProductWork);

impl ProductRates {
    /// What the work takes at these rates.
    pub fn seconds(&self, work: &ProductWork) -> f64 {
        let Self(rates) = self;
        work.linear / rates.linear
            + work.adapters / rates.adapters
            + work.attention / rates.attention
            + work.head / rates.head
    }
}

/// The sizes of a usual batch of training.
#[derive(Clone, Copy, Debug)]
pub struct UsualBatch {
    /// Tokens of all its sequences.
    pub tokens: i64,
    /// Tokens of a sequence.
    pub length: i64,
    /// Tokens that are learnt.
    pub targets: i64,
    /// Rank of the adapters.
    pub rank: i64,
}

impl CausalLm {
    /// Floating-point operations of the matrix products of a training step: forward, and backward down to the first layer.
    ///
    /// With `T` tokens, `R` rows that reach the end of the last layer, and `out`, `in` of each linear layer, a frozen product and its
    /// input's gradient are `4 T out in`, an adapter's products `6 T r (out + in)`, the head `4 R vocab_size hidden_size`, and
    /// attention, forward and backward, `14 head_dim` for each head and each pair of a query and a key that it sees.
    pub fn training_work(&self, layout: &SequenceLayout, targets: usize) -> ProductWork {
        let config = self.config();
        let (tokens, targets) = (layout.total_tokens() as f64, targets as f64);
        let adapter = layout.segments().iter().find_map(|segment| segment.adapter);
        let layers = self.linears();
        let last = layers.len().saturating_sub(1);
        let head = 4.0 * targets * (config.vocab_size * config.hidden_size) as f64;
        let mut work = ProductWork { head, ..ProductWork::default() };
        for (index, linears) in layers.iter().enumerate() {
            for (place, linear) in linears.iter().enumerate() {
                // After the last attention only the rows of targets go on; the model's first product has no input to inform.
                let rows = if index == last && place > 0 { targets } else { tokens };
                let passes = if index == 0 && place == 0 { 2.0 } else { 4.0 };
                let weight = linear.weight();
                work.linear += passes * rows * (weight.out_features() * weight.in_features()) as f64;
                for module in linear.modules() {
                    let Some(update) = adapter.and_then(|index| linear.adapter(&module.path, index)) else {
                        continue;
                    };
                    let rank = update.a.size().first().copied().unwrap_or(0);
                    let of_each = 2.0 * rows * (rank * (module.out_features + module.in_features)) as f64;
                    work.linear += of_each;
                    work.adapters += 2.0 * of_each;
                }
            }
            let window = config.sliding_window.unwrap_or(i64::MAX);
            let pairs: i64 = layout.segments().iter().map(|segment| pairs_seen(segment.len(), window)).sum();
            work.attention += 14.0 * (config.num_attention_heads * config.head_dim * pairs) as f64;
        }
        work
    }

    /// Floating-point operations a second at which this machine does the products of layers in `kind`, forward and backward, back to back
    /// and with nothing between them. `None` without a layer.
    ///
    /// The median of some passes, each over the next layer, whose weights are in no cache, as in a step; together they take a fraction of a
    /// second unless one alone takes longer.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) or [`Error::Kernel`](crate::Error::Kernel) if libtorch fails, out of memory included.
    pub fn product_rate(&self, tokens: i64, kind: Kind) -> Result<Option<f64>> {
        let _no_grad = tch::no_grad_guard();
        let tokens = tokens.max(1);
        let layers = self.linears();
        let Some(first) = layers.first() else { return Ok(None) };
        let noise = |columns| self.noise(tokens, columns, kind);
        let factors: Vec<[Tensor; 2]> = first
            .iter()
            .map(|linear| Ok([noise(linear.weight().in_features())?, noise(linear.weight().out_features())?]))
            .collect::<Result<_>>()?;
        let size = |linear: &&LoraLinear| linear.weight().out_features() * linear.weight().in_features();
        let flops: i64 = first.iter().map(|linear| 4 * tokens * size(linear)).sum();
        let rate = usual_rate(flops, |pass| {
            for (linear, [x, grad]) in layers[pass % layers.len()].iter().zip(&factors) {
                let weight = linear.weight().in_kind(kind)?;
                let _y = weight.forward_product(x)?;
                let _grad_x = weight.input_gradient(grad)?;
            }
            Ok(())
        })?;
        Ok(Some(rate))
    }

    /// The same for each kind of product of a training step on batches like this one: the limit that the step works against.
    ///
    /// # Errors
    /// As [`CausalLm::product_rate`].
    pub fn product_rates(
        &self,
        UsualBatch { tokens, length, targets, rank }: UsualBatch,
        kind: Kind,
    ) -> Result<Option<ProductRates>> {
        let Some(linear) = self.product_rate(tokens, kind)? else { return Ok(None) };
        let _no_grad = tch::no_grad_guard();
        let config = self.config();
        // A step computes scores and logits of a few rows at a time, and larger ones are no faster.
        let (length, targets) = (length.min(LONGEST), targets.min(CHUNK_LOGITS / config.vocab_size.max(1)));
        let [tokens, length, targets, rank] = [tokens, length, targets, rank].map(|size| size.max(1));

        let mut of_adapters = Vec::new();
        let mut flops = 0;
        for linear in self.linears().first().into_iter().flatten() {
            let (inputs, outputs) = (linear.weight().in_features(), linear.weight().out_features());
            let of = |rows, columns| self.noise(rows, columns, kind);
            // `x A^T` and `q^T x`; `g B` and `g^T p`.
            of_adapters
                .push([(of(tokens, inputs)?, of(rank, inputs)?), (of(tokens, outputs)?, of(rank, outputs)?)]);
            flops += 4 * tokens * rank * (inputs + outputs);
        }
        let narrow = self.noise(tokens, rank, kind)?;
        let adapters = usual_rate(flops, |_| {
            for (large, small) in of_adapters.iter().flatten() {
                let _projected = matmul(large, &small.f_tr()?)?;
                let _gradient = matmul(&narrow.f_tr()?, large)?;
            }
            Ok(())
        })?;

        // All heads of a sequence below each other. Attention is formed in f32.
        let (rows, head_dim) = (config.num_attention_heads * length, config.head_dim);
        let [queries, keys, scores] = [(rows, head_dim), (length, head_dim), (rows, length)]
            .map(|(rows, columns)| self.noise(rows, columns, Kind::Float));
        let (queries, keys, scores) = (queries?, keys?, scores?);
        let attention = usual_rate(4 * rows * head_dim * length, |_| {
            let _scores = matmul(&queries, &keys.f_tr()?)?;
            let _sums = matmul(&scores, &keys)?;
            Ok(())
        })?;

        let weight = self.head().in_kind(kind)?;
        let (hidden, grad) = (
            self.noise(targets, weight.in_features(), kind)?,
            self.noise(targets, weight.out_features(), kind)?,
        );
        let head = usual_rate(4 * targets * weight.out_features() * weight.in_features(), |_| {
            let _logits = weight.forward_product(&hidden)?;
            let _grad_hidden = weight.input_gradient(&grad)?;
            Ok(())
        })?;
        Ok(Some(ProductRates(ProductWork { linear, adapters, attention, head })))
    }

    fn noise(&self, rows: i64, columns: i64, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_rand([rows, columns], (Kind::Float, self.device()))?.f_to_kind(kind)?)
    }

    /// The linear layers, in the order in which they are computed.
    fn linears(&self) -> Vec<[&LoraLinear; 4]> {
        self.layers().iter().map(Layer::linears).collect()
    }
}

/// Operations a second in the median of some passes, which are told their number.
fn usual_rate(flops: i64, run: impl Fn(usize) -> Result<()>) -> Result<f64> {
    run(0)?; // the first pass prepares
    let (begun, mut passes) = (Instant::now(), Vec::new());
    while passes.is_empty()
        || begun.elapsed() < MEASURED
        || passes.len() < PASSES && begun.elapsed() < 4 * MEASURED
    {
        let start = Instant::now();
        run(passes.len() + 1)?;
        passes.push(start.elapsed());
    }
    passes.sort_unstable();
    let median = passes[passes.len() / 2];
    Ok(flops as f64 / median.as_secs_f64().max(f64::MIN_POSITIVE))
}

/// Pairs of a query and a key that causal attention of `length` tokens looks at.
fn pairs_seen(length: i64, window: i64) -> i64 {
    let window = window.min(length);
    window * (window + 1) / 2 + (length - window) * window
}

#[cfg(test)]
mod tests {
    use super::pairs_seen;

    #[test]
    fn pairs_are_those_of_the_triangle_and_of_the_band() {
        for (length, window) in [(1, 9), (7, i64::MAX), (7, 7), (9, 3), (5, 1)] {
            let expected = (0..length)
                .flat_map(|query| (0..=query).filter(move |key| query - key < window))
                .count() as i64;
            assert_eq!(pairs_seen(length, window), expected, "{length} {window}");
        }
    }
}
