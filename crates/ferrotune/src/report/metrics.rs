//! `metrics.json`: the numbers of a run, for other programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::scores::Scores;
use crate::{Error, Result};

/// Everything that a run measured. What was not measured is absent from the JSON.
///
/// The names are an interface: scripts read `before.rougeL`, `after.rougeL`, `train.seconds`,
/// `train.real_tokens_per_s`, `train.loss[].loss`, `validation.loss`, `generation.new_tokens_per_s`,
/// `peak_rss_mib` and the rest by them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Scores of the model before training, on the test data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Scores>,
    /// Scores of the model after training, on the same data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Scores>,
    /// `after` minus `before`, with the interval of the difference if it was measured example by example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Scores>,
    /// The training loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainMetrics>,
    /// The loss on the validation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationMetrics>,
    /// The data files: what was used and what was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<DataMetrics>,
    /// The last pass of generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationMetrics>,
    /// The most memory that the process held, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_mib: Option<f64>,
    /// The numbers in the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_parameters: Option<u64>,
    /// The numbers in the base model, without the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_parameters: Option<u64>,
    /// Seconds from the start of the run to the end of the first optimizer step, but for the evaluation
    /// before training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_step_s: Option<f64>,
    /// What the time went to, in order; the writing of the results, which this file is part of, is not in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageTime>,
    /// What this CPU can do, as in `["avx2", "fma"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<Vec<String>>,
}

/// Seconds of a stage of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageTime {
    /// Its name, as in the events of the run.
    pub name: String,
    /// Seconds.
    pub seconds: f64,
}

/// `train`: the loop alone, without loading, validation and generation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainMetrics {
    /// Seconds.
    pub seconds: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Passes over the training data.
    pub epochs: f64,
    /// Examples trained on, each counted once a pass.
    pub examples: u64,
    /// Tokens of prompts and completions; there is no padding, and a shared prefix counts for each example.
    pub real_tokens: u64,
    /// Tokens that were learnt, those of the completions; of a part of an epoch as many as on average.
    pub target_tokens: u64,
    /// `real_tokens / seconds`.
    pub real_tokens_per_s: f64,
    /// Share of the steps' time that their matrix products take where nothing comes between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gemm_share: Option<f64>,
    /// What was logged, step by step.
    pub loss: Vec<LoggedStep>,
    /// What the watchers found, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<WatcherMark>,
}

/// A fault that a watcher found during training.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatcherMark {
    /// The optimizer step.
    pub step: u64,
    /// The watcher, as `loss_spike`.
    pub watcher: String,
    /// What was done about it: `say`, `skip`, `roll_back` or `stop`.
    pub action: String,
    /// What was seen, and what helps.
    pub what: String,
}

/// One logged step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggedStep {
    /// The optimizer step, from 1.
    pub step: u64,
    /// The mean negative log-likelihood of a target token, over the steps since the last logged one.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// The learning rate of the step.
    #[serde(deserialize_with = "number_or_nan")]
    pub learning_rate: f64,
    /// The norm of the gradient before clipping.
    #[serde(deserialize_with = "number_or_nan")]
    pub grad_norm: f64,
}

/// JSON has no NaN: it is written as `null`.
fn number_or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// `validation`: the mean negative log-likelihood of a target token of the validation data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationMetrics {
    /// After the last step.
    pub loss: f64,
    /// Before the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_before: Option<f64>,
    /// Every measurement in order, those before the first step and after the last one included.
    pub history: Vec<ValidationStep>,
    /// Optimizer steps before the evaluation that was the best by `metric_for_best_model`, where evaluations are judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// Examples.
    pub examples: u64,
    /// Target tokens.
    pub target_tokens: u64,
}

/// `data`: what was used of each file, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataMetrics {
    /// The examples that were trained on.
    pub train: FileMetrics,
    /// Those of the validation loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<FileMetrics>,
    /// Those whose prompts were answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<FileMetrics>,
}

/// What was used of a data file, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileMetrics {
    /// Examples that were used.
    pub examples: u64,
    /// Bad lines, and examples that the chat template refused: left out with `data.on_error = "skip"`.
    pub skipped: u64,
    /// Examples longer than `data.max_length`.
    pub too_long: u64,
    /// How many of these were cut, by `data.truncation`.
    pub cut: u64,
    /// How many of these were left out.
    pub left_out: u64,
    /// Target tokens that were lost with what was cut or left out for its length.
    pub target_tokens_lost: u64,
}

/// The validation after some step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationStep {
    /// Optimizer steps done.
    pub step: u64,
    /// The loss.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// The scores of the answers to the prompts, by metric, where these were answered.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
}

impl ValidationStep {
    /// A validation of the loss alone.
    pub fn new(step: u64, loss: f64) -> Self {
        Self { step, loss, ..Self::default() }
    }
}

/// `generation`: the last pass over the test prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationMetrics {
    /// Prompts that were answered.
    pub prompts: u64,
    /// Most tokens that an answer may have.
    pub max_new_tokens: u64,
    /// Answers that were cut off there.
    pub answers_cut: u64,
    /// Tokens of the answers, end tokens not counted.
    pub new_tokens: u64,
    /// Seconds, with the reading of the prompts.
    pub seconds: f64,
    /// `new_tokens / seconds`.
    pub new_tokens_per_s: f64,
}

impl Metrics {
    /// The text of `metrics.json`, indented.
    ///
    /// # Errors
    /// [`Error::Write`], which no value of this type should cause.
    pub fn to_json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self);
        let json =
            json.map_err(|source| Error::Write { path: "metrics.json".into(), source: source.into() })?;
        Ok(json + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Interval;
    use super::*;
    use serde_json::{Value, json};

    fn whole() -> Metrics {
        let scores = |value: f64| {
            ["rouge1", "rougeL"]
                .into_iter()
                .map(|name| (name, Interval { value, low: value - 1.0, high: value + 1.5 }))
                .collect::<Scores>()
        };
        Metrics {
            before: Some(scores(16.5)),
            after: Some(scores(33.25)),
            change: Some(scores(16.75)),
            train: Some(TrainMetrics {
                seconds: 600.5,
                steps: 80,
                epochs: 1.0,
                examples: 640,
                real_tokens: 100_000,
                target_tokens: 9_000,
                real_tokens_per_s: 166.5,
                gemm_share: Some(0.875),
                loss: vec![
                    LoggedStep { step: 1, loss: 3.5, learning_rate: 2.5e-4, grad_norm: 1.5 },
                    LoggedStep { step: 2, loss: f64::NAN, learning_rate: 5e-4, grad_norm: f64::INFINITY },
                ],
                findings: vec![WatcherMark {
                    step: 2,
                    watcher: "non_finite".into(),
                    action: "skip".into(),
                    what: "the loss is NaN".into(),
                }],
            }),
            validation: Some(ValidationMetrics {
                loss: 2.25,
                loss_before: Some(3.5),
                history: vec![
                    ValidationStep::new(0, 3.5),
                    ValidationStep {
                        scores: [("rougeL".to_owned(), 31.5)].into(),
                        ..ValidationStep::new(80, 2.25)
                    },
                ],
                best_step: Some(80),
                examples: 100,
                target_tokens: 1_000,
            }),
            data: Some(DataMetrics {
                train: FileMetrics { examples: 640, skipped: 3, ..FileMetrics::default() },
                ..DataMetrics::default()
            }),
            generation: Some(GenerationMetrics {
                prompts: 300,
                max_new_tokens: 32,
                answers_cut: 12,
                new_tokens: 6_000,
                seconds: 100.0,
                new_tokens_per_s: 60.0,
            }),
            peak_rss_mib: Some(2_900.5),
            trainable_parameters: Some(4_884_480),
            total_parameters: Some(139_400_000),
            time_to_first_step_s: Some(9.5),
            stages: vec![StageTime { name: "training".to_owned(), seconds: 600.5 }],
            cpu_features: Some(vec!["avx2".to_owned(), "fma".to_owned()]),
        }
    }

    #[test]
    fn keys_are_where_scripts_look_for_them() {
        let json: Value = serde_json::from_str(&whole().to_json().unwrap()).unwrap();
        for (path, expected) in [
            ("/before/rougeL", json!(16.5)),
            ("/before/rougeL_low", json!(15.5)),
            ("/before/rougeL_high", json!(18.0)),
            ("/before/rouge1", json!(16.5)),
            ("/after/rougeL", json!(33.25)),
            ("/after/rougeL_low", json!(32.25)),
            ("/after/rougeL_high", json!(34.75)),
            ("/train/seconds", json!(600.5)),
            ("/train/real_tokens", json!(100_000)),
            ("/train/real_tokens_per_s", json!(166.5)),
            ("/train/gemm_share", json!(0.875)),
            ("/train/loss/0", json!({"step": 1, "loss": 3.5, "learning_rate": 2.5e-4, "grad_norm": 1.5})),
            ("/train/loss/1/loss", Value::Null),
            ("/train/loss/1/grad_norm", Value::Null),
            ("/validation/loss", json!(2.25)),
            ("/data/train/skipped", json!(3)),
            ("/data/train/target_tokens_lost", json!(0)),
            ("/validation/loss_before", json!(3.5)),
            (
                "/validation/history",
                json!([{"step": 0, "loss": 3.5}, {"step": 80, "loss": 2.25, "scores": {"rougeL": 31.5}}]),
            ),
            ("/generation/max_new_tokens", json!(32)),
            ("/generation/answers_cut", json!(12)),
            ("/generation/new_tokens_per_s", json!(60.0)),
            ("/peak_rss_mib", json!(2900.5)),
            ("/trainable_parameters", json!(4_884_480)),
            ("/time_to_first_step_s", json!(9.5)),
            ("/stages", json!([{"name": "training", "seconds": 600.5}])),
            ("/cpu_features", json!(["avx2", "fma"])),
        ] {
            assert_eq!(json.pointer(path), Some(&expected), "{path}");
        }
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        assert_eq!(Metrics::default().to_json().unwrap(), "{}\n");
        let metrics = Metrics { train: Some(TrainMetrics::default()), ..Metrics::default() };
        let json: Value = serde_json::from_str(&metrics.to_json().unwrap()).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["train"]);
    }

    #[test]
    fn is_read_back() {
        let mut metrics = whole();
        let again: Metrics = serde_json::from_str(&metrics.to_json().unwrap()).unwrap();
        let step = again.train.as_ref().unwrap().loss[1];
        assert!(step.loss.is_nan() && step.grad_norm.is_nan());
        metrics.train.as_mut().unwrap().loss.truncate(1);
        let again: Metrics = serde_json::from_str(&metrics.to_json().unwrap()).unwrap();
        assert_eq!(again, metrics);
    }
}
