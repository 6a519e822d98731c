#![doc = include_str!("../README.md")]

mod checkpoint;
mod config;
mod decoder;
mod error;
mod generate;
pub mod gguf;
mod identify;
pub mod import;
mod layer;
mod mapped_file;
mod neftune;
mod options;
mod reader;
mod regular_file;
mod rope;
mod size;
mod work;

pub use checkpoint::Checkpoint;
pub use config::{Family, ModelConfig, RopeScaling};
pub use decoder::{CausalLm, PackedInputs};
pub use error::{Error, Result};
pub use generate::{Generated, GenerationConfig, PASS_TOKENS, generate};
pub use options::ForwardOptions;
pub use size::ModelSize;
pub use tch;
pub use work::{ProductRates, ProductWork, UsualBatch};
