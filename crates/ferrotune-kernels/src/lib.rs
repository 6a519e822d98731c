//! Fused differentiable functions for LoRA fine-tuning on libtorch.
