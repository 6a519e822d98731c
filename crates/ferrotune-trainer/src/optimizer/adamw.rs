//! Adam with decoupled weight decay.
//!
//! The step itself is [`adamw_step`]: all parameters in one pass.
//!
//! # References
//! Loshchilov and Hutter 2019, arXiv:1711.05101.

use ferrotune_kernels::{AdamWParameter, AdamWStep, adamw_step};
use tch::Tensor;

use super::parameter_group::Grouped;
use super::{Optimizer, OptimizerState, ParameterGroup, copies, matched, zeros};
use crate::error::Context;
use crate::{Gradients, Result, TrainingArguments};

/// The constants of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay of the parameters that decay.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// Those of [`TrainingArguments`]: no weight decay (`torch.optim.AdamW` itself has 0.01).
    fn default() -> Self {
        Self::from(&TrainingArguments::default())
    }
}

impl From<&TrainingArguments> for AdamWOptions {
    fn from(arguments: &TrainingArguments) -> Self {
        Self {
            beta1: arguments.adam_beta1,
            beta2: arguments.adam_beta2,
            epsilon: arguments.adam_epsilon,
            weight_decay: arguments.weight_decay,
        }
    }
}

/// The optimizer: named `f32` parameters and their moments.
///
/// Parameters whose names mark a bias or a norm do not decay ([`decays`](crate::decays)); [`Optimizer::set_groups`] changes that.
///
/// ```
/// use ferrotune_trainer::{AdamW, AdamWOptions, Gradients, Optimizer};
/// use tch::{Kind, Tensor};
/// let weight = Tensor::from_slice(&[1.0f32, -1.0]).set_requires_grad(true);
/// let parameters = || vec![("weight".to_string(), weight.shallow_clone())];
/// let mut optimizer = AdamW::new(parameters(), AdamWOptions::default())?;
/// for _ in 0..100 {
///     let mut gradients = Gradients::new(optimizer.parameters());
///     gradients.backward(&weight.square().sum(Kind::Float), optimizer.parameters())?;
///     optimizer.step(&gradients, 0.05)?;
/// }
/// assert!(weight.abs().max().double_value(&[]) < 0.1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    grouped: Grouped,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: usize,
}

const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";

impl AdamW {
    /// An optimizer of `parameters` (shallow clones: they change in place) with moments of zero.
    ///
    /// # Errors
    /// [`Error::NoTrainableParameters`](crate::Error::NoTrainableParameters),
    /// [`Error::DuplicateParameter`](crate::Error::DuplicateParameter),
    /// [`Error::UnfitParameter`](crate::Error::UnfitParameter) for one that is frozen, not a leaf or not `f32`;
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails.
    pub fn new(parameters: Vec<(String, Tensor)>, options: AdamWOptions) -> Result<Self> {
        let grouped = Grouped::new(parameters, options.weight_decay)?;
        let moments =
            || grouped.parameters.iter().map(|(_, parameter)| zeros(parameter)).collect::<Result<Vec<_>>>();
        let (exp_avg, exp_avg_sq) = (moments()?, moments()?);
        Ok(Self { options, grouped, exp_avg, exp_avg_sq, steps: 0 })
    }

    /// Clears the gradients that a plain `backward()` leaves in the parameters (to zero, as tch does). [`Gradients::backward`]
    /// leaves none there.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (_, parameter) in &self.grouped.parameters {
            let mut gradient = parameter.f_grad().context("clearing a gradient")?;
            if gradient.defined() {
                let _ = gradient.f_detach_().and_then(|mut g| g.f_zero_()).context("clearing a gradient")?;
            }
        }
        Ok(())
    }
}

impl Optimizer for AdamW {
    fn parameters(&self) -> &[(String, Tensor)] {
        &self.grouped.parameters
    }

    fn set_groups(&mut self, rule: &dyn Fn(&str, &Tensor) -> ParameterGroup) {
        self.grouped.set(rule);
    }

    fn step_scaled(&mut self, gradients: &Gradients, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let tensors = matched(&self.grouped.parameters, gradients)?;
        let AdamWOptions { beta1, beta2, epsilon, .. } = self.options;
        // One pass for all parameters of one rate.
        let mut passes: Vec<(f64, Vec<AdamWParameter<'_>>)> = Vec::new();
        let moments = self.exp_avg.iter_mut().zip(&mut self.exp_avg_sq);
        let parameters =
            self.grouped.parameters.iter_mut().zip(moments).zip(&self.grouped.groups).zip(tensors);
        for ((((_, parameter), (exp_avg, exp_avg_sq)), group), gradient) in parameters {
            let ParameterGroup { learning_rate_factor, weight_decay } = *group;
            let parameter = AdamWParameter { parameter, exp_avg, exp_avg_sq, gradient, weight_decay };
            match passes.iter_mut().find(|(factor, _)| *factor == learning_rate_factor) {
                Some((_, pass)) => pass.push(parameter),
                None => passes.push((learning_rate_factor, vec![parameter])),
            }
        }
        let step = i64::try_from(self.steps).unwrap_or(i64::MAX).saturating_add(1);
        for (factor, mut pass) in passes {
            let learning_rate = learning_rate * factor;
            let step = AdamWStep { step, learning_rate, beta1, beta2, epsilon, gradient_scale };
            adamw_step(&mut pass, step).context("the optimizer step")?;
        }
        self.steps += 1;
        Ok(())
    }

    fn state(&self) -> Result<OptimizerState> {
        let moments = self.exp_avg.iter().zip(&self.exp_avg_sq);
        let tensors =
            self.grouped.parameters.iter().zip(moments).flat_map(|((name, _), (exp_avg, exp_avg_sq))| {
                [(format!("{name}.{EXP_AVG}"), exp_avg), (format!("{name}.{EXP_AVG_SQ}"), exp_avg_sq)]
            });
        Ok(OptimizerState { step: self.steps, tensors: copies(tensors)? })
    }

    fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        state.check_names(&self.grouped.parameters, &[EXP_AVG, EXP_AVG_SQ])?;
        let exp_avg = state.copies(&self.grouped.parameters, EXP_AVG)?;
        let exp_avg_sq = state.copies(&self.grouped.parameters, EXP_AVG_SQ)?;
        (self.exp_avg, self.exp_avg_sq, self.steps) = (exp_avg, exp_avg_sq, state.step);
        Ok(())
    }
}
