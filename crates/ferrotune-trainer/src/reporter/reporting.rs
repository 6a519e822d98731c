//! The callback that feeds reporters.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::{CsvReporter, JsonlReporter, Reporter, TensorBoardReporter};
use crate::error::BoxError;
use crate::watch::last_name;
use crate::{
    Callback, Error, EvaluationRecord, Finding, LogRecord, ParameterNorm, Result, TrainOutcome, TrainPlan,
    TrainerState, TrainingArguments,
};

/// Gives what a [`Trainer`](crate::Trainer) does to reporters, under the tags of transformers' `TensorBoardCallback`: `train/loss`,
/// `train/grad_norm`, `train/learning_rate`, `train/epoch`; `eval/loss`, `eval/runtime`, `eval/samples_per_second`; at the end
/// `train/train_runtime` and `train/train_loss`; and the arguments as a text, `args`. Beyond those: `eval/perplexity`, histograms of the
/// parameters' norms by their last names (`norms/lora_B.weight`), and what a watcher finds as a text, `watch/loss_spike`.
///
/// A run that goes on from a checkpoint, or went back to one, has each step once: what was told of later ones does not count. The
/// reporters are finished when this is dropped, so that more can be told after the last step.
///
/// A reporter that cannot write is left out from then on, and said: training goes on.
///
/// ```
/// use ferrotune_trainer::{Reporting, TrainingArguments};
/// let arguments: TrainingArguments = serde_json::from_str(r#"{"report_to": ["tensorboard", "jsonl"]}"#)?;
/// let reporting = Reporting::new(&arguments, "runs/today".as_ref())?;
/// assert_eq!(reporting.names().collect::<Vec<_>>(), ["tensorboard", "jsonl"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reporting {
    reporters: Vec<Box<dyn Reporter>>,
    hparams: Map<String, Value>,
    /// What ended those that are left out.
    failures: Vec<String>,
    /// Whether the run has come to its end.
    is_over: bool,
}

impl Reporting {
    /// The reporters of `report_to`, which write into `logging_dir` once the run begins.
    ///
    /// # Errors
    /// [`Error::UnknownName`] for a name that is not known.
    pub fn new(arguments: &TrainingArguments, logging_dir: &Path) -> Result<Self> {
        let hparams = match serde_json::to_value(arguments) {
            Ok(Value::Object(hparams)) => hparams,
            _ => Map::new(),
        };
        let mut reporting = Self { reporters: Vec::new(), hparams, failures: Vec::new(), is_over: false };
        for name in &arguments.report_to {
            match name.as_str() {
                "tensorboard" => reporting.add(TensorBoardReporter::new(logging_dir)),
                "csv" => reporting.add(CsvReporter::new(logging_dir)),
                "jsonl" => reporting.add(JsonlReporter::new(logging_dir)),
                _ => return Err(Error::unknown_name("report_to", name, &crate::arguments::REPORTERS)),
            }
        }
        Ok(reporting)
    }

    /// Adds a reporter of one's own.
    #[must_use]
    pub fn with_reporter(mut self, reporter: impl Reporter + 'static) -> Self {
        self.add(reporter);
        self
    }

    /// Adds to the arguments that the logs hold, in place of those with the same names.
    #[must_use]
    pub fn with_hparams(mut self, hparams: Map<String, Value>) -> Self {
        self.hparams.extend(hparams);
        self
    }

    fn add(&mut self, reporter: impl Reporter + 'static) {
        self.reporters.push(Box::new(reporter));
    }

    /// The reporters that write.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.reporters.iter().map(|reporter| reporter.name())
    }

    /// A text of one's own, such as an answer of the model, at a step.
    pub fn text(&mut self, step: usize, tag: &str, text: &str) {
        self.tell(|reporter| {
            reporter.text(step, tag, text)?;
            reporter.flush()
        });
    }

    /// Which reporters could not write and get nothing more, and why, since this was last asked.
    pub fn take_failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failures)
    }

    /// Tells every reporter; one that fails is left out.
    fn tell(&mut self, tell: impl Fn(&mut dyn Reporter) -> io::Result<()>) {
        let failures = &mut self.failures;
        self.reporters.retain_mut(|reporter| match tell(reporter.as_mut()) {
            Ok(()) => true,
            Err(error) => {
                let name = reporter.name();
                tracing::warn!(target: crate::TOLD, reporter = name, %error, "a reporter cannot write, and gets nothing more; training goes on");
                failures.push(format!("{name} cannot write its log, {error}; it gets nothing more"));
                false
            }
        });
    }

    fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) {
        self.tell(|reporter| {
            scalars.iter().try_for_each(|(tag, value)| reporter.scalar(step, tag, *value))?;
            reporter.flush()
        });
    }
}

impl Callback for Reporting {
    fn name(&self) -> &str {
        "reporting"
    }

    fn arguments(&self) -> &[&str] {
        &["report_to", "run_name"]
    }

    fn on_train_begin(&mut self, _: &TrainPlan, state: &TrainerState) -> std::result::Result<(), BoxError> {
        let hparams = self.hparams.clone();
        let args = serde_json::to_string_pretty(&hparams).unwrap_or_default();
        self.tell(|reporter| {
            reporter.start(&hparams)?;
            match state.global_step {
                0 => reporter.text(0, "args", &args)?,
                step => reporter.rewind(step)?,
            }
            reporter.flush()
        });
        Ok(())
    }

    fn on_roll_back(&mut self, state: &TrainerState) -> std::result::Result<(), BoxError> {
        self.tell(|reporter| {
            reporter.rewind(state.global_step)?;
            reporter.flush()
        });
        Ok(())
    }

    fn on_log(&mut self, record: &LogRecord) -> std::result::Result<(), BoxError> {
        let scalars = [
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/learning_rate", record.learning_rate),
            ("train/epoch", record.epoch),
        ];
        self.scalars(record.step, &scalars);
        Ok(())
    }

    fn on_evaluate(&mut self, record: &EvaluationRecord) -> std::result::Result<(), BoxError> {
        let evaluation = &record.evaluation;
        let scalars = [
            ("eval/loss", evaluation.loss),
            ("eval/perplexity", evaluation.perplexity()),
            ("eval/runtime", evaluation.seconds),
            (
                "eval/samples_per_second",
                evaluation.examples as f64 / evaluation.seconds.max(f64::MIN_POSITIVE),
            ),
            ("train/epoch", record.epoch),
        ];
        self.scalars(record.step, &scalars);
        for (name, &value) in &evaluation.metrics {
            self.scalars(record.step, &[(&format!("eval/{name}"), value)]);
        }
        Ok(())
    }

    fn on_norms(&mut self, step: usize, norms: &[ParameterNorm]) -> std::result::Result<(), BoxError> {
        let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for norm in norms {
            groups.entry(last_name(&norm.name)).or_default().push(norm.norm);
        }
        self.tell(|reporter| {
            for (name, values) in &groups {
                reporter.histogram(step, &format!("norms/{name}"), values)?;
            }
            reporter.flush()
        });
        Ok(())
    }

    fn on_finding(&mut self, finding: &Finding) -> std::result::Result<(), BoxError> {
        self.text(finding.step, &format!("watch/{}", finding.watcher), &finding.to_string());
        Ok(())
    }

    fn on_train_end(&mut self, outcome: &TrainOutcome) -> std::result::Result<(), BoxError> {
        let scalars = [("train/train_runtime", outcome.seconds), ("train/train_loss", outcome.train_loss)];
        self.scalars(outcome.global_step, &scalars);
        self.is_over = true;
        Ok(())
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        if self.is_over {
            self.tell(|reporter| reporter.finish());
        }
    }
}
