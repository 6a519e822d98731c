//! LoRA fine-tuning of Llama and Mistral models on libtorch: data in, an evaluated PEFT adapter out.
//!
//! - [`recipe`]: one TOML file describes a whole run, and is checked before anything expensive starts;
//! - [`report`]: what a run measured, as `metrics.json`, as a table for the terminal and as a self-contained
//!   `report.html`;
//! - [`progress`]: the progress bar, or one JSON object a line for other programs;
//! - [`atomic`]: files that are there whole or not at all.

pub mod atomic;
mod error;

pub mod job;
pub mod progress;
pub mod recipe;
pub mod report;

pub use error::{Error, Result};

pub use ferrotune_data as data;
pub use ferrotune_kernels as kernels;
pub use ferrotune_lora as lora;
pub use ferrotune_metrics as metrics;
pub use ferrotune_models as models;
pub use ferrotune_precision as precision;
pub use ferrotune_trainer as trainer;
pub use tch;
