//! What the trainer's events tell the observer.

use super::{CausalLmTask, Observer, product_limit::ProductLimit};
use crate::{
    checkpoint::Saver,
    progress::{Evaluating, RolledBack, Step, Validated},
};
use ferrotune_precision::{peak_rss_mib, resident_bytes};
use ferrotune_trainer::{BoxError, Callback, EvaluationRecord, Finding, StepRecord, TrainPlan, TrainerState};
use std::sync::{Mutex, PoisonError};

/// Hands the trainer's events to the observer.
pub(super) struct Training<'a> {
    pub observer: &'a mut dyn Observer,
    pub task: &'a CausalLmTask<'a>,
    pub limit: ProductLimit<'a>,
    pub plan: TrainPlan,
    pub saver: &'a Saver,
    /// Whether the memory that a step takes was told.
    pub told_memory: bool,
}

/// The trainer's callback.
pub(super) struct Tell<'a, 'b>(pub &'a Mutex<Training<'b>>);

impl Callback for Tell<'_, '_> {
    fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let work = training.task.take_work();
        let gemm_share = training.limit.count(&work, record.seconds);
        let Training { observer, limit, plan, saver, told_memory, .. } = &mut *training;
        observer.step(&Step {
            step: record.global_step,
            total_steps: plan.max_steps,
            loss: record.loss,
            learning_rate: record.learning_rate,
            grad_norm: record.grad_norm,
            tokens_per_s: record.tokens_per_s,
            gemm_share,
            epoch: record.epoch,
            total_epochs: plan.epochs,
            is_logged: plan.logs_after(record.global_step),
            memory_mib: resident_bytes().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        });
        saver.take_warnings().iter().for_each(|warning| observer.note(warning));
        if let (false, Some(peak)) = (std::mem::replace(told_memory, true), peak_rss_mib()) {
            observer.note(&format!("memory    {peak:.0} MiB at the peak so far, with the first step done"));
        }
        Ok(limit.measure()?)
    }

    fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        training.observer.finding(finding);
        Ok(())
    }

    fn on_roll_back(&mut self, state: &TrainerState) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Training { observer, plan, .. } = &mut *training;
        let learning_rate_factor = state.learning_rate_factor();
        observer.rolled_back(&RolledBack {
            step: state.global_step,
            total_steps: plan.max_steps,
            learning_rate_factor,
        });
        Ok(())
    }

    fn on_evaluation_progress(&mut self, done: usize, examples: usize) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        training.observer.evaluating(&Evaluating { examples: done, total_examples: examples });
        Ok(())
    }

    fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Training { observer, plan, .. } = &mut *training;
        observer.validated(&Validated {
            step: record.step,
            total_steps: plan.max_steps,
            loss: record.evaluation.loss,
            seconds: record.evaluation.seconds,
            metrics: record.evaluation.metrics.clone(),
            evaluations_left: record.evaluations_left,
        });
        Ok(())
    }
}
