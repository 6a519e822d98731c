//! What a run measured: for people a table on the terminal and a page to send to a colleague, for programs
//! `metrics.json`.
//!
//! Everything here takes plain data ([`Report`], [`Metrics`]) and gives text; nothing is computed but what is shown.
//!
//! ```
//! use ferrotune::report::{Interval, Metrics, Report, render, table};
//!
//! let score = |value| [("rougeL", Interval { value, low: value - 1.0, high: value + 1.0 })];
//! let metrics = Metrics {
//!     before: Some(score(16.7).into_iter().collect()),
//!     after: Some(score(33.4).into_iter().collect()),
//!     ..Metrics::default()
//! };
//! println!("{}", table(&metrics));
//!
//! let report = Report { model: "SmolLM2".into(), data: "synopses".into(), metrics, ..Report::default() };
//! let html = render(&report);
//! assert!(html.contains("+16.7"));
//! ```

mod comparison;
mod curve;
mod examples;
mod facts;
mod headline;
mod html;
mod lengths;
mod metrics;
mod panels;
mod range_test;
mod scale;
mod scores;
mod series;
mod stages;
mod summary;
mod sweep;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod words;

use serde::{Deserialize, Serialize};

pub use html::render;
pub use lengths::Lengths;
pub use metrics::{
    DataMetrics, FileMetrics, GenerationMetrics, LoggedStep, Metrics, StageTime, TrainMetrics,
    ValidationMetrics, ValidationStep, WatcherMark,
};
pub use range_test::range_test_svg;
pub use scores::{Interval, Scores};
pub use summary::summary;
pub use sweep::{Objective, SweepAxis, SweepReport, TrialReport, render_sweep, sweep_table};
pub use table::table;
pub(crate) use text::{duration, visible};

/// What `report.html` shows. A part that is absent or empty has no section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The name of the model, as in `SmolLM2-135M-Instruct`.
    pub model: String,
    /// The name of the data.
    pub data: String,
    /// One sentence on how the adapter was trained, as in `LoRA r = 16 on all linear layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The numbers.
    pub metrics: Metrics,
    /// Every training step, for the curve; where there are none, those of `metrics.train` are drawn, which may be few.
    pub steps: Vec<LoggedStep>,
    /// Prompts with the answers before and after, in the order of the test file.
    pub outputs: Vec<Output>,
    /// Where all of the outputs are found, as in `predictions.jsonl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs_file: Option<String>,
    /// The data files, one entry each.
    pub splits: Vec<Split>,
    /// How long the training examples are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Lengths>,
    /// What was found in the training data before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight: Option<PreflightFacts>,
    /// The effective recipe, as TOML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Versions, machine, times: whatever helps to repeat the run, in order.
    pub environment: Vec<Fact>,
}

/// One test prompt and what the model made of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The prompt, without the marks of the chat template.
    pub prompt: String,
    /// The completion of the test file.
    pub reference: String,
    /// The answer before training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The answer after training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The score of `before` against `reference` by the first metric, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_score: Option<f64>,
    /// The score of `after` against `reference` by the first metric, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_score: Option<f64>,
}

/// A label and a value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub label: String,
    /// The value, ready to be read.
    pub value: String,
}

impl Fact {
    /// A label and a value.
    pub fn new(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self { label: label.into(), value: value.into() }
    }
}

/// One of the data files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Split {
    /// `train`, `validation` or `test`.
    pub name: String,
    /// The file.
    pub file: String,
    /// Examples that were used.
    pub examples: u64,
    /// Lines and examples that were left out: bad, refused by the chat template, or too long.
    pub left_out: u64,
    /// Tokens of prompts and completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Tokens that are learnt or scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_tokens: Option<u64>,
    /// Tokens of an example: the fewest, the median and the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_example: Option<[u64; 3]>,
    /// Target tokens of an example: the fewest, the median and the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_tokens_per_example: Option<[u64; 3]>,
}

/// What the check of the training data found before the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreflightFacts {
    /// Examples.
    pub rows: u64,
    /// Examples from which nothing is learnt.
    pub rows_without_target: u64,
    /// Examples longer than allowed.
    pub rows_cut: u64,
    /// Examples whose targets hold a token at which generation stops.
    pub rows_with_stop_target: u64,
    /// One example as the model sees it, with what is learnt between `⟦` and `⟧`.
    pub marked_example: String,
    /// Where that example stands, as `train.jsonl:1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marked_source: Option<String>,
}
