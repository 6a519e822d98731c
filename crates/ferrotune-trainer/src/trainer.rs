//! The training loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ferrotune_precision::{DtypePolicy, GradScaler};
use tch::Tensor;

use crate::compute_metrics::ComputeMetrics;
use crate::error::BoxError;
use crate::gradient::check_parameters;
use crate::{
    Action, Callback, Checkpoint, Checkpointer, Dataset, Error, EvaluationRecord, Finding, GradientReducer,
    LogEntry, LogRecord, NoReduction, Observation, Optimizer, OptimizerState, ParameterGroup, Result,
    SaveStrategy, Schedule, StepRecord, TrainOutcome, TrainPlan, TrainableModel, TrainerState,
    TrainingArguments, WatchActions, best, evaluation,
};

/// Trains a model.
///
/// An optimizer step takes `gradient_accumulation_steps` micro-batches (the last one of an epoch what is left). Its loss is the sum of
/// the negative log-likelihood over **all** their targets, divided by the number of those targets, so that the step is the same
/// however it is cut into micro-batches. Then: the gradients of other ranks, the check that every parameter has a finite gradient,
/// clipping, the [`Optimizer`], the schedule.
///
/// With `fp16` the loss is scaled by a [`GradScaler`] before the backward pass, and the gradients are unscaled before they are clipped. A
/// step whose scaled gradients overflow is left out, as the scaler's page says: it counts as a step, and the schedule does not count it.
///
/// The randomness of a micro-batch is `RandomKey::from_seed(seed).fold(epoch).fold(step).fold(micro_batch)`, with everything counted
/// from 0 and `step` over the whole run.
///
/// [`Trainer::resume`] goes on from a [`Checkpoint`] as if the run had never ended: on the same kind of CPU, with the same number of threads
/// and the same libtorch, every bit is that of the unbroken run.
pub struct Trainer<'a, M: TrainableModel> {
    pub(crate) model: &'a M,
    pub(crate) arguments: TrainingArguments,
    pub(crate) plan: TrainPlan,
    pub(crate) schedule: Schedule,
    pub(crate) train: &'a dyn Dataset<Batch = M::Batch>,
    pub(crate) validation: Option<&'a dyn Dataset<Batch = M::Batch>>,
    pub(crate) callbacks: Vec<Box<dyn Callback + 'a>>,
    pub(crate) reducer: Box<dyn GradientReducer + 'a>,
    cancellation: Option<Arc<AtomicBool>>,
    pub(crate) checkpointer: Option<Box<dyn Checkpointer + 'a>>,
    pub(crate) compute_metrics: Option<ComputeMetrics<'a>>,
    pub(crate) optimizer: Box<dyn Optimizer>,
    /// Scales the loss under `fp16`.
    pub(crate) grad_scaler: Option<GradScaler>,
    pub(crate) state: TrainerState,
    /// The step of the last checkpoint.
    pub(crate) saved_step: Option<usize>,
    pub(crate) watch_actions: WatchActions,
    /// The fault that ended the run.
    pub(crate) ended_by: Option<Finding>,
    /// The parameters as they were when the watchers were told what to do, if one may make the run go back.
    pub(crate) start: Option<Vec<(String, Tensor)>>,
}

impl<'a, M: TrainableModel> Trainer<'a, M> {
    /// A trainer of `model` on `train`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::UnknownName`], [`Error::EmptyDataset`]; [`Error::ForwardArgument`] for a model that was not
    /// built with the arguments
    /// of its forward pass; [`Error::NoTrainableParameters`], [`Error::DuplicateParameter`] or [`Error::UnfitParameter`] for one whose
    /// parameters cannot be trained.
    pub fn new(
        model: &'a M,
        arguments: TrainingArguments,
        train: &'a dyn Dataset<Batch = M::Batch>,
    ) -> Result<Self> {
        let mut plan = arguments.plan(train.len())?;
        arguments.forward_arguments().check(&model.forward_arguments())?;
        let schedule = arguments.schedule(&plan)?;
        let parameters = model.trainable_parameters();
        check_parameters(&parameters, DtypePolicy::default().gradients().kind())?;
        plan.trainable_parameters = parameters.iter().map(|(_, parameter)| parameter.numel()).sum();
        let optimizer = arguments.optimizer(parameters)?;
        let policy = DtypePolicy::from_flags(arguments.bf16, arguments.fp16).map_err(Error::Precision)?;
        let grad_scaler = policy.needs_loss_scaling().then(GradScaler::default);
        Ok(Self {
            model,
            arguments,
            plan,
            schedule,
            train,
            validation: None,
            callbacks: Vec::new(),
            reducer: Box::new(NoReduction),
            cancellation: None,
            checkpointer: None,
            compute_metrics: None,
            optimizer,
            grad_scaler,
            state: TrainerState::of(&plan),
            saved_step: None,
            watch_actions: WatchActions::default(),
            ended_by: None,
            start: None,
        })
    }

    /// Evaluates on `validation` after the last step, and before as `eval_on_start` and `eval_strategy` say.
    #[must_use]
    pub fn with_validation(mut self, validation: &'a dyn Dataset<Batch = M::Batch>) -> Self {
        self.validation = Some(validation);
        self
    }

    /// Measures more than the loss at each evaluation of the validation set, such as scores of generated answers.
    ///
    /// `compute` is called after the loss was measured, with the model as it then is and no gradients. It gives a finite value for each of
    /// `names`, or `None` if it was cancelled by the flag of [`with_cancellation`](Self::with_cancellation). The values stand beside the
    /// loss in [`Evaluation::metrics`](crate::Evaluation::metrics) and under `eval/` in the logs, and `metric_for_best_model` may name one of them. An error, or a
    /// value that is missing or not finite, ends the run with [`Error::Callback`]. Without a validation set it is never called.
    ///
    /// ```
    /// # use ferrotune_trainer::{TrainableModel, Trainer};
    /// # fn accuracy_of<M>(_: &M) -> Result<f64, std::fmt::Error> { Ok(1.0) }
    /// fn with_accuracy<'a, M: TrainableModel>(trainer: Trainer<'a, M>, model: &'a M) -> Trainer<'a, M> {
    ///     trainer.with_compute_metrics(["accuracy"], || {
    ///         Ok(Some([("accuracy".to_owned(), accuracy_of(model)?)].into()))
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn with_compute_metrics(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
        compute: impl FnMut() -> std::result::Result<Option<BTreeMap<String, f64>>, BoxError> + 'a,
    ) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        self.compute_metrics = Some(ComputeMetrics { names, compute: Box::new(compute) });
        self
    }

    /// Tells `callback` how the run goes, after those added before.
    #[must_use]
    pub fn with_callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Sums gradients over the ranks of a distributed run.
    #[must_use]
    pub fn with_reducer(mut self, reducer: impl GradientReducer + 'a) -> Self {
        self.reducer = Box::new(reducer);
        self
    }

    /// Gives each parameter the group that `rule` finds for its name and itself, in place of those that the arguments make.
    #[must_use]
    pub fn with_parameter_groups(mut self, rule: impl Fn(&str, &Tensor) -> ParameterGroup) -> Self {
        self.optimizer.set_groups(&rule);
        self
    }

    /// Ends the run before the next step once the flag is set, with a checkpoint if there is a [`Checkpointer`].
    #[must_use]
    pub fn with_cancellation(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancellation = Some(flag);
        self
    }

    /// Hands a checkpoint to `checkpointer` as `save_strategy` says, and when the run is cancelled or a watcher stops it.
    #[must_use]
    pub fn with_checkpointer(mut self, checkpointer: impl Checkpointer + 'a) -> Self {
        self.checkpointer = Some(Box::new(checkpointer));
        self
    }

    /// Does about the faults of a run what `actions` say, in place of [`WatchActions::default`].
    ///
    /// If one of them is [`Action::RollBack`], the parameters as they are now are the start that a run without a checkpoint goes back to:
    /// call this before values from a checkpoint are put into them.
    ///
    /// # Errors
    /// As [`WatchActions::validate`]; [`Error::Torch`] if libtorch fails.
    pub fn with_watch_actions(mut self, actions: WatchActions) -> Result<Self> {
        actions.validate()?;
        self.start = match actions.roll_back() {
            true => Some(best::copies(self.optimizer.parameters())?),
            false => None,
        };
        self.watch_actions = actions;
        Ok(self)
    }

    /// Goes on where a checkpoint was taken. The parameters are the caller's to put back into the model.
    ///
    /// More epochs or steps than the run had extend it; the schedule is then that of the longer run. With other batches it goes on with the
    /// first batch whose examples the epoch has not seen.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] if the optimizer's state is that of other parameters; [`Error::InvalidArgument`] if the run is shorter
    /// than what was done; [`Error::Precision`] for a state of the loss's scaler that none can use.
    pub fn resume(&mut self, state: TrainerState, optimizer: &OptimizerState) -> Result<()> {
        if state.global_step > self.plan.max_steps {
            return Err(Error::InvalidArgument {
                field: "max_steps",
                found: format!("{}, and {} steps are done", self.plan.max_steps, state.global_step),
                expected: "at least the steps that the checkpoint has done",
            });
        }
        self.optimizer.load_state(optimizer)?;
        if let (Some(scaler), Some(state)) = (&mut self.grad_scaler, state.grad_scaler) {
            *scaler = GradScaler::from_state(state).map_err(Error::Precision)?;
        }
        if let Some(scheduler) = state.lr_scheduler {
            self.schedule.load_state(scheduler)?;
        }
        self.saved_step = Some(state.global_step);
        self.state = state;
        self.state.fit(&self.plan);
        Ok(())
    }

    /// Where the run is.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// What the run will do.
    pub fn plan(&self) -> &TrainPlan {
        &self.plan
    }

    /// The optimizer, with the state that the steps done have left in it.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }

    /// Does the steps of the plan that are still to be done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an evaluation is asked for and there is no validation set, and for an argument that nobody carries out;
    /// [`Error::UnknownName`] if nothing measures
    /// the `metric_for_best_model`; [`Error::NonFiniteLoss`], [`Error::MissingGradient`], [`Error::NonFiniteGradient`], [`Error::NoTargets`] and [`Error::Model`]
    /// name the step and its examples, and leave the parameters as the step before left them; [`Error::UnfitLoss`];
    /// [`Error::NonFiniteParameter`] after the last step; [`Error::RollBacksSpent`]; [`Error::Precision`]; [`Error::Dataset`],
    /// [`Error::OrderLength`], [`Error::Callback`], [`Error::Checkpointer`], [`Error::Reducer`], [`Error::Torch`].
    pub fn train(&mut self) -> Result<TrainOutcome> {
        let plan = self.plan;
        if plan.warmup_steps > plan.max_steps {
            tracing::warn!(
                target: crate::TOLD,
                warmup_steps = plan.warmup_steps,
                max_steps = plan.max_steps,
                "the run ends within its warm-up: the learning rate never reaches its value"
            );
        }
        self.check()?;
        tracing::info!(?plan, "training");
        self.ended_by = None;
        let state = self.state.clone();
        self.notify("on_train_begin", |callback| callback.on_train_begin(&plan, &state))?;
        let finished = self.run()?;
        if finished && self.arguments.load_best_model_at_end {
            self.load_best()?;
        }
        let outcome = TrainOutcome::new(&self.state, !finished, self.ended_by.take());
        self.notify("on_train_end", |callback| callback.on_train_end(&outcome))?;
        Ok(outcome)
    }

    /// Whether the run came to its last step, or to the one that early stopping or a watcher makes the last.
    fn run(&mut self) -> Result<bool> {
        // Where the checkpoint was taken because the run was cancelled, the evaluation of its step is still to come.
        self.conclude()?;
        loop {
            let finished = self.steps()?;
            match self.ended_by.take_if(|finding| finding.action == Action::RollBack) {
                Some(finding) => self.roll_back(finding)?,
                None => return Ok(finished),
            }
        }
    }

    /// The steps that are left, up to a fault that ends the run or makes it go back.
    fn steps(&mut self) -> Result<bool> {
        let plan = self.plan;
        while self.state.global_step < plan.max_steps {
            let epoch = self.state.data_position.epoch;
            let order = self.train.order(epoch);
            if order.len() != plan.examples {
                return Err(Error::OrderLength { epoch, found: order.len(), expected: plan.examples });
            }
            let micro_batches: Vec<&[usize]> =
                order.chunks(plan.per_device_train_batch_size).take(plan.batches_per_epoch).collect();
            let to_come = micro_batches.get(self.state.data_position.batches..).unwrap_or_default();
            for group in to_come.chunks(plan.gradient_accumulation_steps) {
                if self.state.global_step == plan.max_steps || self.stops_early() {
                    return Ok(true);
                }
                if let Some(finding) = &self.ended_by {
                    if finding.action == Action::Stop {
                        self.save_unsaved()?;
                    }
                    return Ok(true);
                }
                if self.is_cancelled() {
                    tracing::warn!(target: crate::TOLD, steps_done = self.state.global_step, "cancelled");
                    self.save_unsaved()?;
                    return Ok(false);
                }
                self.advance(group)?;
                self.conclude()?;
            }
        }
        Ok(true)
    }

    /// A step, and its records.
    fn advance(&mut self, group: &[&[usize]]) -> Result<()> {
        let start = Instant::now();
        let position = self.state.data_position;
        let batches_done = position.batches + group.len();
        let epochs_done = position.epoch as f64 + batches_done as f64 / self.plan.batches_per_epoch as f64;
        let Some(record) = self.step_watched(position.epoch, epochs_done, group)? else {
            return Ok(());
        };

        let state = &mut self.state;
        state.global_step = record.global_step;
        state.epoch = epochs_done;
        state.data_position = position.advanced(group.len(), self.plan.batches_per_epoch);
        state.num_input_tokens_seen += record.real_tokens;
        state.total_loss += record.loss;
        state.unlogged_losses.push(record.loss);
        tracing::debug!(?record, "step");
        self.notify("on_step_end", |callback| callback.on_step_end(&record))?;
        self.state.train_seconds += start.elapsed().as_secs_f64();
        let seconds = self.state.train_seconds;
        self.state.time_to_first_step.get_or_insert(seconds);
        self.log(&record)
    }

    /// The log record that is due after a step.
    fn log(&mut self, step: &StepRecord) -> Result<()> {
        if !self.plan.logs_after(step.global_step) {
            return Ok(());
        }
        let losses = std::mem::take(&mut self.state.unlogged_losses);
        let record = LogRecord {
            step: step.global_step,
            epoch: step.epoch,
            loss: losses.iter().sum::<f64>() / losses.len() as f64,
            learning_rate: step.learning_rate,
            grad_norm: step.grad_norm,
        };
        self.state.log_history.push(LogEntry::Train(record));
        self.notify("on_log", |callback| callback.on_log(&record))?;
        self.watch_norms(&record)
    }

    /// What follows a step: the evaluation and the checkpoint that are due, unless the run that was left had them.
    fn conclude(&mut self) -> Result<()> {
        let step = self.state.global_step;
        let evaluation = self.evaluate()?;
        // As in transformers an evaluation before the first step is not judged: there is no checkpoint of it.
        let is_best = evaluation
            .as_ref()
            .is_some_and(|record| step > 0 && best::track(&self.arguments, record, &mut self.state));
        let is_due = match self.arguments.save_strategy {
            SaveStrategy::Best => is_best,
            _ => self.plan.saves_after(step) && (evaluation.is_some() || self.saved_step != Some(step)),
        };
        if is_due { self.save() } else { Ok(()) }
    }

    /// Evaluates the validation set if that is due after the steps done, or a watcher ends the run there. One that is cancelled leaves no
    /// record.
    fn evaluate(&mut self) -> Result<Option<EvaluationRecord>> {
        let (step, epoch) = (self.state.global_step, self.state.epoch);
        let is_done = self.state.evaluations().next_back().is_some_and(|record| record.step == step);
        let is_last = self.ended_by.as_ref().is_some_and(|finding| finding.action == Action::Stop);
        let is_due = (is_last || self.plan.evaluates_after(step)) && !is_done;
        let Some(validation) = self.validation.filter(|_| is_due) else {
            return Ok(None);
        };
        let batch_size = self.arguments.per_device_eval_batch_size;
        let (model, examples) = (self.model, validation.len());
        let mut goes_on = |done| {
            self.notify("on_evaluation_progress", |callback| {
                callback.on_evaluation_progress(done, examples)
            })?;
            Ok(!self.is_cancelled())
        };
        let Some(mut evaluation) = evaluation::evaluate_unless(model, validation, batch_size, &mut goes_on)?
        else {
            return Ok(None);
        };
        if let Some(metrics) = &mut self.compute_metrics {
            let start = Instant::now();
            let Some(metrics) = metrics.compute()? else { return Ok(None) };
            evaluation.metrics = metrics;
            evaluation.seconds += start.elapsed().as_secs_f64();
        }
        tracing::info!(step, loss = evaluation.loss, target_tokens = evaluation.target_tokens, "evaluated");
        let evaluations_left = if is_last { 0 } else { self.plan.evaluations_left(step) };
        let record = EvaluationRecord { step, epoch, evaluation, evaluations_left };
        self.state.log_history.push(LogEntry::Evaluation(record.clone()));
        // As in transformers an evaluation before the first step does not count.
        if let Some(metric) = record.evaluation.metric(self.arguments.metric_name()).filter(|_| step > 0) {
            self.schedule.observe(metric);
            self.state.lr_scheduler = self.schedule.state();
        }
        self.notify("on_evaluate", |callback| callback.on_evaluate(&record))?;
        self.watch(Observation::Evaluation(&record), &[])?;
        Ok(Some(record))
    }

    fn stops_early(&self) -> bool {
        best::stops_early(&self.arguments, &self.state)
    }

    /// A checkpoint of the steps done, if the last one is older.
    fn save_unsaved(&mut self) -> Result<()> {
        let step = self.state.global_step;
        if step == 0 || self.saved_step == Some(step) { Ok(()) } else { self.save() }
    }

    fn save(&mut self) -> Result<()> {
        let Some(checkpointer) = &mut self.checkpointer else {
            return Ok(());
        };
        let checkpoint = Checkpoint {
            state: &self.state,
            parameters: self.optimizer.parameters(),
            optimizer: self.optimizer.state()?,
        };
        checkpointer.save(checkpoint).map_err(|source| Error::Checkpointer { event: "save", source })?;
        self.saved_step = Some(self.state.global_step);
        Ok(())
    }

    /// Puts the parameters of the best checkpoint into the model.
    fn load_best(&mut self) -> Result<()> {
        let (Some(checkpointer), Some(step)) = (&mut self.checkpointer, self.state.best_global_step) else {
            return Ok(());
        };
        let best = checkpointer
            .load_best(step)
            .map_err(|source| Error::Checkpointer { event: "load_best", source })?;
        match best {
            Some(best) => best::restore(self.optimizer.parameters(), &best),
            None => {
                tracing::warn!(target: crate::TOLD, step, "no checkpoint of the best step: the parameters are those of the last");
                Ok(())
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancellation.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    pub(crate) fn notify(
        &mut self,
        event: &'static str,
        mut tell: impl FnMut(&mut dyn Callback) -> std::result::Result<(), BoxError>,
    ) -> Result<()> {
        for callback in &mut self.callbacks {
            if let Err(source) = tell(callback.as_mut()) {
                return Err(Error::Callback { name: callback.name().to_owned(), event, source });
            }
        }
        Ok(())
    }
}
