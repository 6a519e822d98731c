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
    TrainingArguments,
};

/// Gives what a [`Trainer`](crate::Trainer) does to reporters, under the tags of transformers' `TensorBoardCallback`: `train/loss`,
/// `train/grad_norm`, `train/learning_rate`, `train/epoch`; `eval/loss`, `eval/runtime`, `eval/samples_per_second`; at the end
/// `train/train_runtime` and `train/train_loss`; and the arguments as a text, `args`. Beyond those: `eval/perplexity`, histograms of the
/// parameters' norms by their last names (`norms/lora_B.weight`), and what a watcher finds as a text, `watch/loss_spike`.
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
}

impl Reporting {
    /// The reporters of `report_to`, which write into `logging_dir` once the run begins.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not known.
    pub fn new(arguments: &TrainingArguments, logging_dir: &Path) -> Result<Self> {
        let hparams = match serde_json::to_value(arguments) {
            Ok(Value::Object(hparams)) => hparams,
            _ => Map::new(),
        };
        let mut reporting = Self { reporters: Vec::new(), hparams };
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

    fn add(&mut self, reporter: impl Reporter + 'static) {
        self.reporters.push(Box::new(reporter));
    }

    /// The reporters that write.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.reporters.iter().map(|reporter| reporter.name())
    }

    /// Tells every reporter; one that fails is left out.
    fn tell(&mut self, tell: impl Fn(&mut dyn Reporter) -> io::Result<()>) {
        self.reporters.retain_mut(|reporter| match tell(reporter.as_mut()) {
            Ok(()) => true,
            Err(error) => {
                let name = reporter.name();
                tracing::warn!(reporter = name, %error, "a reporter cannot write, and gets nothing more; training goes on");
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

    fn on_train_begin(&mut self, _plan: &TrainPlan) -> std::result::Result<(), BoxError> {
        let hparams = self.hparams.clone();
        let args = serde_json::to_string_pretty(&hparams).unwrap_or_default();
        self.tell(|reporter| {
            reporter.start(&hparams)?;
            reporter.text(0, "args", &args)?;
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
        Ok(())
    }

    fn on_norms(&mut self, step: usize, norms: &[ParameterNorm]) -> std::result::Result<(), BoxError> {
        let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for norm in norms {
            groups.entry(last_name(&norm.name)).or_default().push(norm.norm);
        }
        self.tell(|reporter| {
            let mut groups = groups.iter();
            groups.try_for_each(|(name, values)| reporter.histogram(step, &format!("norms/{name}"), values))
        });
        Ok(())
    }

    fn on_finding(&mut self, finding: &Finding) -> std::result::Result<(), BoxError> {
        let tag = format!("watch/{}", finding.watcher);
        self.tell(|reporter| reporter.text(finding.step, &tag, &finding.to_string()));
        Ok(())
    }

    fn on_train_end(&mut self, outcome: &TrainOutcome) -> std::result::Result<(), BoxError> {
        let scalars = [("train/train_runtime", outcome.seconds), ("train/train_loss", outcome.train_loss)];
        self.scalars(outcome.global_step, &scalars);
        self.tell(|reporter| reporter.finish());
        Ok(())
    }
}
