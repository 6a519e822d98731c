//! Llama and Mistral decoders on libtorch: Hugging Face checkpoints, GGUF import, loss and generation.

mod error;
pub mod gguf;
pub mod import;
mod mapped_file;

pub use error::{Error, Result};
