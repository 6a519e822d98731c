#![doc = include_str!("../README.md")]

mod adamw;
mod arguments;
mod best;
mod callback;
mod checkpoint;
mod dataset;
mod error;
mod eval_strategy;
mod evaluation;
mod gradient;
mod model;
mod outcome;
mod reducer;
mod save_strategy;
mod schedule;
mod state;
mod step;
mod trainer;

pub use adamw::{AdamW, AdamWOptions, decays};
pub use arguments::{TrainPlan, TrainingArguments};
pub use callback::{Callback, EvaluationRecord, LogRecord, StepRecord};
pub use checkpoint::{Checkpoint, Checkpointer};
pub use dataset::Dataset;
pub use error::{BoxError, Error, Place, Result};
pub use eval_strategy::EvalStrategy;
pub use evaluation::{Evaluation, evaluate};
pub use gradient::Gradients;
pub use model::TrainableModel;
pub use outcome::TrainOutcome;
pub use reducer::{GradientReducer, NoReduction};
pub use save_strategy::SaveStrategy;
pub use schedule::{Schedule, SchedulerType};
pub use state::{DataPosition, LogEntry, TrainerState};
pub use trainer::Trainer;

pub use ferrotune_kernels::{Mode, RandomKey};
pub use tch;
