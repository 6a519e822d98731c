#![doc = include_str!("../README.md")]

mod bootstrap;
mod error;
mod metric;
mod overlap;
mod perplexity;
mod predictions;
mod report;
pub mod rouge;

pub use bootstrap::{Bootstrap, Estimate};
pub use error::{BadLine, Error, Result};
pub use metric::{Metric, evaluate, evaluate_all};
pub use perplexity::perplexity;
pub use predictions::{Prediction, read_predictions};
pub use report::write_metrics;
