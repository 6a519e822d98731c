//! Going back to a checkpoint from before a fault, and on from there with half the rate.

use ferrotune_precision::GradScaler;
use tch::Tensor;

use crate::error::Context;
use crate::gradient::non_finite;
use crate::{
    Error, Finding, LogEntry, OptimizerState, Result, RollBack, SaveStrategy, SavedRun, TrainableModel,
    Trainer, TrainerState, best,
};

/// How often a run goes back at most. An eighth of the rate does not help where the rate is not the cause.
const MOST: usize = 3;

impl<M: TrainableModel> Trainer<'_, M> {
    /// Goes back to the last good checkpoint from before `finding`, or to the start; if the same fault came again, further than the last time.
    /// What the run remembers is what it did then, but for the findings and how it went back.
    pub(crate) fn roll_back(&mut self, finding: Finding) -> Result<()> {
        let mut roll_backs = self.state.roll_backs.clone();
        if roll_backs.len() == MOST {
            let (roll_backs, learning_rate) = (roll_backs.len(), self.arguments.learning_rate);
            return Err(Error::RollBacksSpent { roll_backs, learning_rate, finding: Box::new(finding) });
        }
        let in_vain = roll_backs.last().filter(|last| finding.step <= last.from).map(|last| last.to);
        let before = in_vain.map_or(finding.since, |to| to.min(finding.since));
        let SavedRun { mut state, parameters, optimizer } = match self.last_good(before)? {
            Some(saved) => saved,
            None => self.beginning()?,
        };
        best::restore(self.optimizer.parameters(), &parameters)?;
        self.schedule = self.arguments.schedule(&self.plan)?;
        self.grad_scaler = self.grad_scaler.take().map(|_| GradScaler::default());
        roll_backs.push(RollBack { from: finding.step, to: state.global_step });
        state.roll_backs = roll_backs;
        state.findings = std::mem::take(&mut self.state.findings);
        self.resume(state, &optimizer)?;
        let state = self.state.clone();
        tracing::warn!(target: crate::TOLD, step = state.global_step, factor = state.learning_rate_factor(), "rolled back");
        self.notify("on_roll_back", |callback| callback.on_roll_back(&state))
    }

    /// The newest checkpoint with fewer than `before` steps and finite parameters. One that was taken because the run was left counts only where
    /// there is no other: the run that nobody left has none there, and must go the same way.
    fn last_good(&mut self, mut before: usize) -> Result<Option<SavedRun>> {
        let Some(checkpointer) = &mut self.checkpointer else { return Ok(None) };
        let mut left = None;
        loop {
            let saved = checkpointer
                .load_before(before)
                .map_err(|source| Error::Checkpointer { event: "load_before", source })?;
            let Some(saved) = saved.filter(|saved| saved.state.global_step < before) else { return Ok(left) };
            before = saved.state.global_step;
            if !non_finite(&saved.parameters)?.is_empty() {
                continue;
            }
            let is_due = match self.arguments.save_strategy {
                SaveStrategy::Best => saved.state.best_global_step == Some(before),
                _ => self.plan.saves_after(before),
            };
            if is_due {
                return Ok(Some(saved));
            }
            left.get_or_insert(saved);
        }
    }

    /// The run before its first step.
    fn beginning(&self) -> Result<SavedRun> {
        let parameters = match &self.start {
            Some(start) => best::copies(start)?,
            None => best::copies(self.optimizer.parameters())?,
        };
        let mut optimizer: OptimizerState = self.optimizer.state()?;
        optimizer.step = 0;
        for (_, tensor) in &mut optimizer.tensors {
            let zeros: Tensor = tensor.f_zeros_like().context("clearing the optimizer's state")?;
            *tensor = zeros;
        }
        let mut state = TrainerState::of(&self.plan);
        state.time_to_first_step = self.state.time_to_first_step;
        // The evaluation before the first step holds.
        let is_at_start =
            |entry: &&LogEntry| matches!(entry, LogEntry::Evaluation(record) if record.step == 0);
        state.log_history = self.state.log_history.iter().filter(is_at_start).cloned().collect();
        Ok(SavedRun { state, parameters, optimizer })
    }
}
