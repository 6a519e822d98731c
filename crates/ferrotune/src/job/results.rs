//! What a run measured, put together for its files.

use super::{
    PackedDataset,
    evaluation::{Pass, TestSet},
    output::outputs,
};
use crate::{
    Result,
    recipe::{Recipe, TargetModules},
    report::{
        Lengths, LoggedStep, Metrics, PreflightFacts, Report, Split, TrainMetrics, ValidationMetrics,
        ValidationStep, WatcherMark,
    },
};
use ferrotune_data::{Preflight, Tokenized};
use ferrotune_trainer::{LogRecord, TrainOutcome, TrainPlan};
use std::path::Path;

/// `validation` of `metrics.json`.
pub(super) fn validation_metrics(outcome: &TrainOutcome) -> Option<ValidationMetrics> {
    let last = outcome.validation.as_ref()?;
    let history: Vec<ValidationStep> = outcome
        .evaluations
        .iter()
        .map(|record| ValidationStep {
            step: record.step as u64,
            loss: record.evaluation.loss,
            scores: record.evaluation.metrics.clone(),
        })
        .collect();
    Some(ValidationMetrics {
        loss: last.loss,
        best_step: outcome.best_global_step.map(|step| step as u64),
        loss_before: history.iter().find(|at| at.step == 0).map(|at| at.loss),
        history,
        examples: last.examples as u64,
        target_tokens: last.target_tokens as u64,
    })
}

/// `train` of `metrics.json`.
pub(super) fn train_metrics(
    outcome: &TrainOutcome,
    plan: &TrainPlan,
    data: &PackedDataset,
    gemm_share: Option<f64>,
) -> TrainMetrics {
    let step_examples = plan.per_device_train_batch_size * plan.gradient_accumulation_steps;
    // Fewer than there are where the last batch is dropped.
    let epoch_examples = plan.examples.min(plan.batches_per_epoch * plan.per_device_train_batch_size);
    let whole_epochs = outcome.global_step / plan.steps_per_epoch.max(1);
    let rest = (outcome.global_step % plan.steps_per_epoch.max(1)) * step_examples;
    let targets: usize = data.rows().iter().map(Tokenized::target_tokens).sum();
    let examples = whole_epochs * epoch_examples + rest;
    let epochs = whole_epochs as f64 + rest as f64 / epoch_examples.max(1) as f64;
    let mean_targets = targets as f64 / plan.examples.max(1) as f64;
    TrainMetrics {
        seconds: outcome.seconds,
        steps: outcome.global_step as u64,
        epochs,
        examples: examples as u64,
        real_tokens: outcome.real_tokens as u64,
        target_tokens: (mean_targets * examples as f64).round() as u64,
        real_tokens_per_s: outcome.tokens_per_s(),
        gemm_share,
        loss: logged_steps(&outcome.history),
        findings: outcome
            .findings
            .iter()
            .map(|finding| WatcherMark {
                step: finding.step as u64,
                watcher: finding.watcher.to_string(),
                action: finding.action.name().to_owned(),
                what: format!("{}; {}", finding.what, finding.advice),
            })
            .collect(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// What people call a model by its path.
pub(super) fn model_name(path: &Path) -> String {
    match file_name(path) {
        generic if generic == "hf" => path.parent().map_or(generic, file_name),
        own => own,
    }
}

/// The log of the trainer as the report has it.
pub(super) fn logged_steps<'a>(history: impl IntoIterator<Item = &'a LogRecord>) -> Vec<LoggedStep> {
    let logged = |record: &LogRecord| LoggedStep {
        step: record.step as u64,
        loss: record.loss,
        learning_rate: record.learning_rate,
        grad_norm: record.grad_norm,
    };
    history.into_iter().map(logged).collect()
}

/// The page, before it is drawn, without what the run itself knows: its steps and where it was made.
pub(super) fn report(
    recipe: &Recipe,
    metrics: Metrics,
    preflight: &Preflight,
    (splits, train): (Vec<Split>, &PackedDataset),
    test: Option<&TestSet>,
    [before, after]: [Option<&Pass>; 2],
) -> Result<Report> {
    let modules = match &recipe.lora.target_modules {
        TargetModules::AllLinear => "all linear layers".to_owned(),
        TargetModules::Named(names) => names.join(", "),
    };
    let origin = match &recipe.lora.init_from {
        Some(path) => {
            format!(", from the adapter {}, with which all before training was measured", path.display())
        }
        None => String::new(),
    };
    let lengths: Vec<usize> = train.rows().iter().map(|row| row.input_ids.len()).collect();
    Ok(Report {
        model: model_name(&recipe.model.path),
        data: file_name(&recipe.data.train),
        method: Some(format!(
            "LoRA r = {}, alpha = {} on {modules}{origin}",
            recipe.lora.r, recipe.lora.lora_alpha
        )),
        metrics,
        outputs: test.map_or(Ok(vec![]), |test| outputs(test, before, after))?,
        outputs_file: test.map(|_| "predictions.jsonl".to_owned()),
        splits,
        lengths: Some(Lengths::of(&lengths)),
        preflight: Some(PreflightFacts {
            rows: preflight.rows as u64,
            rows_without_target: preflight.rows_without_target.len() as u64,
            rows_cut: preflight.rows_cut.len() as u64,
            rows_with_stop_target: preflight.rows_with_stop_target as u64,
            marked_example: preflight.marked_example.clone(),
            marked_source: preflight.marked_source.as_ref().map(ToString::to_string),
        }),
        recipe: Some(recipe.to_toml()?),
        ..Report::default()
    })
}
