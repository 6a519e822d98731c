//! What turns gradients into an update.

mod adamw;

pub use adamw::{AdamW, AdamWOptions, decays};
