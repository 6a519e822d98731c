//! The whole job over the crates: a recipe in; an adapter, numbers and a report out.
//!
//! [`run`] is what the `finetune` example does, and [`find_lr`] what it does with `--find-lr`. Its parts serve programs that need less: [`Assistant`] loads a model with its
//! tokenizer, answers prompts and scores completions; [`PackedDataset`] and [`CausalLmTask`] connect data and model to the trainer.

mod advice;
mod arguments;
mod assistant;
mod base;
mod data;
mod environment;
mod evaluation;
mod find_lr;
mod init_from;
mod memory;
mod observers;
mod output;
mod own_files;
mod product_limit;
mod results;
mod resume;
mod run;
mod run_lock;
mod run_log;
mod task;
mod telling;

pub(crate) use arguments::training_arguments;
pub use assistant::{Answer, Assistant, Prompts, Score, default_cache_dir};
pub use find_lr::{RANGE_TEST_FILES, find_lr};
pub use memory::MemoryNeed;
pub use observers::{ForPeople, ForPrograms};
pub(crate) use resume::refuse_another;
pub(crate) use run::run_on;
pub use run::{Observer, RunOutcome, run};
pub(crate) use run_lock::RunLock;
pub use task::{CausalLmTask, PackedDataset, packed_inputs};
