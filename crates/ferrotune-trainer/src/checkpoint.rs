//! Where the trainer hands over what a run needs to go on later.

use tch::Tensor;

use crate::error::BoxError;
use crate::{OptimizerState, TrainerState};

/// A run between two steps.
#[derive(Debug)]
#[non_exhaustive]
pub struct Checkpoint<'a> {
    /// Where the run is.
    pub state: &'a TrainerState,
    /// The named parameters. The next step changes them in place: what is kept must be a copy.
    pub parameters: &'a [(String, Tensor)],
    /// The optimizer's state, copied.
    pub optimizer: OptimizerState,
}

/// A checkpoint that was read back.
#[derive(Debug)]
pub struct SavedRun {
    /// Where the run was.
    pub state: TrainerState,
    /// The named parameters.
    pub parameters: Vec<(String, Tensor)>,
    /// The optimizer's state.
    pub optimizer: OptimizerState,
}

/// Keeps checkpoints. The trainer says when, and knows no file.
///
/// A checkpoint that could not be written is no reason to lose a training: unless there is no sense in going on, [`Checkpointer::save`] returns
/// `Ok` and says what failed when the run is over.
pub trait Checkpointer {
    /// Takes a copy of a run. If the step is the best so far, [`TrainerState::best_global_step`] is that of the state.
    ///
    /// # Errors
    /// An error ends the run.
    fn save(&mut self, checkpoint: Checkpoint<'_>) -> Result<(), BoxError>;

    /// The parameters of the checkpoint after step `best_global_step`; `None` if there is none.
    ///
    /// # Errors
    /// An error ends the run.
    fn load_best(&mut self, best_global_step: usize) -> Result<Option<Vec<(String, Tensor)>>, BoxError>;

    /// The newest checkpoint of this run with fewer steps than `step`; `None` if there is none. A run that goes back takes those after it
    /// for a course that was given up: the next [`Checkpointer::save`] takes their place. Without a body it has none, and a run goes back to
    /// its start.
    ///
    /// # Errors
    /// An error ends the run.
    #[expect(unused_variables, reason = "the name that the docs use")]
    fn load_before(&mut self, step: usize) -> Result<Option<SavedRun>, BoxError> {
        Ok(None)
    }
}
