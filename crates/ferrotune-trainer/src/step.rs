//! One optimizer step: forward and backward passes over its micro-batches, the checks, the update.

use std::time::Instant;

use ferrotune_kernels::{Mode, RandomKey};
use tch::Tensor;

use crate::error::{Context, Place};
use crate::gradient::non_finite;
use crate::{
    Action, Error, Gradients, Observation, Result, StepRecord, StepSignals, TrainableModel, Trainer,
};

/// What the micro-batches of a step gave.
pub(crate) struct Accumulated {
    pub gradients: Gradients,
    pub loss: f64,
    target_tokens: usize,
    real_tokens: usize,
    pub examples: Vec<String>,
}

impl<M: TrainableModel> Trainer<'_, M> {
    /// Moves the parameters by the micro-batches of `group`, which lie in `epoch`, unless a watcher is against it.
    pub(crate) fn step(
        &mut self,
        epoch: usize,
        epochs_done: f64,
        group: &[&[usize]],
    ) -> Result<Option<StepRecord>> {
        let start = Instant::now();
        let steps_done = self.state.global_step;
        let mut accumulated = self.accumulate(epoch, steps_done, group)?;
        let place = || Place { step: Some(steps_done + 1), examples: accumulated.examples.clone() };
        let reducer_failed = |source| Error::Reducer { place: Box::new(place()), source };
        self.reducer.sum_gradients(&mut accumulated.gradients).map_err(reducer_failed)?;
        let loss = self.reducer.sum_loss(accumulated.loss).map_err(reducer_failed)?;
        if self.overflows(&mut accumulated.gradients).map_err(|error| error.at(place()))? {
            return Ok(None);
        }
        let grad_norm = accumulated.gradients.norm().map_err(|error| error.at(place()))?;
        let gradient_scale = match self.arguments.max_grad_norm {
            max_norm if max_norm > 0.0 => Gradients::clip_coefficient(max_norm, grad_norm),
            _ => 1.0,
        };
        let learning_rate = self.schedule.learning_rate(steps_done - self.state.skipped_steps)
            * self.state.learning_rate_factor();
        let signals = StepSignals {
            step: steps_done + 1,
            max_steps: self.plan.max_steps,
            loss,
            grad_norm,
            learning_rate,
        };
        if self
            .watch(Observation::Step(signals), &accumulated.examples)?
            .is_some_and(|action| action > Action::Say)
        {
            return Ok(None);
        }
        self.optimizer.step_scaled(&accumulated.gradients, learning_rate, gradient_scale)?;
        // An update that went wrong shows in the next loss; the last has none.
        if steps_done + 1 == self.plan.max_steps {
            let parameters = non_finite(self.optimizer.parameters())?;
            if !parameters.is_empty() {
                return Err(Error::NonFiniteParameter { parameters, place: Box::new(place()) });
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Some(StepRecord {
            global_step: steps_done + 1,
            epoch: epochs_done,
            loss,
            learning_rate,
            grad_norm,
            target_tokens: accumulated.target_tokens,
            real_tokens: accumulated.real_tokens,
            tokens_per_s: accumulated.real_tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            seconds,
        }))
    }

    /// Unscales the gradients of a scaled loss. Whether the step must be left out, since the scale was too large for them and is
    /// smaller now; a gradient that is not finite at a scale of 1 is none of the scale's doing.
    pub(crate) fn overflows(&mut self, gradients: &mut Gradients) -> Result<bool> {
        let Some(scaler) = &mut self.grad_scaler else { return Ok(false) };
        let scale = scaler.state().scale;
        gradients.unscale(scaler)?;
        let overflows = scaler.found_inf() && scale > 1.0;
        scaler.update().map_err(Error::Precision)?;
        self.state.grad_scaler = Some(scaler.state());
        if overflows {
            let step = self.state.global_step + 1;
            tracing::info!(step, scale, "the scaled gradients overflow f16: the step is left out");
        }
        Ok(overflows)
    }

    /// The gradients and the loss of all micro-batches of a step; those of a scaled loss are still scaled.
    pub(crate) fn accumulate(
        &mut self,
        epoch: usize,
        steps_done: usize,
        group: &[&[usize]],
    ) -> Result<Accumulated> {
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
        Ok(Accumulated { gradients, loss, target_tokens, real_tokens, examples })
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
        let loss = match &self.grad_scaler {
            Some(scaler) => tch::with_grad(|| scaler.scale(&loss)).map_err(Error::Precision)?,
            None => loss,
        };
        gradients.backward(&loss, self.optimizer.parameters())?;
        Ok(value)
    }
}
