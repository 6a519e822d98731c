#![doc = include_str!("../README.md")]

mod buffers;
mod checkpoint;
mod error;
mod function;
mod gradcheck;
mod in_place;
mod libtorch;
mod parallel;
mod same_training;
#[allow(unsafe_code)] // the one place where Rust and the C++ shim meet
mod shim;

pub use buffers::{kept_buffer_bytes, release_buffers, reuse_buffers, reuses_buffers};
pub use checkpoint::checkpoint;
pub use error::{BoxedError, Error, Result};
pub use function::{BackwardContext, ForwardContext, Function, apply, apply_one, live_functions};
pub use gradcheck::GradientCheck;
pub use in_place::mark_changed;
pub use libtorch::libtorch_version;
pub use parallel::parallel_for;
pub use same_training::{Step, Way, assert_same_training};
pub use tch;

/// The examples of the guide, run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/autograd.md")]
pub struct Guide;
