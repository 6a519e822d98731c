//! Where the gradients of other ranks come in.

use crate::Gradients;
use crate::error::BoxError;

/// Sums over all ranks of a distributed run, between the backward pass and clipping.
///
/// Since every rank divides its losses by the targets of **all** ranks, the gradients of a step are summed, not averaged. A reducer
/// must give the same result on every rank.
pub trait GradientReducer {
    /// The number of target tokens of the step on all ranks, from this rank's.
    ///
    /// # Errors
    /// Whatever the communication cannot do.
    fn sum_targets(&mut self, target_tokens: usize) -> Result<usize, BoxError>;

    /// Replaces the gradients by their sums over all ranks. A rank that had no micro-batch with a target comes with missing ones.
    ///
    /// # Errors
    /// Whatever the communication cannot do.
    fn sum_gradients(&mut self, gradients: &mut Gradients) -> Result<(), BoxError>;

    /// The loss of the step on all ranks, from this rank's share.
    ///
    /// # Errors
    /// Whatever the communication cannot do.
    fn sum_loss(&mut self, loss: f64) -> Result<f64, BoxError>;
}

/// The reducer of a run on one rank: everything stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoReduction;

impl GradientReducer for NoReduction {
    fn sum_targets(&mut self, target_tokens: usize) -> Result<usize, BoxError> {
        Ok(target_tokens)
    }

    fn sum_gradients(&mut self, _gradients: &mut Gradients) -> Result<(), BoxError> {
        Ok(())
    }

    fn sum_loss(&mut self, loss: f64) -> Result<f64, BoxError> {
        Ok(loss)
    }
}
