#![doc = include_str!("../README.md")]

mod arguments;
mod best;
mod callback;
mod checkpoint;
mod compute_metrics;
mod dataset;
mod error;
mod evaluation;
mod find_lr;
mod gradient;
mod model;
mod names;
mod nearest;
mod optimizer;
mod outcome;
mod reducer;
mod refusals;
mod reporter;
mod roll_back;
mod schedule;
mod state;
mod step;
mod trainer;
mod watch;

pub use arguments::{
    ForwardArguments, NOT_OFFERED, OLDER_NAMES, REPORTERS, ResumeFromCheckpoint, TrainPlan,
    TrainingArguments, chosen_reporters,
};
pub use best::restore as restore_parameters;
pub use callback::{Callback, EvaluationRecord, LogRecord, StepRecord, TOLD};
pub use checkpoint::{Checkpoint, Checkpointer, SavedRun};
pub use dataset::Dataset;
pub use error::{BoxError, Error, Place, Result};
pub use evaluation::{Evaluation, evaluate};
pub use find_lr::{RangeOutcome, RangePoint, RangeTest, find_lr};
pub use gradient::Gradients;
pub use model::TrainableModel;
pub use names::{IntervalStrategy, OptimizerName, SaveStrategy, SchedulerType};
pub use nearest::nearest;
pub use optimizer::{
    AdamW, AdamWOptions, LoraPlus, Optimizer, OptimizerState, ParameterGroup, Sgd, SgdOptions, decays,
};
pub use outcome::TrainOutcome;
pub use reducer::{GradientReducer, NoReduction};
pub use reporter::{
    CsvReporter, JsonlReporter, Reporter, Reporting, TensorBoardReporter, default_logging_dir,
};
pub use schedule::{PlateauState, Schedule, SchedulerKwarg, SchedulerKwargs};
pub use state::{DataPosition, LogEntry, RollBack, TrainerState};
pub use trainer::Trainer;
pub use watch::{
    Action, Alarm, DeadParameter, Finding, LearningRate, LossSpike, NonFinite, Observation, Overfitting,
    ParameterNorm, Plateau, StepSignals, WatchActions, Watcher, WatcherKind, Watchers,
};

pub use ferrotune_kernels::{Mode, RandomKey};
pub use tch;
