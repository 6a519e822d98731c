#![doc = include_str!("../README.md")]

mod adamw;
mod arguments;
mod callback;
mod dataset;
mod error;
mod eval_strategy;
mod evaluation;
mod gradient;
mod model;
mod outcome;
mod reducer;
mod schedule;
mod trainer;

pub use adamw::{AdamW, AdamWOptions, decays};
pub use arguments::{TrainPlan, TrainingArguments};
pub use callback::{Callback, EvaluationRecord, LogRecord, StepRecord};
pub use dataset::Dataset;
pub use error::{BoxError, Error, Place, Result};
pub use eval_strategy::EvalStrategy;
pub use evaluation::{Evaluation, evaluate};
pub use gradient::Gradients;
pub use model::TrainableModel;
pub use outcome::TrainOutcome;
pub use reducer::{GradientReducer, NoReduction};
pub use schedule::{Schedule, SchedulerType};
pub use trainer::Trainer;

pub use ferrotune_kernels::{Mode, RandomKey};
pub use tch;
