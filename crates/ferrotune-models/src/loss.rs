//! What a loss is beside the negative log-likelihood.

/// What [`CausalLm::target_losses`](crate::CausalLm::target_losses) computes beside the negative log-likelihood: nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossOptions {
    /// `epsilon`: the loss of a target is `(1 - epsilon) nll + epsilon mean(-log p)`, with the mean over the vocabulary. It is no less
    /// part of an evaluation than of training.
    ///
    /// # References
    /// `LabelSmoother` of `transformers`.
    pub label_smoothing: f64,
    /// `alpha` of NEFTune: in training, noise that is uniform within `alpha / sqrt(length * hidden_size)` is added to the input
    /// embeddings, where `length` is that of each sequence.
    ///
    /// In `transformers` it is the length of the padded row: there the noise of a sequence depends on its neighbours in the batch, and
    /// both agree where nothing is padded. The noise is a function of the mode's key.
    ///
    /// # References
    /// Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    pub neftune_alpha: Option<f64>,
}
