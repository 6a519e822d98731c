#![doc = include_str!("../README.md")]

mod cpu_features;
mod device;
mod dtype;
mod error;
mod memory;

pub use cpu_features::CpuFeatures;
pub use device::parse_device;
pub use dtype::{ComputeDtype, DtypePolicy};
pub use error::{Error, Result};
pub use memory::{available_memory_mib, peak_rss_mib, total_memory_mib};
