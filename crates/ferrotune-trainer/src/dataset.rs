//! Where batches come from.

use crate::error::BoxError;

/// A data set that makes batches on demand.
pub trait Dataset {
    /// What the model takes.
    type Batch;

    /// Number of examples.
    fn len(&self) -> usize;

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The order of the examples in an epoch (counted from 0): [`Dataset::len`] indices. It must depend on nothing but `epoch`, so
    /// that an interrupted run can go on. Evaluation takes the examples as they lie, whatever this says.
    fn order(&self, epoch: usize) -> Vec<usize>;

    /// The batch of the examples at `indices`.
    ///
    /// # Errors
    /// Whatever the data set cannot do.
    fn batch(&self, indices: &[usize]) -> Result<Self::Batch, BoxError>;
}
