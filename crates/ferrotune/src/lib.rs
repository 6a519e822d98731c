#![doc = include_str!("../README.md")]

pub mod atomic;
mod checkpoint;
mod error;

pub mod job;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod sweep;

pub use error::{Error, Result};

pub use ferrotune_autograd as autograd;
pub use ferrotune_data as data;
pub use ferrotune_kernels as kernels;
pub use ferrotune_lora as lora;
pub use ferrotune_metrics as metrics;
pub use ferrotune_models as models;
pub use ferrotune_precision as precision;
pub use ferrotune_trainer as trainer;
pub use tch;

/// The examples of the workspace's own page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct WorkspaceReadme;
