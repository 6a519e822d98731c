#![doc = include_str!("../README.md")]

mod adamw;
mod attention;
mod cached_attention;
mod cpu;
mod dropout;
mod error;
mod filled_rows;
#[allow(unsafe_code)]
mod filled_tensor;
mod frozen;
mod gradients;
mod head_loss;
mod kind;
mod layout;
mod lora_linear;
mod matmul;
mod prologue;
mod random;
mod rms_norm;
mod rotary;
mod swiglu;

pub use adamw::{AdamWParameter, AdamWStep, adamw_step};
pub use attention::{AttentionOptions, causal_attention, rotary_attention};
pub use cached_attention::CachedAttention;
pub use error::{Error, Result};
pub use filled_tensor::filled_tensor;
pub use frozen::{FrozenWeight, frozen_linear};
pub use gradients::{add_all, squared_norms};
pub use head_loss::{CHUNK_LOGITS, CrossEntropyOptions, linear_cross_entropy, linear_cross_entropy_with};
pub use layout::{Segment, SequenceLayout};
pub use lora_linear::{GroupMember, LowRank, grouped_lora_linear, lora_linear};
pub use matmul::matmul;
pub use prologue::Prologue;
pub use random::{Mode, RandomKey};
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rotary::{rotary, rotary_};
pub use swiglu::swiglu;

pub use tch;
