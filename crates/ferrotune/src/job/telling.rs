//! What the trainer's events tell the observer.

use super::{CausalLmTask, Observer, product_limit::ProductLimit};
use crate::{
    checkpoint::Saver,
    progress::{Step, Validated},
};
use ferrotune_precision::peak_rss_mib;
use ferrotune_trainer::{BoxError, Callback, EvaluationRecord, Finding, StepRecord};
use std::sync::{Mutex, PoisonError};

/// Hands the trainer's events to the observer.
pub(super) struct Training<'a> {
    pub observer: &'a mut dyn Observer,
    pub task: &'a CausalLmTask<'a>,
    pub limit: ProductLimit<'a>,
    pub total_steps: usize,
    pub saver: &'a Saver,
}

/// The trainer's callback.
pub(super) struct Tell<'a, 'b>(pub &'a Mutex<Training<'b>>);

impl Callback for Tell<'_, '_> {
    fn on_step_end(&mut self, record: &StepRecord) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let flops = training.task.take_flops();
        let gemm_share = training.limit.count(flops, record.seconds);
        let Training { observer, limit, total_steps, saver, .. } = &mut *training;
        observer.step(&Step {
            step: record.global_step,
            total_steps: *total_steps,
            loss: record.loss,
            learning_rate: record.learning_rate,
            grad_norm: record.grad_norm,
            tokens_per_s: record.tokens_per_s,
            gemm_share,
        });
        saver.take_warnings().iter().for_each(|warning| observer.note(warning));
        if let (1, Some(peak)) = (record.global_step, peak_rss_mib()) {
            observer.note(&format!("memory    {peak:.0} MiB at the peak so far, with the first step done"));
        }
        Ok(limit.measure()?)
    }

    fn on_finding(&mut self, finding: &Finding) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        training.observer.note(&format!("warning: {}, {finding}", finding.watcher));
        Ok(())
    }

    fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
        let mut training = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Training { observer, total_steps, .. } = &mut *training;
        observer.validated(&Validated {
            step: record.step,
            total_steps: *total_steps,
            loss: record.evaluation.loss,
            seconds: record.evaluation.seconds,
            evaluations_left: record.evaluations_left,
        });
        Ok(())
    }
}
