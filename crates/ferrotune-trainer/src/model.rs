//! The one trait that a model implements to be trained.

use ferrotune_kernels::Mode;
use tch::Tensor;

use crate::ForwardArguments;

/// A model that can be trained.
///
/// The trainer knows nothing else of it: what a batch is, which layers there are and what is frozen stay the model's own. The
/// crate's front page trains a complete one.
pub trait TrainableModel {
    /// What one forward pass takes.
    type Batch;
    /// What can go wrong in one.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The number of target tokens of a batch, known before its forward pass: the loss of a whole optimizer step is divided by the
    /// targets of the whole step, so that a token weighs the same in every micro-batch.
    fn target_tokens(&self, batch: &Self::Batch) -> usize;

    /// The number of real tokens of a batch (no padding), for the throughput.
    fn tokens(&self, batch: &Self::Batch) -> usize;

    /// The **sum** of the negative log-likelihood over the targets of the batch: one number, differentiable in
    /// [`Mode::Train`]. All randomness comes from the mode's key. What else goes into it [`Self::forward_arguments`] says.
    ///
    /// # Errors
    /// Whatever the model cannot do.
    fn loss(&self, batch: &Self::Batch, mode: Mode) -> Result<Tensor, Self::Error>;

    /// Shallow clones of the parameters to train, each a leaf that requires a gradient, under unique names and in an order that
    /// does not change.
    fn trainable_parameters(&self) -> Vec<(String, Tensor)>;

    /// The arguments of the forward pass that the model was built with. The trainer refuses a run whose
    /// [`TrainingArguments`](crate::TrainingArguments) say otherwise.
    fn forward_arguments(&self) -> ForwardArguments {
        ForwardArguments::default()
    }

    /// Where each example of the batch came from (`train.jsonl:17`), so that a bad step can name its examples.
    fn sources(&self, batch: &Self::Batch) -> Vec<String>;
}
