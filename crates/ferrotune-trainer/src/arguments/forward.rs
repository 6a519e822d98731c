//! The arguments that are a model's own business.

use super::TrainingArguments;
use crate::{Error, Result};

/// The arguments of [`TrainingArguments`] that only a model's forward pass can carry out.
///
/// A model says with which of them it was built, in [`TrainableModel::forward_arguments`](crate::TrainableModel::forward_arguments), and
/// the trainer refuses a run whose arguments say otherwise: none is ignored in silence. The default is a model that knows none of them.
///
/// ```
/// use ferrotune_trainer::{ForwardArguments, TrainingArguments};
/// let arguments = TrainingArguments { label_smoothing_factor: 0.1, ..Default::default() };
/// let expected = ForwardArguments { label_smoothing_factor: 0.1, ..Default::default() };
/// assert_eq!(arguments.forward_arguments(), expected);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ForwardArguments {
    /// `epsilon`: the loss is `(1 - epsilon) nll + epsilon mean(-log p)` over the vocabulary, also in an evaluation, as in transformers.
    pub label_smoothing_factor: f64,
    /// `alpha`: in training, uniform noise within `alpha / sqrt(length * width)` is added to the input embeddings.
    pub neftune_noise_alpha: Option<f64>,
    /// Whether products are computed in bf16.
    pub bf16: bool,
    /// Whether products are computed in f16.
    pub fp16: bool,
    /// Whether activations are computed again in the backward pass.
    pub gradient_checkpointing: bool,
}

impl TrainingArguments {
    /// What a model must be built with for these arguments.
    pub fn forward_arguments(&self) -> ForwardArguments {
        ForwardArguments {
            label_smoothing_factor: self.label_smoothing_factor,
            neftune_noise_alpha: self.neftune_noise_alpha,
            bf16: self.bf16,
            fp16: self.fp16,
            gradient_checkpointing: self.gradient_checkpointing,
        }
    }
}

impl ForwardArguments {
    /// Refuses a model that was built with `model`, naming the first argument that differs.
    pub(crate) fn check(&self, model: &Self) -> Result<()> {
        let text = |arguments: &Self| {
            let Self { label_smoothing_factor, neftune_noise_alpha, bf16, fp16, gradient_checkpointing } =
                arguments;
            [
                ("label_smoothing_factor", label_smoothing_factor.to_string()),
                (
                    "neftune_noise_alpha",
                    neftune_noise_alpha.map_or_else(|| "none".to_owned(), |alpha| alpha.to_string()),
                ),
                ("bf16", bf16.to_string()),
                ("fp16", fp16.to_string()),
                ("gradient_checkpointing", gradient_checkpointing.to_string()),
            ]
        };
        let differing = text(self).into_iter().zip(text(model)).find(|(ours, model)| ours != model);
        match differing {
            None => Ok(()),
            Some(((field, found), (_, model))) => Err(Error::ForwardArgument { field, found, model }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_argument_that_differs_is_named_either_way() {
        let none = ForwardArguments::default();
        assert!(none.check(&none).is_ok());
        for (expected, arguments) in [
            (
                "label_smoothing_factor = 0.1, but the model was built with 0:",
                ForwardArguments { label_smoothing_factor: 0.1, ..none },
            ),
            (
                "neftune_noise_alpha = 5, but the model was built with none:",
                ForwardArguments { neftune_noise_alpha: Some(5.0), ..none },
            ),
            ("bf16 = true, but the model was built with false:", ForwardArguments { bf16: true, ..none }),
            ("fp16 = true, but", ForwardArguments { fp16: true, ..none }),
            ("gradient_checkpointing = true, but", ForwardArguments { gradient_checkpointing: true, ..none }),
        ] {
            let message = arguments.check(&none).unwrap_err().to_string();
            assert!(message.starts_with(&format!("training argument {expected}")), "{message}");
            assert!(arguments.check(&arguments).is_ok());
            assert!(matches!(none.check(&arguments), Err(Error::ForwardArgument { .. })));
        }
    }
}
