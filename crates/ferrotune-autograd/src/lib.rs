#![doc = include_str!("../README.md")]

mod error;
mod function;
mod libtorch;
mod parallel;
#[allow(unsafe_code)] // the one place where Rust and the C++ shim meet
mod shim;

pub use error::{BoxedError, Error, Result};
pub use function::{BackwardContext, ForwardContext, Function, apply, apply_one, live_functions};
pub use libtorch::libtorch_version;
pub use parallel::parallel_for;
pub use tch;
