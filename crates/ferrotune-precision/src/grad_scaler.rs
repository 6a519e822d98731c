//! Loss scaling for gradients in `f16`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::Context;
use crate::{Error, Result};

/// Scales the loss so that small gradients do not underflow in `f16`, as `torch.amp.GradScaler` does.
///
/// With the scale `s`, a step takes the gradients of `s · loss` and divides them by `s`. A gradient that is not finite says that `s`
/// is too large: the optimizer step is left out, and `s ← s · backoff_factor`. After `growth_interval` steps in a row without one,
/// `s ← s · growth_factor`, unless that is infinite.
///
/// A loop of your own calls [`scale`](Self::scale) before the backward pass, [`unscale`](Self::unscale) for each group of
/// parameters before clipping, steps if [`found_inf`](Self::found_inf) is false, and calls [`update`](Self::update) last.
///
/// **A step that is left out does not advance the learning-rate schedule, but counts as a step.** So it is in `transformers.Trainer`
/// 5.23: its loop calls `lr_scheduler.step()` only if `accelerator.optimizer_step_was_skipped` is false, and adds 1 to `global_step`
/// either way. A run with `k` such steps therefore ends `k` steps before the end of its schedule.
///
/// ```
/// use ferrotune_precision::{DtypePolicy, GradScaler};
/// use tch::{Kind, Tensor};
///
/// let policy = DtypePolicy::from_flags(false, true)?; // fp16 = true
/// let weights = [[4i64, 2], [1, 4]].map(|shape| {
///     (Tensor::arange(shape[0] * shape[1], (Kind::Float, tch::Device::Cpu)).reshape(shape) * 0.1).set_requires_grad(true)
/// });
/// let (x, y) = (Tensor::from_slice2(&[[0.5f32, -1.0], [1.0, 0.25]]), Tensor::from_slice2(&[[1.0f32], [0.0]]));
/// let (mut scaler, mut losses) = (GradScaler::default(), Vec::new());
/// for _ in 0..40 {
///     let [hidden, output] = &weights;
///     let product = |x: &Tensor, w: &Tensor| policy.to_compute(x).and_then(|x| Ok(x.matmul(&policy.to_compute(w)?.tr())));
///     let prediction = product(&product(&x, hidden)?.tanh(), output)?;
///     let loss = policy.to_full(&prediction)?.mse_loss(&y, tch::Reduction::Mean);
///     losses.push(loss.double_value(&[]));
///     scaler.scale(&loss)?.backward();
///     let gradients = weights.each_ref().map(Tensor::grad);
///     scaler.unscale(&gradients)?;
///     if !scaler.found_inf() {
///         tch::no_grad(|| for (weight, gradient) in weights.iter().zip(&gradients) {
///             let _ = weight.shallow_clone().g_sub_(&(gradient * 0.5));
///         });
///     }
///     scaler.update()?;
///     weights.each_ref().map(|weight| weight.shallow_clone().zero_grad());
/// }
/// // The first scale was too large for f16: that step was left out, and the scale halved.
/// assert_eq!(losses[0], losses[1]);
/// assert_eq!((scaler.state().scale, scaler.state().growth_tracker), (32768.0, 39));
/// assert!(losses[39] < 1e-3 * losses[0], "{losses:?}");
/// # Ok::<(), ferrotune_precision::Error>(())
/// ```
///
/// # References
/// Micikevicius et al. 2017, arXiv:1710.03740; `torch/amp/grad_scaler.py`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GradScaler {
    state: GradScalerState,
    /// What the checks since the last update found; `None` if there was none.
    found_inf: Option<bool>,
}

/// The whole state of a [`GradScaler`] between two steps, under the names of torch's `state_dict`.
///
/// ```
/// use ferrotune_precision::{GradScaler, GradScalerState};
/// let scaler = GradScaler::from_state(GradScalerState { scale: 1024.0, ..GradScalerState::default() })?;
/// assert_eq!(scaler.state().growth_interval, 2000);
/// # Ok::<(), ferrotune_precision::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradScalerState {
    /// What the loss is multiplied by.
    pub scale: f32,
    /// What the scale is multiplied by after `growth_interval` finite steps in a row; above 1.
    pub growth_factor: f64,
    /// What the scale is multiplied by after a step with a gradient that is not finite; below 1.
    pub backoff_factor: f64,
    /// Finite steps in a row before the scale grows.
    pub growth_interval: u32,
    /// Finite steps in a row so far.
    #[serde(rename = "_growth_tracker")]
    pub growth_tracker: u32,
}

impl Default for GradScalerState {
    /// The constants of `torch.amp.GradScaler`.
    fn default() -> Self {
        Self {
            scale: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
            growth_tracker: 0,
        }
    }
}

impl GradScaler {
    /// A scaler that goes on from `state`.
    ///
    /// # Errors
    /// [`Error::InvalidGradScaler`] with the name of a number that no scaler can use.
    pub fn from_state(state: GradScalerState) -> Result<Self> {
        let check = |holds: bool, field, found: f64, expected| {
            if holds { Ok(()) } else { Err(Error::InvalidGradScaler { field, found, expected }) }
        };
        let GradScalerState { scale, growth_factor, backoff_factor, growth_interval, .. } = state;
        check(scale > 0.0 && scale.is_finite(), "scale", scale.into(), "a finite number above 0")?;
        check(
            growth_factor > 1.0 && growth_factor.is_finite(),
            "growth_factor",
            growth_factor,
            "a finite number above 1",
        )?;
        check(
            backoff_factor > 0.0 && backoff_factor < 1.0,
            "backoff_factor",
            backoff_factor,
            "a number above 0 and below 1",
        )?;
        check(growth_interval > 0, "growth_interval", growth_interval.into(), "at least 1")?;
        Ok(Self { state, found_inf: None })
    }

    /// The state to keep in a checkpoint, after [`GradScaler::update`].
    pub fn state(&self) -> GradScalerState {
        self.state
    }

    /// The scaled loss, whose backward pass gives scaled gradients. A single number in 16 bits becomes `f32`, which the default scale
    /// needs.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn scale(&self, loss: &Tensor) -> Result<Tensor> {
        // A tensor, not a number: that would leave a half loss a half, and 65536 is more than it holds.
        let scale = Tensor::from(self.state.scale).f_to_device(loss.device()).context("scaling the loss")?;
        loss.f_mul(&scale).context("scaling the loss")
    }

    /// Divides the gradients of one group of parameters by the scale, in place, and notes whether one is not finite. Each group
    /// once a step; each gradient in memory of its own.
    ///
    /// # Errors
    /// [`Error::HalfGradient`] for a gradient in `f16`: what underflowed there, no division brings back; [`Error::Torch`].
    pub fn unscale<'a>(&mut self, gradients: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let inverse = (1.0 / f64::from(self.state.scale)) as f32;
        for (index, gradient) in gradients.into_iter().enumerate() {
            if gradient.f_kind().context("unscaling a gradient")? == Kind::Half {
                return Err(Error::HalfGradient { index });
            }
            let finite = gradient
                .f_isfinite()
                .and_then(|finite| finite.f_all()?.f_int64_value(&[]))
                .context("looking for gradients that are not finite")?;
            self.found_inf = Some(self.found_inf() || finite == 0);
            // A handle: what is changed is the memory of both.
            let mut unscaled = gradient.shallow_clone();
            let _ = unscaled.f_mul_scalar_(f64::from(inverse)).context("unscaling a gradient")?;
        }
        // A group without a gradient was checked, too.
        self.found_inf.get_or_insert(false);
        Ok(())
    }

    /// Whether a gradient since the last [`update`](Self::update) was not finite: the optimizer must not step, and the schedule stays.
    pub fn found_inf(&self) -> bool {
        self.found_inf.unwrap_or(false)
    }

    /// Ends the step: shrinks the scale, or counts the step and grows the scale when it is time.
    ///
    /// # Errors
    /// [`Error::NoInfCheck`] if there was no [`unscale`](Self::unscale) since the last update.
    pub fn update(&mut self) -> Result<()> {
        let found_inf = self.found_inf.take().ok_or(Error::NoInfCheck)?;
        let state = &mut self.state;
        let times = |factor: f64| (f64::from(state.scale) * factor) as f32;
        if found_inf {
            state.scale = times(state.backoff_factor);
            state.growth_tracker = 0;
        } else if state.growth_tracker + 1 >= state.growth_interval {
            let grown = times(state.growth_factor);
            if grown.is_finite() {
                state.scale = grown;
            }
            state.growth_tracker = 0;
        } else {
            state.growth_tracker += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_loss_does_not_overflow_in_being_scaled() {
        let loss = Tensor::from(2.0f32).to_kind(Kind::Half);
        let scaled = GradScaler::default().scale(&loss).unwrap();
        assert_eq!((scaled.kind(), scaled.double_value(&[])), (Kind::Float, 131_072.0));
    }

    #[test]
    fn a_bad_gradient_of_any_group_counts_until_the_update() {
        let mut scaler = GradScaler::default();
        for groups in [[f32::NAN, 1.0], [1.0, f32::INFINITY]] {
            for gradient in groups {
                scaler.unscale(&[Tensor::from_slice(&[0.0, gradient])]).unwrap();
            }
            assert!(scaler.found_inf());
            scaler.update().unwrap();
            assert!(!scaler.found_inf());
        }
        assert_eq!(scaler.state().scale, 16384.0);
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let mut scaler = GradScaler::default();
        assert!(matches!(scaler.update(), Err(Error::NoInfCheck)));
        let half = Tensor::from_slice(&[1.0f32]).to_kind(Kind::Half);
        let found = scaler.unscale([&Tensor::from(1.0f32), &half]);
        assert!(matches!(found, Err(Error::HalfGradient { index: 1 })));
        // libtorch compares no sparse tensors.
        let sparse = Tensor::from_slice(&[1.0f32]).to_sparse_sparse_dim(1);
        assert!(matches!(scaler.unscale([&sparse]), Err(Error::Torch { .. })));
        let fresh = GradScalerState::default();
        for (field, state) in [
            ("scale", GradScalerState { scale: f32::NAN, ..fresh }),
            ("growth_factor", GradScalerState { growth_factor: 1.0, ..fresh }),
            ("backoff_factor", GradScalerState { backoff_factor: 1.0, ..fresh }),
            ("growth_interval", GradScalerState { growth_interval: 0, ..fresh }),
        ] {
            let error = GradScaler::from_state(state).unwrap_err();
            assert!(
                matches!(error, Error::InvalidGradScaler { field: found, .. } if found == field),
                "{error}"
            );
        }
    }
}
