//! The share of the machine's limit for matrix products that training reaches.

use ferrotune_models::{CausalLm, ProductRates, ProductWork, UsualBatch};
use ferrotune_precision::ComputeDtype;
use tch::Device;

/// What products in 16 bits cost on this processor, measured on a layer of the model with `tokens` rows; nothing for f32, or elsewhere
/// than on the CPU.
///
/// # Errors
/// As [`CausalLm::product_rate`].
pub(super) fn cost_of(
    model: &CausalLm,
    compute: ComputeDtype,
    tokens: i64,
) -> Result<Option<String>, ferrotune_models::Error> {
    if compute == ComputeDtype::F32 || model.device() != Device::Cpu {
        return Ok(None);
    }
    let rate = |dtype: ComputeDtype| model.product_rate(tokens, dtype.kind());
    let rates = rate(ComputeDtype::F32)?.zip(rate(compute)?);
    Ok(rates.map(|(full, half)| comparison(compute, tokens, full, half)))
}

fn comparison(compute: ComputeDtype, tokens: i64, full: f64, half: f64) -> String {
    let (mark, times, word) = match half / full {
        ratio if ratio < 1.0 => ("warning: ", 1.0 / ratio, "slower"),
        ratio => ("", ratio, "faster"),
    };
    format!(
        "{mark}{compute} on this processor: {times:.1} times {word} than f32 ({:.0} and {:.0} GFLOP/s, measured now in the products of a \
         layer of this model with {tokens} tokens)",
        half / 1e9,
        full / 1e9
    )
}

/// What the steps' products would take alone, back to back, at the rates of this machine.
///
/// The rates are measured after the first step, which would otherwise wait for it.
pub(super) struct ProductLimit<'a> {
    /// Until they are measured; none where they are not.
    model: Option<&'a CausalLm>,
    compute: ComputeDtype,
    /// Sizes of the products that are measured.
    batch: UsualBatch,
    rates: Option<ProductRates>,
    work: ProductWork,
    seconds: f64,
}

impl<'a> ProductLimit<'a> {
    /// A limit of products in `compute` for batches like this one; unknown on other devices than the CPU.
    pub(super) fn new(model: &'a CausalLm, compute: ComputeDtype, batch: UsualBatch) -> Self {
        let model = (model.device() == Device::Cpu).then_some(model);
        Self { model, compute, batch, rates: None, work: ProductWork::default(), seconds: 0.0 }
    }

    /// Counts a step of `seconds`; its share if the rates are known.
    pub(super) fn count(&mut self, work: &ProductWork, seconds: f64) -> Option<f64> {
        self.work.add(work);
        self.seconds += seconds;
        self.share_of(work, seconds)
    }

    /// The share of all steps together.
    pub(super) fn share_of_all(&self) -> Option<f64> {
        self.share_of(&self.work, self.seconds)
    }

    /// Measures the rates, once.
    ///
    /// # Errors
    /// As [`CausalLm::product_rates`].
    pub(super) fn measure(&mut self) -> Result<(), ferrotune_models::Error> {
        if let Some(model) = self.model.take() {
            self.rates = model.product_rates(self.batch, self.compute.kind())?;
        }
        Ok(())
    }

    fn share_of(&self, work: &ProductWork, seconds: f64) -> Option<f64> {
        Some(self.rates?.seconds(work) / seconds.max(f64::MIN_POSITIVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slower_is_a_warning_with_the_numbers() {
        assert_eq!(
            comparison(ComputeDtype::Bf16, 300, 140e9, 350e9),
            "bf16 on this processor: 2.5 times faster than f32 (350 and 140 GFLOP/s, measured now in the products of a layer of this \
             model with 300 tokens)"
        );
        let slower = comparison(ComputeDtype::F16, 300, 120e9, 15e9);
        assert!(
            slower.starts_with("warning: f16 on this processor: 8.0 times slower than f32 (15 and 120"),
            "{slower}"
        );
    }
}
