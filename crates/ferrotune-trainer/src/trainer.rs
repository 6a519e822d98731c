//! The training loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ferrotune_kernels::{Mode, RandomKey};
use ferrotune_precision::DtypePolicy;
use tch::Tensor;

use crate::error::{BoxError, Context, Place};
use crate::gradient::{check_parameters, non_finite};
use crate::{
    AdamW, AdamWOptions, Callback, Dataset, Error, EvalStrategy, EvaluationRecord, GradientReducer,
    Gradients, LogRecord, NoReduction, Result, Schedule, StepRecord, TrainOutcome, TrainPlan, TrainableModel,
    TrainingArguments, evaluation,
};

/// Trains a model.
///
/// An optimizer step takes `gradient_accumulation_steps` micro-batches (the last one of an epoch what is left). Its loss is the sum of
/// the negative log-likelihood over **all** their targets, divided by the number of those targets, so that the step is the same
/// however it is cut into micro-batches. Then: the gradients of other ranks, the check that every parameter has a finite gradient,
/// clipping, [`AdamW`], the schedule.
///
/// The randomness of a micro-batch is `RandomKey::from_seed(seed).fold(epoch).fold(step).fold(micro_batch)`, with everything counted
/// from 0 and `step` over the whole run.
pub struct Trainer<'a, M: TrainableModel> {
    model: &'a M,
    arguments: TrainingArguments,
    plan: TrainPlan,
    schedule: Schedule,
    train: &'a dyn Dataset<Batch = M::Batch>,
    validation: Option<&'a dyn Dataset<Batch = M::Batch>>,
    callbacks: Vec<Box<dyn Callback + 'a>>,
    reducer: Box<dyn GradientReducer + 'a>,
    cancellation: Option<Arc<AtomicBool>>,
    optimizer: AdamW,
}

/// The progress of a run; one is made per call of [`Trainer::train`].
struct Progress {
    start: Instant,
    history: Vec<LogRecord>,
    evaluations: Vec<EvaluationRecord>,
    /// Seconds of the evaluations.
    evaluation_seconds: f64,
    global_step: usize,
    time_to_first_step: Option<f64>,
    real_tokens: usize,
    total_loss: f64,
    unlogged: Vec<f64>,
}

impl Progress {
    /// Seconds since the start, without the evaluations.
    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64() - self.evaluation_seconds
    }
}

/// What the micro-batches of a step gave.
struct Accumulated {
    gradients: Gradients,
    loss: f64,
    target_tokens: usize,
    real_tokens: usize,
    examples: Vec<String>,
}

impl<'a, M: TrainableModel> Trainer<'a, M> {
    /// A trainer of `model` on `train`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::EmptyDataset`]; [`Error::NoTrainableParameters`], [`Error::DuplicateParameter`] or
    /// [`Error::UnfitParameter`] for a model whose parameters cannot be trained.
    pub fn new(
        model: &'a M,
        arguments: TrainingArguments,
        train: &'a dyn Dataset<Batch = M::Batch>,
    ) -> Result<Self> {
        let mut plan = arguments.plan(train.len())?;
        let schedule = arguments.schedule(&plan)?;
        let parameters = model.trainable_parameters();
        check_parameters(&parameters, DtypePolicy::default().gradients().kind())?;
        plan.trainable_parameters = parameters.iter().map(|(_, parameter)| parameter.numel()).sum();
        let optimizer = AdamW::new(parameters, AdamWOptions::from(&arguments))?;
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
            optimizer,
        })
    }

    /// Evaluates on `validation` after the last step, and before as `eval_on_start` and `eval_strategy` say.
    #[must_use]
    pub fn with_validation(mut self, validation: &'a dyn Dataset<Batch = M::Batch>) -> Self {
        self.validation = Some(validation);
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

    /// Ends the run before the next micro-batch once the flag is set; a step that is not whole is dropped.
    #[must_use]
    pub fn with_cancellation(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancellation = Some(flag);
        self
    }

    /// What the run will do.
    pub fn plan(&self) -> &TrainPlan {
        &self.plan
    }

    /// The optimizer, with the state that the steps done have left in it.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Does the steps of the plan.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an evaluation is asked for and there is no validation set; [`Error::NonFiniteLoss`], [`Error::MissingGradient`], [`Error::NonFiniteGradient`], [`Error::NoTargets`] and [`Error::Model`]
    /// name the step and its examples, and leave the parameters as the step before left them; [`Error::Dataset`],
    /// [`Error::OrderLength`], [`Error::Callback`], [`Error::Reducer`], [`Error::Torch`].
    pub fn train(&mut self) -> Result<TrainOutcome> {
        let plan = self.plan;
        if plan.warmup_steps > plan.max_steps {
            tracing::warn!(
                warmup_steps = plan.warmup_steps,
                max_steps = plan.max_steps,
                "the run ends within its warm-up: the learning rate never reaches its value"
            );
        }
        if self.validation.is_none()
            && (self.arguments.eval_strategy != EvalStrategy::No || self.arguments.eval_on_start)
        {
            let (field, found) = match self.arguments.eval_strategy {
                EvalStrategy::No => ("eval_on_start", "true".into()),
                strategy => ("eval_strategy", strategy.to_string()),
            };
            let expected = "a validation set (`Trainer::with_validation`) to evaluate";
            return Err(Error::InvalidArgument { field, found, expected });
        }
        tracing::info!(?plan, "training");
        self.notify("on_train_begin", |callback| callback.on_train_begin(&plan))?;
        let mut progress = Progress {
            start: Instant::now(),
            history: Vec::new(),
            evaluations: Vec::new(),
            evaluation_seconds: 0.0,
            global_step: 0,
            time_to_first_step: None,
            real_tokens: 0,
            total_loss: 0.0,
            unlogged: Vec::new(),
        };
        let finished = self.run(&mut progress)?;
        let validation = progress.evaluations.last().filter(|record| record.step == plan.max_steps);
        let outcome = TrainOutcome {
            validation: validation.map(|record| record.evaluation),
            seconds: progress.seconds(),
            history: progress.history,
            evaluations: progress.evaluations,
            global_step: progress.global_step,
            time_to_first_step: progress.time_to_first_step,
            real_tokens: progress.real_tokens,
            train_loss: progress.total_loss / progress.global_step.max(1) as f64,
            cancelled: !finished,
        };
        self.notify("on_train_end", |callback| callback.on_train_end(&outcome))?;
        Ok(outcome)
    }

    /// Whether the run came to its last step.
    fn run(&mut self, progress: &mut Progress) -> Result<bool> {
        let plan = self.plan;
        self.evaluate(progress, 0.0)?;
        for epoch in 0..plan.epochs {
            let order = self.train.order(epoch);
            if order.len() != plan.examples {
                return Err(Error::OrderLength { epoch, found: order.len(), expected: plan.examples });
            }
            let micro_batches: Vec<&[usize]> = order.chunks(plan.per_device_train_batch_size).collect();
            let mut batches_done = 0;
            for group in micro_batches.chunks(plan.gradient_accumulation_steps) {
                if progress.global_step == plan.max_steps {
                    return Ok(true);
                }
                batches_done += group.len();
                let epochs_done = epoch as f64 + batches_done as f64 / plan.batches_per_epoch as f64;
                if !self.step(progress, epoch, epochs_done, group)? {
                    return Ok(false);
                }
                self.evaluate(progress, epochs_done)?;
            }
        }
        Ok(true)
    }

    /// Evaluates the validation set if that is due after the steps done. One that is cancelled leaves no record.
    fn evaluate(&mut self, progress: &mut Progress, epoch: f64) -> Result<()> {
        let step = progress.global_step;
        let Some(validation) = self.validation.filter(|_| self.plan.evaluates_after(step)) else {
            return Ok(());
        };
        let start = Instant::now();
        let batch_size = self.arguments.per_device_eval_batch_size;
        let evaluation =
            evaluation::evaluate_unless(self.model, validation, batch_size, &|| self.is_cancelled());
        progress.evaluation_seconds += start.elapsed().as_secs_f64();
        let Some(evaluation) = evaluation? else {
            return Ok(());
        };
        tracing::info!(step, loss = evaluation.loss, target_tokens = evaluation.target_tokens, "evaluated");
        let evaluations_left = self.plan.evaluations_left(step);
        let record = EvaluationRecord { step, epoch, evaluation, evaluations_left };
        progress.evaluations.push(record);
        self.notify("on_evaluate", |callback| callback.on_evaluate(&record))
    }

    fn is_cancelled(&self) -> bool {
        self.cancellation.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// One optimizer step; `false` if it was cancelled.
    fn step(
        &mut self,
        progress: &mut Progress,
        epoch: usize,
        epochs_done: f64,
        group: &[&[usize]],
    ) -> Result<bool> {
        let start = Instant::now();
        let steps_done = progress.global_step;
        let Some(mut accumulated) = self.accumulate(epoch, steps_done, group)? else {
            return Ok(false);
        };
        let place = || Place { step: Some(steps_done + 1), examples: accumulated.examples.clone() };
        let reducer_failed = |source| Error::Reducer { place: Box::new(place()), source };
        self.reducer.sum_gradients(&mut accumulated.gradients).map_err(reducer_failed)?;
        let loss = self.reducer.sum_loss(accumulated.loss).map_err(reducer_failed)?;
        let grad_norm = accumulated.gradients.norm().map_err(|error| error.at(place()))?;
        let gradient_scale = match self.arguments.max_grad_norm {
            max_norm if max_norm > 0.0 => Gradients::clip_coefficient(max_norm, grad_norm),
            _ => 1.0,
        };
        let learning_rate = self.schedule.learning_rate(steps_done);
        self.optimizer.step_scaled(&accumulated.gradients, learning_rate, gradient_scale)?;
        // An update that went wrong shows in the next loss; the last has none.
        if steps_done + 1 == self.plan.max_steps {
            let parameters = non_finite(self.optimizer.parameters())?;
            if !parameters.is_empty() {
                return Err(Error::NonFiniteParameter { parameters, place: Box::new(place()) });
            }
        }

        progress.global_step += 1;
        progress.real_tokens += accumulated.real_tokens;
        progress.total_loss += loss;
        progress.unlogged.push(loss);
        let seconds = start.elapsed().as_secs_f64();
        if progress.time_to_first_step.is_none() {
            progress.time_to_first_step = Some(progress.seconds());
        }
        let record = StepRecord {
            global_step: progress.global_step,
            epoch: epochs_done,
            loss,
            learning_rate,
            grad_norm,
            target_tokens: accumulated.target_tokens,
            real_tokens: accumulated.real_tokens,
            tokens_per_s: accumulated.real_tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            seconds,
        };
        tracing::debug!(?record, "step");
        self.notify("on_step_end", |callback| callback.on_step_end(&record))?;
        if record.global_step.is_multiple_of(self.plan.logging_steps)
            || record.global_step == self.plan.max_steps
        {
            let record = LogRecord {
                step: record.global_step,
                epoch: epochs_done,
                loss: progress.unlogged.iter().sum::<f64>() / progress.unlogged.len() as f64,
                learning_rate,
                grad_norm,
            };
            progress.unlogged.clear();
            progress.history.push(record);
            self.notify("on_log", |callback| callback.on_log(&record))?;
        }
        Ok(true)
    }

    /// The gradients and the loss of all micro-batches of a step; `None` if it was cancelled.
    fn accumulate(
        &mut self,
        epoch: usize,
        steps_done: usize,
        group: &[&[usize]],
    ) -> Result<Option<Accumulated>> {
        let batches: Vec<M::Batch> = group
            .iter()
            .map(|indices| {
                self.train.batch(indices).map_err(|source| Error::Dataset {
                    split: "train",
                    indices: indices.to_vec(),
                    source,
                })
            })
            .collect::<Result<_>>()?;
        let examples: Vec<String> = batches.iter().flat_map(|batch| self.model.sources(batch)).collect();
        let own_targets = batches.iter().map(|batch| self.model.target_tokens(batch)).sum();
        let target_tokens = self.reducer.sum_targets(own_targets).map_err(|source| Error::Reducer {
            place: Place::boxed(steps_done + 1, examples.clone()),
            source,
        })?;
        if target_tokens == 0 {
            return Err(Error::NoTargets { place: Place::boxed(steps_done + 1, examples) });
        }
        let step_key = RandomKey::from_seed(self.arguments.seed).fold(epoch as u64).fold(steps_done as u64);
        let mut gradients = Gradients::new(self.optimizer.parameters());
        let (mut loss, mut real_tokens) = (0.0, 0);
        for (micro_batch, batch) in batches.iter().enumerate() {
            if self.is_cancelled() {
                tracing::warn!(steps_done, "cancelled");
                return Ok(None);
            }
            real_tokens += self.model.tokens(batch);
            // A batch without a target adds nothing, and its loss may depend on no parameter.
            if self.model.target_tokens(batch) == 0 {
                continue;
            }
            let place = || Place::boxed(steps_done + 1, self.model.sources(batch));
            let mode = Mode::Train(step_key.fold(micro_batch as u64));
            let nll = tch::with_grad(|| self.model.loss(batch, mode))
                .map_err(|source| Error::Model { place: place(), source: source.into() })?;
            loss += self.micro_loss(&nll, target_tokens, &mut gradients, place)?;
        }
        Ok(Some(Accumulated { gradients, loss, target_tokens, real_tokens, examples }))
    }

    /// Adds the gradients of `nll / target_tokens`, and returns its value.
    fn micro_loss(
        &self,
        nll: &Tensor,
        target_tokens: usize,
        gradients: &mut Gradients,
        place: impl Fn() -> Box<Place>,
    ) -> Result<f64> {
        let unfit = |expected, found| Error::UnfitLoss { expected, found, place: place() };
        if nll.numel() != 1 {
            return Err(unfit("one number", format!("a tensor of shape {:?}", nll.size())));
        }
        if !nll.requires_grad() {
            return Err(unfit(
                "a loss that depends on a trainable parameter",
                "one without a gradient function".into(),
            ));
        }
        let loss = tch::with_grad(|| nll.f_div_scalar(target_tokens as f64)).context("the loss")?;
        let value = loss
            .f_sum(tch::Kind::Double)
            .and_then(|sum| sum.f_double_value(&[]))
            .context("reading the loss")?;
        if !value.is_finite() {
            return Err(Error::NonFiniteLoss { loss: value, place: place() });
        }
        gradients.backward(&loss, self.optimizer.parameters())?;
        Ok(value)
    }

    fn notify(
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
