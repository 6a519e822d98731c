//! Differentiable functions written in Rust for tch (libtorch).
