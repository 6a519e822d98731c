//! The trials, one after the other on one model in memory.

use super::{Sweep, Trial};
use crate::{
    Error, Result,
    atomic::write_atomically,
    job::{Observer, RunLock, refuse_another, run_on},
    report::{Metrics, SweepAxis, SweepReport, TrialReport, render_sweep},
};
use std::{
    fs,
    sync::{Arc, atomic::AtomicBool},
};

/// What a sweep leaves in memory; its files are in the recipe's `output_dir`.
#[derive(Debug)]
#[non_exhaustive]
pub struct SweepOutcome {
    /// The results, as in `sweep.json`.
    pub report: SweepReport,
    /// Whether it was stopped before its end: the same sweep goes on where it was left.
    pub cancelled: bool,
}

impl Sweep {
    /// Runs every trial that is not done yet.
    ///
    /// A trial that fails of itself, as by a loss that is not finite, is recorded as failed and the next one is run; so is one that fails
    /// when the sweep is run again. What would fail all of them, as a full disk, ends the sweep.
    ///
    /// # Errors
    /// [`Error::OutputBusy`] if another sweep is writing to `output_dir`; [`Error::OutputExists`] if the folder of a trial holds
    /// another run; those of [`run`](crate::job::run).
    pub fn run(&self, observer: &mut dyn Observer, cancellation: Arc<AtomicBool>) -> Result<SweepOutcome> {
        let _lock = RunLock::take(&self.recipe.output_dir)?;
        self.trials.iter().try_for_each(|trial| refuse_another(&trial.recipe))?;
        if self.recipe.data.validation.is_none() {
            observer.note(
                "warning: without `data.validation` the trials are judged on `data.test`, whose scores then flatter the best of them",
            );
        }
        if let Some(metric) = &self.recipe.training.metric_for_best_model
            && metric != "eval_loss"
        {
            let judged = &self.objective.name;
            observer.note(&format!("note: {metric} decides within a trial, and {judged} between trials"));
        }
        let mut report = self.report()?;
        let mut base = None;
        for (index, trial) in self.trials.iter().enumerate() {
            observer.stage(&format!("trial {} of {}: {}", index + 1, self.trials.len(), trial.name));
            let result = run_on(&mut base, &trial.recipe, false, observer, cancellation.clone());
            if let Some(base) = &mut base {
                base.assistant.unload_adapter()?;
            }
            let cancelled = match result {
                Ok(outcome) => {
                    if !outcome.cancelled {
                        self.done(trial, &mut report.trials[index])?;
                    }
                    outcome.cancelled
                }
                Err(error) if is_of_one_trial(&error) => {
                    observer.note(&format!("warning: {} failed: {error}", trial.name));
                    report.trials[index].error = Some(error.to_string());
                    false
                }
                Err(error) => return Err(error),
            };
            self.write(&report)?;
            if cancelled {
                return Ok(SweepOutcome { report, cancelled });
            }
        }
        Ok(SweepOutcome { report, cancelled: false })
    }

    /// The report before any trial.
    fn report(&self) -> Result<SweepReport> {
        let axes = self.axes.iter().map(|axis| SweepAxis {
            key: axis.key.clone(),
            values: axis.values.clone(),
            is_seed: axis.is_seed(),
        });
        let trials = self.trials.iter().map(|trial| TrialReport {
            name: trial.name.clone(),
            values: trial.values.clone(),
            ..TrialReport::default()
        });
        Ok(SweepReport {
            objective: self.objective.clone(),
            axes: axes.collect(),
            trials: trials.collect(),
            recipe: self.recipe.to_toml()?,
        })
    }

    /// Reads what a trial has measured, now or when it was run before.
    fn done(&self, trial: &Trial, report: &mut TrialReport) -> Result<()> {
        let path = trial.recipe.output_dir.join("metrics.json");
        let text = fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let metrics: Metrics =
            serde_json::from_str(&text).map_err(|source| Error::Read { path, source: source.into() })?;
        report.seconds = metrics.stages.iter().map(|stage| stage.seconds).sum();
        if let Some(validation) = metrics.validation {
            // Of the adapter that was kept.
            let kept = validation.best_step.filter(|_| trial.recipe.training.load_best_model_at_end);
            let of_kept = validation.history.iter().find(|at| Some(at.step) == kept).map(|at| at.loss);
            report.validation_loss = Some(of_kept.unwrap_or(validation.loss));
            report.history = validation.history;
        }
        report.after = metrics.after;
        report.objective = self.objective.of(report);
        Ok(())
    }

    fn write(&self, report: &SweepReport) -> Result<()> {
        let path = self.recipe.output_dir.join("sweep.json");
        let json = serde_json::to_string_pretty(report)
            .map_err(|source| Error::Write { path: path.clone(), source: source.into() })?;
        write_atomically(path, json + "\n")?;
        write_atomically(self.recipe.output_dir.join("sweep.html"), render_sweep(report))
    }
}

/// Whether the next trial may well succeed.
fn is_of_one_trial(error: &Error) -> bool {
    match error {
        Error::NotSaved { source, .. } => is_of_one_trial(source),
        error => matches!(error, Error::Trainer(_) | Error::NotEnoughMemory { .. } | Error::Lora(_)),
    }
}
