//! LoRA layers, injection by module name and PEFT adapter files for tch.

mod config;
mod error;
mod init;
mod pattern;
pub mod peft;
mod target;

pub use config::{Bias, ExcludeModules, InitLoraWeights, LoraConfig, TargetModules, TaskType};
pub use error::{Error, Result};
pub use init::init_a;
pub use peft::{AdapterFile, load_adapter, save_adapter};
pub use target::{ModuleInfo, effective_target_modules, matches, select_targets};
