//! The one error type of this crate.

use crate::ComputeDtype;

/// What can go wrong when a run is matched to a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
