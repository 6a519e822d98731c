//! Reader of GGUF files, the single-file model format of llama.cpp: metadata, tensor list and dequantisation to f32.
//!
//! A file is mapped into memory, its header is checked as a whole when it is opened, and tensors are decoded on request.
//! Versions 2 and 3 are read, little-endian. A damaged or hostile file is an error, never a panic: every count, length and
//! offset is checked against the bytes that the file really has before anything is allocated for it.
//!
//! ```no_run
//! use ferrotune_models::gguf::GgufFile;
//!
//! let file = GgufFile::open("model.gguf".as_ref())?;
//! println!("{:?}", file.get("general.architecture"));
//! for tensor in file.tensors() {
//!     println!("{} {:?} {}", tensor.name(), tensor.shape(), tensor.ggml_type());
//! }
//! let embedding: Vec<f32> = file.dequantize("token_embd.weight")?;
//! # Ok::<(), ferrotune_models::Error>(())
//! ```
//!
//! # References
//! The format is described in `docs/gguf.md` of the ggml project; block layouts follow `gguf.quants` of its Python package,
//! to the last bit.

mod cursor;
mod dequantize;
mod file;
mod ggml_type;
mod k_quants;
mod value;

pub use dequantize::dequantize;
pub(crate) use dequantize::dequantize_blocks;
pub use file::{GgufFile, TensorInfo};
pub use ggml_type::GgmlType;
pub use value::{Array, Value};
