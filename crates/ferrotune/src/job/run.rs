//! The job: data, pre-flight, evaluation, training, evaluation, report.

use super::{
    Assistant, CausalLmTask, PackedDataset, Prompts,
    advice::few_steps,
    arguments::{lora_config, training_arguments},
    data::{Data, DataFiles},
    default_cache_dir,
    environment::environment,
    evaluation::TestSet,
    memory::MemoryNeed,
    observers::Recorder,
    output::OutputDirectory,
    product_limit::ProductLimit,
    results::{report, train_metrics, validation_metrics},
    resume,
    telling::{Tell, Training},
};
use crate::{
    Error, Result,
    checkpoint::{self, Saved, Saver, Writer},
    progress::{Generating, Step, Validated},
    recipe::{Recipe, ResumeFromCheckpoint},
    report::Metrics,
};
use ferrotune_kernels::RandomKey;
use ferrotune_lora::inject;
use ferrotune_metrics::Metric;
use ferrotune_precision::{
    ComputeDtype, CpuFeatures, DtypePolicy, parse_device, peak_rss_mib, resident_bytes,
};
use ferrotune_trainer::Trainer;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Instant, SystemTime},
};
use tch::Device;

/// Hears how a run goes on. Every method does nothing unless it is given a body.
#[expect(
    unused_variables,
    reason = "the defaults do nothing, and their parameters have the names that the docs use"
)]
pub trait Observer {
    /// A new part of the work begins: a few words.
    fn stage(&mut self, name: &str) {}

    /// Something that the user should read: warnings, the pre-flight.
    fn note(&mut self, text: &str) {}

    /// An optimizer step is done.
    fn step(&mut self, step: &Step) {}

    /// The validation loss was measured.
    fn validated(&mut self, validated: &Validated) {}

    /// A token was generated.
    fn generating(&mut self, generating: &Generating) {}

    /// Whether the run should stop at the next safe place.
    fn cancelled(&self) -> bool {
        false
    }
}

/// What a run leaves in memory; its files are in the recipe's `output_dir`.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RunOutcome {
    /// All numbers, as in `metrics.json`.
    pub metrics: Metrics,
    /// Whether the run was stopped before its end: a checkpoint was written, or the adapter and the recipe if training was over.
    pub cancelled: bool,
    /// Whether the run had come to its end before: nothing was done.
    pub finished_before: bool,
    /// The newest checkpoint, from which the run goes on.
    pub checkpoint: Option<PathBuf>,
}

/// Runs a recipe from its data to its report.
///
/// Everything that can be known to be wrong is said before the model is loaded or the first step is made. The number of threads is
/// libtorch's, for the whole process: the caller sets it (`tch::set_num_threads`) before anything is computed.
/// A run that goes on from a checkpoint is refused where recipe, data or model have changed, unless `accept_changes`.
/// `cancellation` is the flag that [`Observer::cancelled`] reads, if the caller has one: the training loop looks at it between
/// micro-batches.
///
/// # Errors
/// Those of every part, with file, line, field or tensor; [`Error::is_bad_input`](crate::Error::is_bad_input) tells whether the user's input is at fault.
pub fn run(
    recipe: &Recipe,
    accept_changes: bool,
    observer: &mut dyn Observer,
    cancellation: Arc<AtomicBool>,
) -> Result<RunOutcome> {
    let (start, started) = (Instant::now(), SystemTime::now());
    let mut observer = Recorder::new(observer);
    let observer = &mut observer;
    recipe.validate()?;
    recipe.check_paths(None)?;
    let device = parse_device(&recipe.runtime.device)?;
    let policy = DtypePolicy::for_compute(recipe.runtime.compute_dtype.parse::<ComputeDtype>()?)?;
    let metrics: Vec<Metric> =
        recipe.evaluation.metrics.iter().map(|name| name.parse()).collect::<std::result::Result<_, _>>()?;
    let arguments = training_arguments(recipe)?;
    arguments.validate()?;
    let resumes = recipe.training.resume_from_checkpoint != ResumeFromCheckpoint::Newest(false);
    let directory = if resumes {
        OutputDirectory::reopen(&recipe.output_dir)?
    } else {
        OutputDirectory::prepare(&recipe.output_dir, recipe.overwrite_output_dir)?
    };
    if resumes && resume::is_finished(recipe) {
        observer.note(&format!("{} holds this run, and it is done", recipe.output_dir.display()));
        return Ok(RunOutcome { finished_before: true, ..RunOutcome::default() });
    }
    let saved = if resumes { resume::choose(recipe, observer)? } else { None };
    directory.check_inputs(recipe)?;
    for warning in recipe.warnings() {
        observer.note(&format!("warning: {warning}"));
    }

    observer.stage("reading data");
    let files = DataFiles::read(recipe, observer)?;

    let inputs = match &saved {
        Some(saved) => resume::check(saved, recipe, accept_changes, observer)?,
        None => Vec::new(),
    };
    let cancelled = || Ok(RunOutcome { cancelled: true, ..RunOutcome::default() });
    if observer.cancelled() {
        return cancelled();
    }
    observer.stage("loading model");
    let mut assistant = Assistant::load(&recipe.model.path, device, policy, &default_cache_dir())?;
    if observer.cancelled() {
        return cancelled();
    }
    let Data { train: rows, validation: validation_rows, test, preflight, metrics: data_metrics, splits } =
        files.prepare(recipe, &assistant, observer)?;
    let plan = arguments.plan(rows.len())?;
    few_steps(&plan, &recipe.training).iter().for_each(|note| observer.note(note));
    let test = test.map(|Prompts { examples, prompt_ids: prompts, .. }| {
        let generation = &recipe.generation;
        let (max_new_tokens, batch_size) = (generation.max_new_tokens, generation.batch_size);
        TestSet { examples, prompts, metrics, max_new_tokens, batch_size }
    });
    let config = lora_config(recipe, &assistant.directory);
    let key = RandomKey::from_seed(recipe.seed).fold_name("lora");
    let adapter = inject(&mut assistant.model, "default", 0, &config, key)?;

    let adapter_bytes = (adapter.parameter_count() * size_of::<f32>()) as u64;
    let texts = test.as_ref().map_or(0, TestSet::text_bytes);
    directory.check_room(adapter_bytes + texts, adapter_bytes.max(texts))?;

    let data_seed = recipe.data_seed.unwrap_or(recipe.seed);
    let train_set = PackedDataset::new(rows, data_seed);
    if device == Device::Cpu {
        let remedy =
            "lower `per_device_train_batch_size` or `max_length`, choose a smaller model, or free memory";
        let parameters = adapter.parameter_count() as u64;
        let batch_size = recipe.training.per_device_train_batch_size;
        let epochs = plan.max_steps.div_ceil(plan.steps_per_epoch.max(1));
        let need =
            MemoryNeed::of_training(assistant.model.config(), parameters, &train_set, batch_size, epochs);
        match need.check("training", remedy)? {
            Some(warning) => observer.note(&format!("warning: {warning}")),
            None => observer.note(&need.peak(resident_bytes().unwrap_or(0))),
        }
    }

    let evaluate = |assistant: &Assistant, label: &str, wanted: bool, observer: &mut dyn Observer| match &test
    {
        Some(test) if wanted => {
            observer.stage(label);
            test.run(assistant, observer)
        }
        _ => Ok(None),
    };
    let evaluation_start = Instant::now();
    let before = evaluate(&assistant, "answers before training", recipe.evaluation.before, observer)?;
    let evaluation_seconds = evaluation_start.elapsed().as_secs_f64();
    if observer.cancelled() {
        return cancelled();
    }

    observer.stage("training");
    let validation_set = validation_rows.map(|rows| PackedDataset::new(rows, data_seed));
    let saver = Saver::start(
        Writer {
            output_dir: recipe.output_dir.clone(),
            config: adapter.config().clone(),
            recipe: recipe.clone(),
            save_total_limit: recipe.training.save_total_limit,
            inputs,
            replaced: match &saved {
                Some(_) => Vec::new(),
                None => checkpoint::list(&recipe.output_dir).into_iter().map(|(_, path)| path).collect(),
            },
        },
        saved.as_ref().map(|saved| saved.path.clone()),
    )?;
    let begun = start.elapsed().as_secs_f64() - evaluation_seconds;
    let (outcome, gemm_share) = {
        if let Some(saved) = &saved {
            resume::restore(saved, &adapter)?;
        }
        let task = CausalLmTask::new(&assistant.model, &adapter)
            .with_forward_arguments(arguments.forward_arguments());
        let shared = Mutex::new(Training {
            observer: &mut *observer,
            task: &task,
            // The rate depends little on the number of rows; that of a usual micro-batch is as good as each batch's own.
            limit: ProductLimit::new(
                &assistant.model,
                train_set.mean_tokens(plan.per_device_train_batch_size),
            ),
            total_steps: plan.max_steps,
            saver: &saver,
        });
        let mut trainer = Trainer::new(&task, arguments, &train_set)?
            .with_cancellation(cancellation)
            .with_callback(Tell(&shared));
        if let Some(validation_set) = &validation_set {
            trainer = trainer.with_validation(validation_set);
        }
        if recipe.training.save_strategy != "no" {
            trainer = trainer.with_checkpointer(saver.checkpointer(&adapter));
        }
        if let Some(Saved { state, optimizer, .. }) = &saved {
            trainer.resume(state.clone(), optimizer)?;
        }
        let outcome = trainer.train()?;
        drop(trainer);
        let training = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        (outcome, training.limit.share_of_all())
    };
    let written = saver.finish();
    written.unsaid.iter().for_each(|warning| observer.note(warning));
    if outcome.cancelled {
        return Ok(RunOutcome { cancelled: true, checkpoint: written.left()?, ..RunOutcome::default() });
    }
    // The training is not lost whatever happens from here on.
    directory.save_trained(&adapter, &recipe.to_toml()?)?;
    assistant.adapter = Some(adapter);
    let finish = || -> Result<Option<Metrics>> {
        let after = evaluate(&assistant, "answers after training", recipe.evaluation.after, observer)?;
        if observer.cancelled() {
            return Ok(None);
        }

        observer.stage("writing results");
        let change = match (&test, &before, &after) {
            (Some(test), Some(before), Some(after)) => Some(test.change(before, after)?),
            _ => None,
        };
        let metrics = Metrics {
            before: before.as_ref().map(|pass| pass.scores.clone()),
            after: after.as_ref().map(|pass| pass.scores.clone()),
            change,
            train: Some(train_metrics(&outcome, &plan, &train_set, gemm_share)),
            validation: validation_metrics(&outcome),
            generation: after.as_ref().or(before.as_ref()).map(|pass| pass.generation.clone()),
            peak_rss_mib: peak_rss_mib(),
            trainable_parameters: assistant.adapter.as_ref().map(|adapter| adapter.parameter_count() as u64),
            total_parameters: Some(assistant.model.parameter_count() as u64),
            time_to_first_step_s: outcome.time_to_first_step.map(|seconds| begun + seconds),
            data: Some(data_metrics),
            stages: observer.times(),
            cpu_features: Some(CpuFeatures::detect().names().into_iter().map(str::to_owned).collect()),
        };
        let passes = [before.as_ref(), after.as_ref()];
        let data = (splits, &train_set);
        let mut report = report(recipe, metrics, &preflight, data, test.as_ref(), passes)?;
        report.environment = environment(recipe, started);
        report.steps = observer.steps();
        if test.is_some() {
            directory.write_predictions(&report.outputs)?;
        }
        directory.write_report(&report)?;
        directory.finish()?;
        Ok(Some(report.metrics))
    };
    match finish() {
        Ok(Some(metrics)) => Ok(RunOutcome { metrics, ..RunOutcome::default() }),
        Ok(None) => {
            observer.note(&format!("the trained adapter is in {}", directory.keep().display()));
            Ok(RunOutcome { cancelled: true, checkpoint: written.last, ..RunOutcome::default() })
        }
        Err(error) => Err(Error::AfterTraining { adapter: directory.keep(), source: Box::new(error) }),
    }
}
