#![doc = include_str!("../README.md")]

mod bleu;
mod bootstrap;
mod chrf;
mod compare;
mod error;
mod metric;
mod overlap;
mod perplexity;
mod predictions;
mod python;
mod report;
pub mod rouge;

pub use bootstrap::{Bootstrap, Estimate};
pub use compare::{Comparison, compare, compare_predictions};
pub use error::{BadLine, Error, Result};
pub use metric::{Metric, evaluate, evaluate_all};
pub use perplexity::perplexity;
pub use predictions::{Prediction, read_predictions};
pub use report::write_metrics;
