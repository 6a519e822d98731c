#![doc = include_str!("../README.md")]

mod adapter;
mod config;
mod error;
mod init;
mod layer;
mod pattern;
pub mod peft;
mod target;

pub use adapter::{Adaptable, Adapter, inject, insert, load, merge, module_infos, unload};
pub use config::{Bias, ExcludeModules, InitLoraWeights, LoraConfig, TargetModules, TaskType};
pub use error::{Error, Result};
pub use init::init_a;
pub use layer::{LoraLinear, LoraWeights};
pub use peft::{AdapterFile, load_adapter, load_config, save_adapter};
pub use target::{ModuleInfo, effective_target_modules, matches, select_targets};

pub use ferrotune_kernels::{Mode, Prologue, RandomKey, SequenceLayout};
pub use tch;
