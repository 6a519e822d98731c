//! How much arithmetic a training step is, and how fast the machine does it: what a step takes beyond that is overhead.

use crate::{decoder::CausalLm, error::Result, layer::Layer};
use ferrotune_kernels::{FrozenWeight, SequenceLayout};
use ferrotune_lora::LoraLinear;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Time that a measurement of the rate takes at the least, where a single pass takes less.
const MEASURED: Duration = Duration::from_millis(150);

impl CausalLm {
    /// Floating-point operations of the matrix products of a training step: forward, and backward down to the lowest adapter.
    ///
    /// With `T` tokens, `R` rows that reach the end of the last layer, and `out`, `in` of each linear layer, a frozen product and its
    /// input's gradient are `4 T out in`, an adapter's products `6 T r (out + in)`, the head `4 R vocab_size hidden_size`, and
    /// attention, forward and backward, `14 head_dim` for each head and each pair of a query and a key that it sees.
    pub fn training_flops(&self, layout: &SequenceLayout, targets: usize) -> f64 {
        let config = self.config();
        let (tokens, targets) = (layout.total_tokens() as f64, targets as f64);
        let adapter = layout.segments().iter().find_map(|segment| segment.adapter);
        let layers = self.linears();
        let last = layers.len().saturating_sub(1);
        let mut flops = 4.0 * targets * (config.vocab_size * config.hidden_size) as f64;
        for (index, linears) in layers.iter().enumerate() {
            for (place, linear) in linears.iter().enumerate() {
                // After the last attention only the rows of targets go on; the model's first product has no input to inform.
                let rows = if index == last && place > 0 { targets } else { tokens };
                let passes = if index == 0 && place == 0 { 2.0 } else { 4.0 };
                let weight = linear.weight();
                flops += passes * rows * (weight.out_features() * weight.in_features()) as f64;
                for module in linear.modules() {
                    let Some(update) = adapter.and_then(|index| linear.adapter(&module.path, index)) else {
                        continue;
                    };
                    let rank = update.a.size().first().copied().unwrap_or(0);
                    flops += 6.0 * rows * (rank * (module.out_features + module.in_features)) as f64;
                }
            }
            let window = config.sliding_window.unwrap_or(i64::MAX);
            let pairs: i64 = layout.segments().iter().map(|segment| pairs_seen(segment.len(), window)).sum();
            flops += 14.0 * (config.num_attention_heads * config.head_dim * pairs) as f64;
        }
        flops
    }

    /// Floating-point operations a second at which this machine does the products of a layer in `kind`, forward and backward, with
    /// nothing between them: the limit that a training step on `tokens` rows at a time works against. `None` without a layer.
    ///
    /// The best of some passes over one layer, which together take a fraction of a second unless one alone takes longer.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) or [`Error::Kernel`](crate::Error::Kernel) if libtorch fails, out of memory included.
    pub fn product_rate(&self, tokens: i64, kind: Kind) -> Result<Option<f64>> {
        let _no_grad = tch::no_grad_guard();
        let Some(linears) = self.linears().into_iter().next() else { return Ok(None) };
        let options = (Kind::Float, self.device());
        let factors: Vec<(FrozenWeight, [Tensor; 2])> = linears
            .iter()
            .map(|linear| {
                let weight = linear.weight().in_kind(kind)?;
                let noise = |width| Tensor::f_rand([tokens.max(1), width], options)?.f_to_kind(kind);
                let factors = [noise(weight.in_features())?, noise(weight.out_features())?];
                Ok((weight, factors))
            })
            .collect::<Result<_>>()?;
        let flops: i64 = (factors.iter())
            .map(|(weight, _)| 4 * tokens.max(1) * weight.out_features() * weight.in_features())
            .sum();
        let (begun, mut best) = (Instant::now(), Duration::MAX);
        while best == Duration::MAX || begun.elapsed() < MEASURED {
            let start = Instant::now();
            for (weight, [x, grad]) in &factors {
                let _y = weight.forward_product(x)?;
                let _grad_x = weight.input_gradient(grad)?;
            }
            best = best.min(start.elapsed());
        }
        Ok(Some(flops as f64 / best.as_secs_f64()))
    }

    /// The linear layers, in the order in which they are computed.
    fn linears(&self) -> Vec<[&LoraLinear; 4]> {
        self.layers().iter().map(Layer::linears).collect()
    }
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
