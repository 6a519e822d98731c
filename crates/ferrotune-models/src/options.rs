//! How a forward pass is computed.

use ferrotune_precision::DtypePolicy;

/// How [`CausalLm::target_losses`](crate::CausalLm::target_losses) is computed: the plain negative log-likelihood in the kind of the
/// weights, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ForwardOptions {
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
    /// Which dtype products are computed in; that of the weights where it is the policy's own.
    ///
    /// Linear layers, gates, attention (summed in f32 for heads of a multiple of 16) and the output head are computed in it. Embeddings,
    /// the sums between the layers, norms, rotations
    /// and the cross-entropy stay in f32, and so do the adapters: the layers cast `A` and `B` in the graph. Frozen weights are rounded
    /// once, and kept in both dtypes unless their numbers are those of the one. So it is under `torch.autocast`, which rounds them again in
    /// each pass.
    ///
    /// # References
    /// Micikevicius et al. 2017, arXiv:1710.03740; `torch.autocast`.
    pub policy: DtypePolicy,
    /// Whether training keeps the input of each layer alone, and computes the layer again in backward: the same loss and gradients, bit
    /// for bit, for one more forward.
    ///
    /// # References
    /// Chen et al. 2016, arXiv:1604.06174.
    pub gradient_checkpointing: bool,
}
