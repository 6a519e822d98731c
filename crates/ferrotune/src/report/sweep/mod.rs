//! What a sweep measured: for people a table and a page, for programs `sweep.json`.

mod page;
mod plot;
mod table;

pub use page::render_sweep;
pub use table::sweep_table;

use super::{Scores, ValidationStep};
use serde::{Deserialize, Serialize};

/// Everything that a sweep measured. The names are an interface, as those of [`Metrics`](super::Metrics).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SweepReport {
    /// What the trials are judged by.
    pub objective: Objective,
    /// The keys that differ between trials.
    pub axes: Vec<SweepAxis>,
    /// The trials, in the order in which they are run.
    pub trials: Vec<TrialReport>,
    /// The recipe that the trials have in common, as TOML.
    pub recipe: String,
}

/// The number by which trials are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Objective {
    /// Its place in `metrics.json`, as in `validation.loss` or `after.rougeL`.
    pub name: String,
    /// Whether more of it is better.
    pub greater_is_better: bool,
}

/// A key and the values that were tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SweepAxis {
    /// The key, as in `training.learning_rate`.
    pub key: String,
    /// The values as they were written.
    pub values: Vec<String>,
    /// Whether it is a seed: trials that differ in nothing else are repeats of one setting.
    pub is_seed: bool,
}

/// One trial.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialReport {
    /// The name of its folder.
    pub name: String,
    /// The value of each axis.
    pub values: Vec<String>,
    /// What it is judged by, once it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// The validation loss of the adapter that was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Every measurement of the validation loss.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ValidationStep>,
    /// Scores on the test data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Scores>,
    /// Seconds of the run.
    pub seconds: f64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Trials that differ in nothing but their seeds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting<'a> {
    /// The values of the axes that are no seeds.
    pub(super) values: Vec<&'a str>,
    pub(super) trials: Vec<&'a TrialReport>,
}

impl Objective {
    /// Its value for a trial.
    pub(crate) fn of(&self, trial: &TrialReport) -> Option<f64> {
        match self.name.strip_prefix("after.") {
            Some(metric) => trial.after.as_ref()?.get(metric).map(|score| score.value),
            None => trial.validation_loss,
        }
    }
}

impl SweepReport {
    /// The settings, the best first; those without a result come last.
    pub(super) fn settings(&self) -> Vec<Setting<'_>> {
        let mut settings: Vec<Setting<'_>> = Vec::new();
        for trial in &self.trials {
            let values = self.axes.iter().zip(&trial.values).filter(|(axis, _)| !axis.is_seed);
            let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
            match settings.iter_mut().find(|setting| setting.values == values) {
                Some(setting) => setting.trials.push(trial),
                None => settings.push(Setting { values, trials: vec![trial] }),
            }
        }
        // Less is better.
        let key = |setting: &Setting<'_>| match setting.mean() {
            Some(mean) if self.objective.greater_is_better => -mean,
            Some(mean) => mean,
            None => f64::INFINITY,
        };
        settings.sort_by(|a, b| key(a).total_cmp(&key(b)));
        settings
    }

    /// The axes that are no seeds.
    pub(super) fn varied(&self) -> impl Iterator<Item = &SweepAxis> {
        self.axes.iter().filter(|axis| !axis.is_seed)
    }
}

impl Setting<'_> {
    fn objectives(&self) -> impl Iterator<Item = f64> {
        self.trials.iter().filter_map(|trial| trial.objective).filter(|value| value.is_finite())
    }

    /// The mean over the seeds that are done.
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    pub(super) fn mean(&self) -> Option<f64> {
        let count = self.objectives().count();
        (count > 0).then(|| self.objectives().sum::<f64>() / count as f64)
    }

    /// The standard deviation over the seeds, from two on.
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    pub(super) fn deviation(&self) -> Option<f64> {
        let (mean, count) = (self.mean()?, self.objectives().count());
        let squares: f64 = self.objectives().map(|value| (value - mean).powi(2)).sum();
        (count > 1).then(|| (squares / (count - 1) as f64).sqrt())
    }

    /// The mean as text, with what the seeds differ by.
    pub(super) fn result(&self) -> Option<String> {
        let mean = self.mean()?;
        Some(match self.deviation() {
            Some(deviation) => format!("{mean:.4} \u{b1} {deviation:.4}"),
            None => format!("{mean:.4}"),
        })
    }

    /// Why there is no result, or not the whole of it.
    pub(super) fn missing(&self) -> Option<String> {
        let failed = self.trials.iter().find_map(|trial| trial.error.as_deref());
        let waiting = self.trials.iter().any(|trial| trial.objective.is_none() && trial.error.is_none());
        match failed {
            Some(error) => Some(format!("failed: {}", error.lines().next().unwrap_or_default())),
            None => waiting.then(|| "not done yet".to_owned()),
        }
    }

    /// Seconds of all trials together.
    pub(super) fn seconds(&self) -> f64 {
        self.trials.iter().map(|trial| trial.seconds).sum()
    }
}

/// A sweep over two rates and two ranks with two seeds each, whose last setting failed.
#[cfg(test)]
pub(super) fn example() -> SweepReport {
    let axis = |key: &str, values: &[&str]| SweepAxis {
        key: key.to_owned(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
        is_seed: key == "seed",
    };
    let axes = vec![
        axis("training.learning_rate", &["1e-4", "1e-3"]),
        axis("lora.r", &["8", "16"]),
        axis("seed", &["1", "2"]),
    ];
    let trial = |values: [&str; 3], loss: Option<f64>| TrialReport {
        name: format!("learning_rate={},r={},seed={}", values[0], values[1], values[2]),
        values: values.map(str::to_owned).to_vec(),
        objective: loss,
        validation_loss: loss,
        history: loss
            .map(|loss| [(0, 4.0), (10, loss)].map(|(step, loss)| ValidationStep::new(step, loss)).to_vec())
            .unwrap_or_default(),
        seconds: 30.0,
        error: loss.is_none().then(|| "the loss is NaN\nin step 3".to_owned()),
        ..TrialReport::default()
    };
    SweepReport {
        objective: Objective { name: "validation.loss".to_owned(), greater_is_better: false },
        axes,
        trials: vec![
            trial(["1e-4", "8", "1"], Some(2.0)),
            trial(["1e-4", "8", "2"], Some(2.5)),
            trial(["1e-4", "16", "1"], Some(1.5)),
            trial(["1e-4", "16", "2"], Some(1.25)),
            trial(["1e-3", "8", "1"], Some(3.0)),
            TrialReport { error: None, ..trial(["1e-3", "8", "2"], None) },
            trial(["1e-3", "16", "1"], None),
            trial(["1e-3", "16", "2"], None),
        ],
        recipe: "output_dir = \"runs/sweep\"\n".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_one_setting_and_the_best_setting_is_first() {
        let mut report = example();
        let settings = report.settings();
        let values: Vec<String> = settings.iter().map(|setting| setting.values.join(" ")).collect();
        assert_eq!(values, ["1e-4 16", "1e-4 8", "1e-3 8", "1e-3 16"]);
        assert_eq!(settings[0].result().unwrap(), "1.3750 \u{b1} 0.1768");
        assert_eq!(settings[2].result().unwrap(), "3.0000");
        assert_eq!(settings[2].missing().unwrap(), "not done yet");
        assert_eq!(settings[3].missing().unwrap(), "failed: the loss is NaN");
        report.objective.greater_is_better = true;
        let settings = report.settings();
        assert_eq!(settings[0].values, ["1e-3", "8"]);
        assert_eq!(settings[3].values, ["1e-3", "16"]);
    }

    #[test]
    fn the_objective_is_found_by_its_name() {
        let mut trial = TrialReport { validation_loss: Some(2.0), ..TrialReport::default() };
        let interval = super::super::Interval { value: 30.0, low: 29.0, high: 31.0 };
        trial.after = Some([("rougeL", interval)].into_iter().collect());
        let of = |name: &str| Objective { name: name.to_owned(), greater_is_better: false }.of(&trial);
        assert_eq!(of("validation.loss"), Some(2.0));
        assert_eq!(of("after.rougeL"), Some(30.0));
        assert_eq!(of("after.bleu"), None);
    }
}
