//! Stochastic gradient descent with momentum.

use tch::Tensor;

use super::parameter_group::Grouped;
use super::{Optimizer, OptimizerState, ParameterGroup, copies, matched, zeros};
use crate::error::Context;
use crate::{Error, Gradients, Result, TrainingArguments};

/// The constants of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SgdOptions {
    /// The share of the last update's direction that is kept.
    pub momentum: f64,
    /// The share of a gradient that the momentum does not take up.
    pub dampening: f64,
    /// Whether the gradient is looked at from where the momentum leads.
    pub nesterov: bool,
    /// Added to the gradient, times the parameter, for parameters that decay.
    pub weight_decay: f64,
}

impl TryFrom<&TrainingArguments> for SgdOptions {
    type Error = Error;

    /// `weight_decay`, and what `optim_args` says: `"momentum=0.9,nesterov=true"`.
    fn try_from(arguments: &TrainingArguments) -> Result<Self> {
        const KNOWN: [&str; 3] = ["momentum", "dampening", "nesterov"];
        let mut options = Self { weight_decay: arguments.weight_decay, ..Self::default() };
        let settings = arguments.optim_args.iter().flat_map(|all| all.split(',')).map(str::trim);
        for setting in settings.filter(|setting| !setting.is_empty()) {
            let refused = |expected| Error::InvalidArgument {
                field: "optim_args",
                found: format!("{setting:?}"),
                expected,
            };
            let (name, value) =
                setting.split_once('=').ok_or_else(|| refused("name=value, or several with commas"))?;
            let number = || {
                let number =
                    value.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
                number.ok_or_else(|| refused("a number of at least 0"))
            };
            match name.trim() {
                "momentum" => options.momentum = number()?,
                "dampening" => options.dampening = number()?,
                "nesterov" => match value.trim().to_lowercase().as_str() {
                    "true" | "1" | "yes" => options.nesterov = true,
                    "false" | "0" | "no" => options.nesterov = false,
                    _ => return Err(refused("true or false")),
                },
                other => return Err(Error::unknown_name("optim_args", other, &KNOWN)),
            }
        }
        Ok(options)
    }
}

/// Gradient descent, with momentum if asked for: named `f32` parameters and, with momentum, one buffer each.
///
/// With `g` the gradient times `gradient_scale`, in the first step `b <- g`, later `b <- momentum b + (1 - dampening) g`:
///
/// ```text
/// g <- g + weight_decay p
/// p <- p - lr g                   without momentum
/// p <- p - lr b                   with it
/// p <- p - lr (g + momentum b)    with nesterov
/// ```
///
/// ```
/// use ferrotune_trainer::{Gradients, Optimizer, Sgd, SgdOptions};
/// use tch::{Kind, Tensor};
/// let weight = Tensor::from_slice(&[1.0f32, -1.0]).set_requires_grad(true);
/// let options = SgdOptions { momentum: 0.9, nesterov: true, ..Default::default() };
/// let mut optimizer = Sgd::new(vec![("weight".to_string(), weight.shallow_clone())], options)?;
/// for _ in 0..100 {
///     let mut gradients = Gradients::new(optimizer.parameters());
///     gradients.backward(&weight.square().sum(Kind::Float), optimizer.parameters())?;
///     optimizer.step(&gradients, 0.05)?;
/// }
/// assert!(weight.abs().max().double_value(&[]) < 0.01);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
/// Sutskever, Martens, Dahl and Hinton 2013, in the form of `torch.optim.SGD`.
#[derive(Debug)]
pub struct Sgd {
    options: SgdOptions,
    grouped: Grouped,
    /// Empty without momentum.
    buffers: Vec<Tensor>,
    steps: usize,
}

const BUFFER: &str = "momentum_buffer";

impl Sgd {
    /// An optimizer of `parameters` (shallow clones: they change in place).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for `nesterov` without momentum or with dampening; [`Error::NoTrainableParameters`],
    /// [`Error::DuplicateParameter`], [`Error::UnfitParameter`] for one that is frozen, not a leaf or not `f32`; [`Error::Torch`] if
    /// libtorch fails.
    pub fn new(parameters: Vec<(String, Tensor)>, options: SgdOptions) -> Result<Self> {
        let grouped = Grouped::new(parameters, options.weight_decay)?;
        if options.nesterov && (options.momentum == 0.0 || options.dampening != 0.0) {
            return Err(Error::InvalidArgument {
                field: "optim_args",
                found: format!("nesterov=true,momentum={},dampening={}", options.momentum, options.dampening),
                expected: "nesterov with a momentum above 0 and a dampening of 0",
            });
        }
        let buffers = match options.momentum {
            0.0 => Vec::new(),
            _ => grouped.parameters.iter().map(|(_, parameter)| zeros(parameter)).collect::<Result<_>>()?,
        };
        Ok(Self { options, grouped, buffers, steps: 0 })
    }
}

impl Optimizer for Sgd {
    fn parameters(&self) -> &[(String, Tensor)] {
        &self.grouped.parameters
    }

    fn set_groups(&mut self, rule: &dyn Fn(&str, &Tensor) -> ParameterGroup) {
        self.grouped.set(rule);
    }

    fn step_scaled(&mut self, gradients: &Gradients, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let tensors = matched(&self.grouped.parameters, gradients)?;
        let SgdOptions { momentum, dampening, nesterov, .. } = self.options;
        let first = self.steps == 0;
        let _no_grad = tch::no_grad_guard();
        let mut buffers = self.buffers.iter_mut();
        for (((_, parameter), group), gradient) in
            self.grouped.parameters.iter_mut().zip(&self.grouped.groups).zip(tensors)
        {
            let mut update = || {
                let mut direction = gradient.f_mul_scalar(gradient_scale)?;
                if group.weight_decay != 0.0 {
                    direction = direction.f_add(&parameter.f_mul_scalar(group.weight_decay)?)?;
                }
                if let Some(buffer) = buffers.next() {
                    if first {
                        buffer.f_copy_(&direction)?;
                    } else {
                        let _ = buffer
                            .f_mul_scalar_(momentum)?
                            .f_add_(&direction.f_mul_scalar(1.0 - dampening)?)?;
                    }
                    direction = if nesterov {
                        direction.f_add(&buffer.f_mul_scalar(momentum)?)?
                    } else {
                        buffer.shallow_clone()
                    };
                }
                let rate = learning_rate * group.learning_rate_factor;
                parameter.f_add_(&direction.f_mul_scalar(-rate)?)
            };
            let _ = update().context("the optimizer step")?;
        }
        self.steps += 1;
        Ok(())
    }

    fn state(&self) -> Result<OptimizerState> {
        let buffers = self.grouped.parameters.iter().zip(&self.buffers);
        let tensors = copies(buffers.map(|((name, _), buffer)| (format!("{name}.{BUFFER}"), buffer)))?;
        Ok(OptimizerState { step: self.steps, tensors })
    }

    fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        let kinds: &[&str] = if self.buffers.is_empty() { &[] } else { &[BUFFER] };
        state.check_names(&self.grouped.parameters, kinds)?;
        if !self.buffers.is_empty() {
            self.buffers = state.copies(&self.grouped.parameters, BUFFER)?;
        }
        self.steps = state.step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<SgdOptions> {
        let arguments = TrainingArguments { optim_args: Some(text.into()), ..Default::default() };
        SgdOptions::try_from(&arguments)
    }

    #[test]
    fn optim_args_are_read_as_people_write_them() {
        let expected = SgdOptions { momentum: 0.9, nesterov: true, ..Default::default() };
        assert_eq!(options("momentum=0.9, nesterov=True").unwrap(), expected);
        for (text, reason) in [
            ("momentun=0.9", "did you mean \"momentum\"?"),
            ("momentum", "name=value"),
            ("momentum=fast", "a number of at least 0"),
            ("nesterov=maybe", "true or false"),
        ] {
            let message = options(text).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        let weight = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let nesterov = SgdOptions { nesterov: true, ..Default::default() };
        let message = Sgd::new(vec![("weight".into(), weight)], nesterov).unwrap_err().to_string();
        assert!(message.contains("momentum above 0"), "{message}");
    }
}
