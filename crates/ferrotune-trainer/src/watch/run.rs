//! The watchers of a run: what they find is said, and done.

use ferrotune_kernels::squared_norms;

use super::{Action, Observation, ParameterNorm, WatcherKind};
use crate::error::{Context, Listed, SHOWN};
use crate::{Error, LogRecord, Result, StepRecord, TrainableModel, Trainer};

impl<M: TrainableModel> Trainer<'_, M> {
    /// Shows an observation to the watchers; the gravest of what is to be done about it. A spike is of the `examples` of its step.
    pub(crate) fn watch(
        &mut self,
        observation: Observation<'_>,
        examples: &[String],
    ) -> Result<Option<Action>> {
        let mut gravest = None;
        for mut finding in self.state.watchers.observe(observation, &self.watch_actions) {
            if finding.watcher == WatcherKind::LossSpike && !examples.is_empty() {
                finding.what.push_str(&format!(", examples: {}", Listed(examples, SHOWN)));
            }
            tracing::warn!(target: crate::TOLD, watcher = %finding.watcher, action = ?finding.action, "{finding}");
            self.notify("on_finding", |callback| callback.on_finding(&finding))?;
            gravest = gravest.max(Some(finding.action));
            if matches!(finding.action, Action::RollBack | Action::Stop) {
                self.ended_by.get_or_insert_with(|| finding.clone());
            }
            self.state.findings.push(finding);
        }
        Ok(gravest)
    }

    /// A step; `None` if a watcher wants it left out or the run ended. A step that is left out counts as done, and leaves the
    /// learning-rate schedule where it is.
    pub(crate) fn step_watched(
        &mut self,
        epoch: usize,
        epochs_done: f64,
        group: &[&[usize]],
    ) -> Result<Option<StepRecord>> {
        let done = match self.step(epoch, epochs_done, group) {
            Ok(done) => done,
            Err(error @ (Error::NonFiniteLoss { .. } | Error::NonFiniteGradient { .. })) => {
                let step = self.state.global_step + 1;
                match self.watch(Observation::NonFinite { step, error: &error }, &[])? {
                    Some(Action::Skip | Action::RollBack) => None,
                    _ => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        if done.is_none() && self.ended_by.is_none() {
            let state = &mut self.state;
            state.global_step += 1;
            state.skipped_steps += 1;
            state.epoch = epochs_done;
            state.data_position = state.data_position.advanced(group.len(), self.plan.batches_per_epoch);
        }
        Ok(done)
    }

    /// Shows the norms of the parameters to whoever wants to see them, at a step that is logged.
    pub(crate) fn watch_norms(&mut self, record: &LogRecord) -> Result<()> {
        let norms = self.parameter_norms()?;
        self.notify("on_norms", |callback| callback.on_norms(record.step, &norms))?;
        self.watch(Observation::Norms { step: record.step, norms: &norms }, &[])?;
        Ok(())
    }

    fn parameter_norms(&self) -> Result<Vec<ParameterNorm>> {
        let _guard = tch::no_grad_guard();
        let parameters = self.optimizer.parameters();
        let tensors: Vec<_> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let squares = squared_norms(&tensors).context("the norms of the parameters")?;
        let norm = |((name, tensor), square): (&(String, tch::Tensor), f64)| ParameterNorm {
            name: name.clone(),
            elements: tensor.numel(),
            norm: square.sqrt(),
        };
        Ok(parameters.iter().zip(squares).map(norm).collect())
    }
}
