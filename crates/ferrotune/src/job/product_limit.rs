//! The share of the machine's limit for matrix products that training reaches.

use ferrotune_models::CausalLm;
use tch::Device;

/// What the steps' products would take at the rate of this machine, with nothing between them.
///
/// The rate is measured after the first step, which would otherwise wait for it.
pub(super) struct ProductLimit<'a> {
    /// Until it is measured; none where it is not.
    model: Option<&'a CausalLm>,
    /// Rows of the products that are measured.
    tokens: i64,
    /// Floating-point operations a second.
    rate: Option<f64>,
    flops: f64,
    seconds: f64,
}

impl<'a> ProductLimit<'a> {
    /// A limit of products with `tokens` rows; unknown on other devices than the CPU.
    pub(super) fn new(model: &'a CausalLm, tokens: i64) -> Self {
        let model = (model.device() == Device::Cpu).then_some(model);
        Self { model, tokens, rate: None, flops: 0.0, seconds: 0.0 }
    }

    /// Counts a step of `seconds`; its share if the rate is known.
    pub(super) fn count(&mut self, flops: f64, seconds: f64) -> Option<f64> {
        self.flops += flops;
        self.seconds += seconds;
        self.share_of(flops, seconds)
    }

    /// The share of all steps together.
    pub(super) fn share_of_all(&self) -> Option<f64> {
        self.share_of(self.flops, self.seconds)
    }

    /// Measures the rate, once.
    ///
    /// # Errors
    /// As [`CausalLm::product_rate`].
    pub(super) fn measure(&mut self) -> Result<(), ferrotune_models::Error> {
        if let Some(model) = self.model.take() {
            self.rate = model.product_rate(self.tokens)?;
        }
        Ok(())
    }

    fn share_of(&self, flops: f64, seconds: f64) -> Option<f64> {
        Some(flops / self.rate? / seconds.max(f64::MIN_POSITIVE))
    }
}
