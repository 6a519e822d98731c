//! The one error type of this crate.

use tch::TchError;

use crate::ComputeDtype;

/// What can go wrong when a run is matched to a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The dtype has no known name.
    #[error("unknown dtype {found:?}: expected one of {known}")]
    UnknownDtype {
        /// What was given.
        found: String,
        /// The names that are understood.
        known: String,
    },
    /// The dtype is known, but no run can compute in it.
    #[error("compute_dtype {dtype} is not offered yet: {reason}; use compute_dtype = \"f32\"")]
    DtypeNotOffered {
        /// What was asked for.
        dtype: ComputeDtype,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The device has no known name.
    #[error("unknown device {found:?}: expected \"cpu\", \"cuda\" or \"cuda:N\" with N counted from 0")]
    UnknownDevice {
        /// What was given.
        found: String,
    },
    /// The device is known, but this machine or this libtorch does not have it.
    #[error("device {found:?} is not available: {reason}; use device = \"cpu\"")]
    DeviceNotAvailable {
        /// What was asked for.
        found: String,
        /// What is missing.
        reason: String,
    },
    /// Two 16-bit dtypes are asked for at once.
    #[error("bf16 = true and fp16 = true exclude each other: choose one of them")]
    TwoComputeDtypes,
    /// A number that no gradient scaler can use.
    #[error("the gradient scaler's {field} is {found}: expected {expected}")]
    InvalidGradScaler {
        /// The number's name.
        field: &'static str,
        /// Its value.
        found: f64,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A gradient to be unscaled is in `f16`.
    #[error(
        "gradient {index} of the group is f16: expected f32 or bf16; train f32 parameters and cast them to f16 in the forward pass"
    )]
    HalfGradient {
        /// Its place in the group, counted from 0.
        index: usize,
    },
    /// A step ends that no gradient was checked in.
    #[error(
        "the gradient scaler's update came before any unscale of this step: unscale each group of gradients first"
    )]
    NoInfCheck,
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

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Names what libtorch was doing when it failed.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, TchError> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Torch { what, source })
    }
}
