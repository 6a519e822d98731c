//! Fused differentiable functions for LoRA fine-tuning on libtorch.

mod random;

pub use random::{Mode, RandomKey};
