//! The job: data, pre-flight, evaluation, training, evaluation, report.

use super::{
    Assistant, CausalLmTask, MemoryNeed, PackedDataset,
    advice::few_steps,
    arguments::training_arguments,
    base::Base,
    environment::environment,
    evaluation::TestSet,
    init_from,
    observers::Recorder,
    output::OutputDirectory,
    product_limit::{self, ProductLimit},
    results::{logged_steps, report, train_metrics, validation_metrics},
    resume, run_log,
    telling::{Tell, Training},
};
use crate::{
    Error, Result,
    checkpoint::{self, InputFile, Saved, Saver, Writer, Written},
    progress::{Evaluating, Generating, RangeStep, RolledBack, Step, Validated},
    recipe::{Recipe, ResumeFromCheckpoint},
    report::Metrics,
};
use ferrotune_lora::Adapter;
use ferrotune_metrics::Metric;
use ferrotune_precision::{CpuFeatures, peak_rss_mib, resident_bytes};
use ferrotune_trainer::{
    Finding, OptimizerName, Reporting, TrainOutcome, TrainPlan, Trainer, TrainingArguments,
};
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

    /// The validation loss is being measured.
    fn evaluating(&mut self, evaluating: &Evaluating) {}

    /// The validation loss was measured.
    fn validated(&mut self, validated: &Validated) {}

    /// A watcher found a fault of the training.
    fn finding(&mut self, finding: &Finding) {}

    /// The training went back to an earlier step: what was told of later ones does not hold any more.
    fn rolled_back(&mut self, rolled_back: &RolledBack) {}

    /// A step of a range test is done.
    fn range_step(&mut self, step: &RangeStep) {}

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
    /// Whether the run was stopped before its end: a checkpoint was written if a step was made and `save_strategy` is not `"no"`, or the
    /// adapter and the recipe if training was over.
    pub cancelled: bool,
    /// Whether the run had come to its end before: nothing was done.
    pub finished_before: bool,
    /// The newest checkpoint, from which the run goes on.
    pub checkpoint: Option<PathBuf>,
}

impl RunOutcome {
    /// Of a run that was stopped.
    fn cancelled() -> Self {
        Self { cancelled: true, ..Self::default() }
    }
}

/// Runs a recipe from its data to its report.
///
/// Everything that can be known to be wrong is said before the model is loaded or the first step is made. The number of threads is
/// libtorch's, for the whole process: the caller sets it (`tch::set_num_threads`) before anything is computed.
/// A run that goes on from a checkpoint is refused where recipe, data or model have changed, unless `accept_changes`.
/// `cancellation` is the flag that [`Observer::cancelled`] reads, if the caller has one: the training loop looks at it between
/// optimizer steps, and between the batches of an evaluation.
///
/// # Errors
/// Those of every part, with file, line, field or tensor; [`Error::is_bad_input`](crate::Error::is_bad_input) tells whether the user's input is at fault.
pub fn run(
    recipe: &Recipe,
    accept_changes: bool,
    observer: &mut dyn Observer,
    cancellation: Arc<AtomicBool>,
) -> Result<RunOutcome> {
    run_on(&mut None, recipe, accept_changes, observer, cancellation)
}

/// As [`run`], on a model and data that an earlier run has left in `base`; where it is empty they are loaded and left there.
pub(crate) fn run_on(
    base: &mut Option<Base>,
    recipe: &Recipe,
    accept_changes: bool,
    observer: &mut dyn Observer,
    cancellation: Arc<AtomicBool>,
) -> Result<RunOutcome> {
    let began = Began { instant: Instant::now(), time: SystemTime::now() };
    let mut observer = Recorder::new(observer);
    let Some(opened) = Opened::open(recipe, accept_changes, &mut observer)? else {
        return Ok(RunOutcome { finished_before: true, ..RunOutcome::default() });
    };
    if base.is_none() {
        *base = Base::load(recipe, &mut observer)?;
    }
    let Some(base) = base else { return Ok(RunOutcome::cancelled()) };
    let Some(mut trained) = opened.train(base, &began, &mut observer, cancellation)? else {
        return Ok(RunOutcome::cancelled());
    };
    if trained.outcome.cancelled {
        return Ok(RunOutcome { checkpoint: trained.written.left()?, ..RunOutcome::cancelled() });
    }
    let directory = &opened.directory;
    match opened.evaluate(base, &mut trained, &began, &mut observer) {
        Ok(Some(metrics)) => Ok(RunOutcome { metrics, ..RunOutcome::default() }),
        Ok(None) => {
            observer.note(&format!("the trained adapter is in {}", directory.keep().display()));
            Ok(RunOutcome { checkpoint: trained.written.last, ..RunOutcome::cancelled() })
        }
        Err(error) => Err(Error::AfterTraining { adapter: directory.keep(), source: Box::new(error) }),
    }
}

/// When a run began.
struct Began {
    instant: Instant,
    time: SystemTime,
}

/// A run whose recipe and places were looked at.
struct Opened<'a> {
    recipe: &'a Recipe,
    arguments: TrainingArguments,
    directory: OutputDirectory,
    /// The checkpoint that it goes on from.
    saved: Option<Saved>,
    /// The hashes of its inputs, as far as they are known.
    inputs: Vec<InputFile>,
}

/// A run whose last step is done.
struct Trained {
    outcome: TrainOutcome,
    plan: TrainPlan,
    train_set: PackedDataset,
    gemm_share: Option<f64>,
    written: Written,
    reporting: Option<Reporting>,
    /// Seconds before the loop, without the evaluation before it.
    begun: f64,
}

impl<'a> Opened<'a> {
    /// Sees that the run can be made, and locks its place; `None` if it was made before.
    fn open(recipe: &'a Recipe, accept_changes: bool, observer: &mut dyn Observer) -> Result<Option<Self>> {
        recipe.validate()?;
        recipe.check_paths(None)?;
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
            return Ok(None);
        }
        let saved = if resumes { resume::choose(recipe, observer)? } else { None };
        let goes_on_here = saved.as_ref().is_some_and(|saved| saved.path.starts_with(&recipe.output_dir));
        if resumes && !goes_on_here {
            resume::refuse_another(recipe)?;
        }
        directory.check_inputs(recipe)?;
        for warning in recipe.warnings() {
            observer.note(&format!("warning: {warning}"));
        }
        let inputs = match &saved {
            Some(saved) => resume::check(saved, recipe, accept_changes, observer)?,
            None => init_from::check(recipe, accept_changes, observer)?,
        };
        Ok(Some(Self { recipe, arguments, directory, saved, inputs }))
    }

    /// Trains a new adapter of the base and saves it; `None` if the observer cancels before the first step.
    fn train(
        &self,
        base: &mut Base,
        began: &Began,
        observer: &mut Recorder,
        cancellation: Arc<AtomicBool>,
    ) -> Result<Option<Trained>> {
        let Self { recipe, arguments, directory, saved, inputs } = self;
        let plan = arguments.plan(base.train.len())?;
        few_steps(&plan, &recipe.training).iter().for_each(|note| observer.note(note));
        let adapter = init_from::adapter(recipe, &mut base.assistant)?;
        self.check_room(&adapter, &plan, base.test.as_ref().map_or(0, TestSet::text_bytes))?;

        let data_seed = recipe.data_seed.unwrap_or(recipe.seed);
        let train_set = PackedDataset::new(base.train.clone(), data_seed);
        let validation_set = base.validation.clone().map(|rows| PackedDataset::new(rows, data_seed));
        // A fresh adapter changes no answer; a given one is what this run begins with.
        let is_given = recipe.lora.init_from.is_some();
        let before = recipe.evaluation.before && (base.before.is_none() || is_given);
        let answered = [base.test.as_ref().filter(|_| before), base.validation_prompts.as_ref()];
        let answered: Vec<&TestSet> = answered.into_iter().flatten().collect();
        check_memory(&base.assistant, &adapter, &train_set, (arguments, &plan), &answered, observer)?;

        let evaluation_start = Instant::now();
        base.assistant.adapter = is_given.then(|| adapter.shallow_clone());
        if before {
            base.before = base.answers("answers before training", observer)?;
        }
        let evaluation_seconds = evaluation_start.elapsed().as_secs_f64();
        if observer.cancelled() {
            return Ok(None);
        }

        observer.stage("training");
        if let Some(saved) = saved {
            observer.begin_with(logged_steps(saved.state.history()));
        }
        // Answers are those of the adapter from here on.
        base.assistant.adapter = Some(adapter.shallow_clone());
        let base = &*base;
        let model = &base.assistant.model;
        let saver = Saver::start(
            Writer {
                output_dir: recipe.output_dir.clone(),
                config: adapter.config().clone(),
                recipe: (*recipe).clone(),
                save_total_limit: recipe.training.save_total_limit,
                inputs: inputs.clone(),
                replaced: match saved {
                    Some(_) => Vec::new(),
                    None => checkpoint::list(&recipe.output_dir).into_iter().map(|(_, path)| path).collect(),
                },
            },
            saved.as_ref().map(|saved| saved.path.clone()),
        )?;
        let mut reporting = run_log::open(recipe, arguments, saved.is_some())?;
        let begun = began.instant.elapsed().as_secs_f64() - evaluation_seconds;
        let (outcome, gemm_share) = {
            let task =
                CausalLmTask::new(model, &adapter).with_forward_arguments(arguments.forward_arguments())?;
            // Rates depend little on the number of rows; those of a usual micro-batch are as good as each batch's own.
            let batch = train_set.usual_batch(plan.per_device_train_batch_size, adapter.config().rank);
            if let Some(note) = product_limit::cost_of(model, task.compute(), batch.tokens)? {
                observer.note(&note);
            }
            let shared = Mutex::new(Training {
                observer: &mut *observer,
                task: &task,
                limit: ProductLimit::new(model, task.compute(), batch),
                plan,
                saver: &saver,
                told_memory: false,
            });
            let mut trainer = Trainer::new(&task, arguments.clone(), &train_set)?
                .with_watch_actions(recipe.watch)?
                .with_cancellation(cancellation)
                .with_callback(Tell(&shared));
            if let Some(validation_set) = &validation_set {
                trainer = trainer.with_validation(validation_set);
            }
            if let Some(prompts) = &base.validation_prompts {
                trainer = trainer.with_compute_metrics(prompts.metrics.iter().map(Metric::to_string), || {
                    let mut training = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let pass = prompts.run(&base.assistant, &mut *training.observer)?;
                    Ok(pass.map(|pass| {
                        pass.scores.iter().map(|(name, at)| (name.to_owned(), at.value)).collect()
                    }))
                });
            }
            if recipe.training.save_strategy != "no" {
                trainer = trainer.with_checkpointer(saver.checkpointer(&adapter));
            }
            if let Some(reporting) = &mut reporting {
                trainer = trainer.with_callback(reporting);
            }
            if let Some(saved @ Saved { state, optimizer, .. }) = saved {
                resume::restore(saved, &adapter)?;
                trainer.resume(state.clone(), optimizer)?;
            }
            let outcome = trainer.train();
            drop(trainer);
            let training = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
            (outcome, training.limit.share_of_all())
        };
        let written = saver.finish();
        written.unsaid.iter().for_each(|warning| observer.note(warning));
        for failure in reporting.iter_mut().flat_map(Reporting::take_failures) {
            observer.note(&format!("warning: {failure}"));
        }
        let outcome = outcome.map_err(|error| written.last_words(error.into()))?;
        if !outcome.cancelled {
            // The training is not lost whatever happens from here on.
            directory
                .save_trained(&adapter, &recipe.to_toml()?)
                .map_err(|error| written.last_words(error))?;
        }
        Ok(Some(Trained { outcome, plan, train_set, gemm_share, written, reporting, begun }))
    }

    /// Refuses a run whose results and checkpoints the disk has no room for.
    fn check_room(&self, adapter: &Adapter, plan: &TrainPlan, text_bytes: u64) -> Result<()> {
        let Self { recipe, arguments, saved, .. } = self;
        let adapter_bytes = (adapter.parameter_count() * size_of::<f32>()) as u64;
        // AdamW has two means for each parameter; what SGD has is less.
        let optimizer_bytes = if arguments.optim == OptimizerName::Sgd { 0 } else { 2 * adapter_bytes };
        let checkpoints = checkpoint::room(
            &recipe.output_dir,
            plan,
            adapter_bytes + optimizer_bytes,
            recipe.training.save_total_limit,
            saved.as_ref().map(|saved| saved.state.global_step),
        );
        let largest = adapter_bytes.max(text_bytes).max(if checkpoints > 0 { optimizer_bytes } else { 0 });
        self.directory.check_room(adapter_bytes + text_bytes, checkpoints, largest)
    }

    /// Asks the trained model, and writes all results; `None` if the observer cancels.
    fn evaluate(
        &self,
        base: &Base,
        trained: &mut Trained,
        began: &Began,
        observer: &mut Recorder,
    ) -> Result<Option<Metrics>> {
        let recipe = self.recipe;
        let after = match recipe.evaluation.after {
            true => base.answers("answers after training", observer)?,
            false => None,
        };
        if observer.cancelled() {
            return Ok(None);
        }

        observer.stage("writing results");
        let before = base.before.as_ref().filter(|_| recipe.evaluation.before);
        let after = after.as_ref();
        let change = match (&base.test, before, after) {
            (Some(test), Some(before), Some(after)) => Some(test.change(before, after)?),
            _ => None,
        };
        let Trained { outcome, plan, train_set, gemm_share, reporting, begun, .. } = trained;
        let model = &base.assistant.model;
        let metrics = Metrics {
            before: before.map(|pass| pass.scores.clone()),
            after: after.map(|pass| pass.scores.clone()),
            change,
            train: Some(train_metrics(outcome, plan, train_set, *gemm_share)),
            validation: validation_metrics(outcome),
            generation: after.or(before).map(|pass| pass.generation.clone()),
            peak_rss_mib: peak_rss_mib(),
            trainable_parameters: base.assistant.adapter.as_ref().map(|own| own.parameter_count() as u64),
            total_parameters: Some(model.parameter_count() as u64),
            time_to_first_step_s: outcome.time_to_first_step.map(|seconds| *begun + seconds),
            data: Some(base.data.clone()),
            stages: observer.times(),
            cpu_features: Some(CpuFeatures::detect().names().into_iter().map(str::to_owned).collect()),
        };
        let data = (base.splits.clone(), &*train_set);
        let mut report = report(recipe, metrics, &base.preflight, data, base.test.as_ref(), [before, after])?;
        report.environment = environment(recipe, began.time);
        report.steps = observer.steps();
        if base.test.is_some() {
            self.directory.write_predictions(&report.outputs)?;
        }
        if let Some(reporting) = reporting {
            run_log::show_answers(reporting, outcome.global_step, &report.outputs);
        }
        self.directory.write_report(&report)?;
        self.directory.finish()?;
        Ok(Some(report.metrics))
    }
}

/// Refuses a training that does not fit into the memory, and says what it will take.
pub(super) fn check_memory(
    assistant: &Assistant,
    adapter: &Adapter,
    train_set: &PackedDataset,
    (arguments, plan): (&TrainingArguments, &TrainPlan),
    answered: &[&TestSet],
    observer: &mut dyn Observer,
) -> Result<()> {
    if assistant.model.device() != Device::Cpu {
        return Ok(());
    }
    let mut need = MemoryNeed::of_training(
        &assistant.model,
        adapter.parameter_count() as u64,
        train_set,
        arguments,
        plan.max_steps.div_ceil(plan.steps_per_epoch.max(1)),
    );
    if !answered.is_empty() {
        need = need.and_compact_weights(&assistant.model);
    }
    for TestSet { prompts, max_new_tokens, batch_size, .. } in answered {
        need = need.or(MemoryNeed::of_generation(&assistant.model, prompts, *max_new_tokens, *batch_size));
    }
    let remedy =
        "lower `per_device_train_batch_size` or `max_length`, choose a smaller model, or free memory";
    match need.check("training", remedy)? {
        Some(warning) => observer.note(&format!("warning: {warning}")),
        None => observer.note(&need.peak(resident_bytes().unwrap_or(0))),
    }
    Ok(())
}
