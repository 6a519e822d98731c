//! The one error type of this crate.

use std::fmt;

use tch::TchError;

use crate::Finding;

/// An error of code that the trainer calls: the model, the data set, a callback, a reducer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Where in a run something happened, and on which examples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The optimizer step, counted from 1; `None` outside of a training loop.
    pub step: Option<usize>,
    /// The examples that were being used, as the model names them (`train.jsonl:17`).
    pub examples: Vec<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "at optimizer step {step}")?,
            None => f.write_str("outside of the training loop")?,
        }
        match self.examples.as_slice() {
            [] => Ok(()),
            examples => write!(f, ", examples: {}", Listed(examples, SHOWN)),
        }
    }
}

/// The first names of a list that may be long, so many of them.
pub(crate) struct Listed<'a>(pub(crate) &'a [String], pub(crate) usize);

/// How many names an error shows.
pub(crate) const SHOWN: usize = 32;

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names, shown) = *self;
        f.write_str(&names.iter().take(shown).map(String::as_str).collect::<Vec<_>>().join(", "))?;
        if names.len() > shown { write!(f, " and {} more", names.len() - shown) } else { Ok(()) }
    }
}

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A training argument has a value that no run can use.
    #[error("training argument {field} = {found}: expected {expected}")]
    InvalidArgument {
        /// The argument's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// An argument concerns the forward pass, and the model was built with another value.
    #[error(
        "training argument {field} = {found}, but the model was built with {model}: give the model the same value (it says its own in \
         `TrainableModel::forward_arguments`), or leave the argument out"
    )]
    ForwardArgument {
        /// The argument's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// The model's value.
        model: String,
    },
    /// An argument takes one of a few names, and this is none of them.
    #[error(
        "{argument} {found:?} is not offered: expected one of {known}{}",
        nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
    )]
    UnknownName {
        /// The argument.
        argument: &'static str,
        /// What was given.
        found: String,
        /// The name that was probably meant.
        nearest: Option<String>,
        /// The names that are understood.
        known: String,
    },
    /// The data set has no example.
    #[error("the {split} data set is empty: there is nothing to learn from or to evaluate on")]
    EmptyDataset {
        /// `train` or `validation`.
        split: &'static str,
    },
    /// The data set's order for an epoch does not fit its length.
    #[error("the order of epoch {epoch} has {found} entries for a data set of {expected} examples")]
    OrderLength {
        /// The epoch, counted from 0.
        epoch: usize,
        /// Entries of the order.
        found: usize,
        /// Examples of the data set.
        expected: usize,
    },
    /// The model names no trainable parameter.
    #[error("the model has no trainable parameter: was an adapter injected?")]
    NoTrainableParameters,
    /// Two parameters have one name.
    #[error("two trainable parameters are called {parameter}: names must be unique")]
    DuplicateParameter {
        /// The name.
        parameter: String,
    },
    /// A parameter cannot be trained as it is.
    #[error("parameter {parameter} cannot be trained: expected {expected}, found {found}")]
    UnfitParameter {
        /// Its name.
        parameter: String,
        /// What a trainable parameter is.
        expected: String,
        /// What this one is.
        found: String,
    },
    /// The set of gradients is not the expected one.
    #[error(
        "{count} trainable parameter(s) got no gradient {place}: {}; the loss does not depend on them",
        Listed(parameters, SHOWN), count = parameters.len()
    )]
    MissingGradient {
        /// The parameters without a gradient.
        parameters: Vec<String>,
        /// Where.
        place: Box<Place>,
    },
    /// A gradient has a NaN or an infinite element, or a norm beyond what its dtype holds.
    #[error(
        "the gradient of {} of the parameters is not finite {place}: {}; lower the learning rate or look at the examples",
        parameters.len(), Listed(parameters, SHOWN)
    )]
    NonFiniteGradient {
        /// The parameters whose gradient is not finite.
        parameters: Vec<String>,
        /// Where.
        place: Box<Place>,
    },
    /// A parameter has a NaN or an infinite element after the last update, though the gradients were finite.
    #[error(
        "{} of the parameters are not finite after the update {place}: {}; lower the learning rate",
        parameters.len(), Listed(parameters, SHOWN)
    )]
    NonFiniteParameter {
        /// The parameters that are not finite.
        parameters: Vec<String>,
        /// Where.
        place: Box<Place>,
    },
    /// The loss is NaN or infinite.
    #[error("the loss is {loss} {place}; lower the learning rate or look at the examples")]
    NonFiniteLoss {
        /// Its value.
        loss: f64,
        /// Where.
        place: Box<Place>,
    },
    /// The loss is not one number that gradients can be asked of.
    #[error("the model's loss cannot be trained on {place}: expected {expected}, found {found}")]
    UnfitLoss {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
        /// Where.
        place: Box<Place>,
    },
    /// There is no target token, so the loss per token has no value.
    #[error("there is no target token {place}: every label is masked")]
    NoTargets {
        /// Where.
        place: Box<Place>,
    },
    /// The gradients or the state that are handed in are not those of the parameters.
    #[error("{what} does not fit the parameters: {tensor}: expected {expected}, found {found}")]
    StateMismatch {
        /// `gradients`, `optimizer state` or `checkpoint`.
        what: &'static str,
        /// The tensor.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The model failed.
    #[error("the model failed {place}: {source}")]
    Model {
        /// Where.
        place: Box<Place>,
        /// Its own error.
        #[source]
        source: BoxError,
    },
    /// The data set could not make a batch.
    #[error("the {split} data set failed on examples {indices:?}: {source}")]
    Dataset {
        /// `train` or `validation`.
        split: &'static str,
        /// The indices of the batch.
        indices: Vec<usize>,
        /// Its own error.
        #[source]
        source: BoxError,
    },
    /// A callback failed.
    #[error("callback {name} failed in {event}: {source}")]
    Callback {
        /// The callback's name.
        name: String,
        /// The event that it was told of.
        event: &'static str,
        /// Its own error.
        #[source]
        source: BoxError,
    },
    /// A checkpoint could not be kept, or not be read again.
    #[error("the checkpointer failed in {event}: {source}")]
    Checkpointer {
        /// What it was asked for: `save`, `load_best` or `load_before`.
        event: &'static str,
        /// Its own error.
        #[source]
        source: BoxError,
    },
    /// The run went back to a checkpoint as often as it may, and the fault came again.
    #[error(
        "the run went back {roll_backs} times, each time to half the learning rate, and a watcher ({}) finds at {finding}; start again with a \
         learning rate far below {learning_rate:e}",
        finding.watcher
    )]
    RollBacksSpent {
        /// How often it went back.
        roll_backs: usize,
        /// `learning_rate` of the run.
        learning_rate: f64,
        /// What was found last.
        finding: Box<Finding>,
    },
    /// The gradient reducer failed.
    #[error("the gradient reducer failed {place}: {source}")]
    Reducer {
        /// Where.
        place: Box<Place>,
        /// Its own error.
        #[source]
        source: BoxError,
    },
    /// The scaler of the loss has a state that none can use.
    #[error(transparent)]
    Precision(ferrotune_precision::Error),
    /// libtorch failed, out of memory included.
    #[error("libtorch failed in {what}: {source}")]
    Torch {
        /// What was being done.
        what: &'static str,
        /// libtorch's own message.
        #[source]
        source: TchError,
    },
}

impl Error {
    /// Says where a gradient problem arose; other errors stay as they are.
    pub(crate) fn at(mut self, found_at: Place) -> Self {
        if let Self::MissingGradient { place, .. } | Self::NonFiniteGradient { place, .. } = &mut self {
            **place = found_at;
        }
        self
    }
}

/// Names what libtorch was doing when it failed.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, TchError> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Torch { what, source })
    }
}

impl<T> Context<T> for ferrotune_kernels::Result<T> {
    fn context(self, what: &'static str) -> Result<T> {
        use ferrotune_kernels::Error;
        self.map_err(|error| match error {
            Error::Torch(source) => source,
            other => TchError::Torch(other.to_string()),
        })
        .context(what)
    }
}
