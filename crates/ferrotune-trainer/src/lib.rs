#![doc = include_str!("../README.md")]

mod adamw;
mod arguments;
mod callback;
mod dataset;
mod error;
mod evaluation;
mod gradient;
mod model;
mod reducer;
mod schedule;
mod trainer;

pub use adamw::{AdamW, AdamWOptions, decays};
pub use arguments::{TrainPlan, TrainingArguments};
pub use callback::{Callback, LogRecord, StepRecord};
pub use dataset::Dataset;
pub use error::{BoxError, Error, Place, Result};
pub use evaluation::{Evaluation, evaluate};
pub use gradient::Gradients;
pub use model::TrainableModel;
pub use reducer::{GradientReducer, NoReduction};
pub use schedule::{Schedule, SchedulerType};
pub use trainer::{TrainOutcome, Trainer};

pub use ferrotune_kernels::{Mode, RandomKey};
