//! What turns gradients into an update.

mod adamw;
mod parameter_group;
mod sgd;
mod state;

use std::fmt::Debug;

use tch::Tensor;

pub use adamw::{AdamW, AdamWOptions};
pub use parameter_group::{LoraPlus, ParameterGroup, decays};
pub use sgd::{Sgd, SgdOptions};
pub use state::OptimizerState;

use crate::error::Context;
use crate::{Error, Gradients, OptimizerName, Result, TrainingArguments};

/// What turns the gradients of a step into an update of the parameters.
///
/// For a checkpoint, [`Optimizer::state`] gives an [`OptimizerState`] `{ step, tensors: Vec<(String, Tensor)> }`, and
/// [`Optimizer::load_state`] of an optimizer that was made for the same parameters goes on from it, bit for bit; it checks names,
/// shapes and dtypes, and changes nothing if one does not fit. Learning rate and groups are no part of it: they come from the
/// arguments.
///
/// ```
/// use ferrotune_trainer::{AdamW, AdamWOptions, Gradients, Optimizer};
/// use tch::{Kind, Tensor};
/// let weight = Tensor::from_slice(&[1.0f32, -1.0]).set_requires_grad(true);
/// let parameters = || vec![("weight".to_string(), weight.shallow_clone())];
/// let mut optimizer: Box<dyn Optimizer> = Box::new(AdamW::new(parameters(), AdamWOptions::default())?);
/// let mut gradients = Gradients::new(optimizer.parameters());
/// gradients.backward(&weight.square().sum(Kind::Float), optimizer.parameters())?;
/// optimizer.step(&gradients, 0.05)?;
///
/// let state = optimizer.state()?;
/// assert_eq!((state.step, state.tensors[0].0.as_str()), (1, "weight.exp_avg"));
/// let mut later = AdamW::new(parameters(), AdamWOptions::default())?;
/// later.load_state(&state)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Optimizer: Debug {
    /// The parameters, in the order given.
    fn parameters(&self) -> &[(String, Tensor)];

    /// Gives each parameter the group that `rule` finds for its name and itself, in place of those it has.
    fn set_groups(&mut self, rule: &dyn Fn(&str, &Tensor) -> ParameterGroup);

    /// Moves every parameter by one step of rate `learning_rate`, times the factor of its group, along every gradient times
    /// `gradient_scale`, such as [`Gradients::clip_coefficient`] gives: clipping costs no pass of its own.
    ///
    /// # Errors
    /// [`Error::MissingGradient`]; [`Error::StateMismatch`] if the gradients are those of other parameters; [`Error::Torch`] if
    /// libtorch fails. Gradients are checked before the first parameter moves.
    fn step_scaled(&mut self, gradients: &Gradients, learning_rate: f64, gradient_scale: f64) -> Result<()>;

    /// [`Optimizer::step_scaled`] with the gradients as they are.
    ///
    /// # Errors
    /// As [`Optimizer::step_scaled`].
    fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step_scaled(gradients, learning_rate, 1.0)
    }

    /// The number of updates done and copies of the tensors.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    fn state(&self) -> Result<OptimizerState>;

    /// Takes over a state, whatever the order of its tensors.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] names a tensor that is missing, unknown, or of another shape or dtype; then nothing has changed.
    fn load_state(&mut self, state: &OptimizerState) -> Result<()>;
}

impl TrainingArguments {
    /// The optimizer that `optim` and `optim_args` name, with the groups that `weight_decay` and the arguments of LoRA+ make.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] and [`Error::UnknownName`] for `optim_args`; as [`AdamW::new`] for the parameters.
    pub fn optimizer(&self, parameters: Vec<(String, Tensor)>) -> Result<Box<dyn Optimizer>> {
        let mut optimizer: Box<dyn Optimizer> = match self.optim {
            OptimizerName::AdamWTorch | OptimizerName::AdamWTorchFused => {
                self.check_optim_args()?;
                Box::new(AdamW::new(parameters, AdamWOptions::from(self))?)
            }
            OptimizerName::Sgd => Box::new(Sgd::new(parameters, SgdOptions::try_from(self)?)?),
        };
        if let Some(plus) = LoraPlus::of(self) {
            optimizer.set_groups(&|name, parameter| plus.group(name, parameter));
        }
        Ok(optimizer)
    }

    /// Refuses `optim_args` that the optimizer does not take.
    pub(crate) fn check_optim_args(&self) -> Result<()> {
        if self.optim == OptimizerName::Sgd {
            return SgdOptions::try_from(self).map(drop);
        }
        match self.optim_args.as_deref().unwrap_or_default() {
            "" => Ok(()),
            given => Err(Error::InvalidArgument {
                field: "optim_args",
                found: format!("{given:?}"),
                expected: "none: AdamW is told by adam_beta1, adam_beta2, adam_epsilon and weight_decay",
            }),
        }
    }
}

/// The gradients of the parameters, one each, in their order.
fn matched<'a>(parameters: &[(String, Tensor)], gradients: &'a Gradients) -> Result<Vec<&'a Tensor>> {
    let tensors = gradients.all()?;
    let mismatch = |tensor: &str, expected: String, found: String| {
        Err(Error::StateMismatch { what: "gradients", tensor: tensor.to_owned(), expected, found })
    };
    if tensors.len() != parameters.len() {
        return mismatch(
            "all",
            format!("{} gradients", parameters.len()),
            format!("{} gradients", tensors.len()),
        );
    }
    for (((name, parameter), (found, _)), gradient) in parameters.iter().zip(gradients.iter()).zip(&tensors) {
        if name != found {
            return mismatch(name, format!("the gradient of {name}"), format!("that of {found}"));
        }
        if parameter.size() != gradient.size() {
            return mismatch(name, format!("{:?}", parameter.size()), format!("{:?}", gradient.size()));
        }
    }
    Ok(tensors)
}

/// A state of zeros for a parameter.
fn zeros(parameter: &Tensor) -> Result<Tensor> {
    parameter.f_detach().and_then(|tensor| tensor.f_zeros_like()).context("making the optimizer's state")
}

/// Copies of tensors, by name.
fn copies<'a>(tensors: impl IntoIterator<Item = (String, &'a Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let copy = |(name, tensor): (String, &Tensor)| {
        Ok((name, tensor.f_detach_copy().context("copying the optimizer's state")?))
    };
    tensors.into_iter().map(copy).collect()
}
