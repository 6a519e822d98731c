#![doc = include_str!("../README.md")]

mod cpu_features;
mod device;
mod disk;
mod dtype;
mod error;
mod excerpt;
mod grad_scaler;
mod memory;

pub use cpu_features::CpuFeatures;
pub use device::parse_device;
pub use disk::{
    explain_write_error, file_size_limit, free_disk_bytes, irregular_file, readable_bytes,
    readable_bytes_beside, sync_directory,
};
pub use dtype::{ComputeDtype, DtypePolicy};
pub use error::{Error, Result};
pub use excerpt::{short_shape, short_text};
pub use grad_scaler::{GradScaler, GradScalerState};
pub use memory::{
    AvailableMemory, MemoryBound, available_memory, available_memory_mib, peak_rss_mib, resident_bytes,
    total_memory_mib,
};

pub use tch;
