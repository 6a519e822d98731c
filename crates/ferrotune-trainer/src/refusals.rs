//! What a run is refused for before its first step, beside values that [`TrainingArguments::validate`] refuses.
//!
//! [`TrainingArguments::validate`]: crate::TrainingArguments::validate

use crate::compute_metrics::ComputeMetrics;
use crate::{Error, Evaluation, IntervalStrategy, Result, ResumeFromCheckpoint, TrainableModel, Trainer};

impl<M: TrainableModel> Trainer<'_, M> {
    /// Refuses arguments that nothing here carries out.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_evaluation()?;
        self.check_carried_out()
    }

    /// An evaluation needs data, and a metric that is measured.
    fn check_evaluation(&self) -> Result<()> {
        if self.validation.is_none()
            && (self.arguments.eval_strategy != IntervalStrategy::No || self.arguments.eval_on_start)
        {
            let (field, found) = match self.arguments.eval_strategy {
                IntervalStrategy::No => ("eval_on_start", "true".into()),
                strategy => ("eval_strategy", strategy.to_string()),
            };
            let expected = "a validation set (`Trainer::with_validation`) to evaluate";
            return Err(Error::InvalidArgument { field, found, expected });
        }
        self.compute_metrics.as_ref().map_or(Ok(()), ComputeMetrics::check_names)?;
        let own = self.compute_metrics.iter().flat_map(|metrics| &metrics.names).map(String::as_str);
        let known: Vec<&str> = Evaluation::METRICS.into_iter().chain(own).collect();
        if !known.contains(&self.arguments.metric_name()) {
            let found = self.arguments.metric_name();
            return Err(Error::unknown_name("metric_for_best_model", found, &known));
        }
        Ok(())
    }

    /// Refuses arguments that others carry out, and that nobody does.
    fn check_carried_out(&self) -> Result<()> {
        let refuse = |field, found, expected| Err(Error::InvalidArgument { field, found, expected });
        let reports = |name| self.callbacks.iter().any(|callback| callback.arguments().contains(&name));
        let arguments = &self.arguments;
        let expected =
            "a callback that writes the log (`Trainer::with_callback` with a `Reporting`), or no value";
        if !arguments.report_to.is_empty() && !reports("report_to") {
            return refuse("report_to", format!("{:?}", arguments.report_to), expected);
        }
        if let Some(name) = arguments.run_name.as_ref().filter(|_| !reports("run_name")) {
            return refuse("run_name", format!("{name:?}"), expected);
        }
        if self.checkpointer.is_some() {
            return Ok(());
        }
        let expected =
            "a `Checkpointer` that writes and reads checkpoints (`Trainer::with_checkpointer`), or no value";
        if let Some(path) = &arguments.output_dir {
            return refuse("output_dir", path.display().to_string(), expected);
        }
        if let Some(limit) = arguments.save_total_limit {
            return refuse("save_total_limit", limit.to_string(), expected);
        }
        if arguments.save_only_model {
            return refuse("save_only_model", "true".into(), expected);
        }
        match &arguments.resume_from_checkpoint {
            ResumeFromCheckpoint::Newest(false) => Ok(()),
            from => refuse("resume_from_checkpoint", format!("{from:?}"), expected),
        }
    }
}
