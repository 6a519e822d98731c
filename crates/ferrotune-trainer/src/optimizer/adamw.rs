//! Adam with decoupled weight decay.
//!
//! The step itself is [`adamw_step`]: all parameters in one pass.
//!
//! # References
//! Loshchilov and Hutter 2019, arXiv:1711.05101.

use ferrotune_kernels::{AdamWParameter, AdamWStep, adamw_step};
use tch::{Kind, Tensor};

use crate::error::Context;
use crate::gradient::check_parameters;
use crate::{Error, Gradients, Result, TrainingArguments};

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

#[derive(Debug)]
struct Slot {
    decays: bool,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// The optimizer: named `f32` parameters and their moments.
///
/// Parameters whose names mark a bias or a norm do not decay ([`decays`]).
///
/// ```
/// use ferrotune_trainer::{AdamW, AdamWOptions, Gradients};
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
    parameters: Vec<(String, Tensor)>,
    slots: Vec<Slot>,
    steps: i64,
}

impl AdamW {
    /// An optimizer of `parameters` (shallow clones: they change in place) with moments of zero.
    ///
    /// # Errors
    /// [`Error::NoTrainableParameters`], [`Error::DuplicateParameter`], [`Error::UnfitParameter`] for one that is frozen, not a leaf
    /// or not `f32`; [`Error::Torch`] if libtorch fails.
    pub fn new(parameters: Vec<(String, Tensor)>, options: AdamWOptions) -> Result<Self> {
        check_parameters(&parameters, Kind::Float)?;
        let slots = parameters
            .iter()
            .map(|(name, parameter)| {
                let zeros = || parameter.f_detach()?.f_zeros_like();
                Ok(Slot {
                    decays: decays(name),
                    exp_avg: zeros().context("making the optimizer's state")?,
                    exp_avg_sq: zeros().context("making the optimizer's state")?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { options, parameters, slots, steps: 0 })
    }

    /// The parameters, in the order given.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Moves every parameter by one step of rate `learning_rate`.
    ///
    /// # Errors
    /// [`Error::MissingGradient`]; [`Error::StateMismatch`] if the gradients are those of other parameters; [`Error::Torch`] if
    /// libtorch fails. Gradients are checked before the first parameter moves.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step_scaled(gradients, learning_rate, 1.0)
    }

    /// [`AdamW::step`] with every gradient times `gradient_scale`, such as [`Gradients::clip_coefficient`] gives: clipping costs no
    /// pass of its own.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_scaled(
        &mut self,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        let tensors = self.matched(gradients)?;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let step = AdamWStep { step: self.steps + 1, learning_rate, beta1, beta2, epsilon, gradient_scale };
        let mut parameters: Vec<AdamWParameter> = self
            .parameters
            .iter_mut()
            .zip(&mut self.slots)
            .zip(tensors)
            .map(|(((_, parameter), Slot { decays, exp_avg, exp_avg_sq }), gradient)| AdamWParameter {
                parameter,
                exp_avg,
                exp_avg_sq,
                gradient,
                weight_decay: if *decays { weight_decay } else { 0.0 },
            })
            .collect();
        adamw_step(&mut parameters, step).context("the optimizer step")?;
        self.steps += 1;
        Ok(())
    }

    /// Clears the gradients that a plain `backward()` leaves in the parameters (to zero, as tch does). [`Gradients::backward`]
    /// leaves none there.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (_, parameter) in &self.parameters {
            let mut gradient = parameter.f_grad().context("clearing a gradient")?;
            if gradient.defined() {
                let _ = gradient.f_detach_().and_then(|mut g| g.f_zero_()).context("clearing a gradient")?;
            }
        }
        Ok(())
    }

    /// The state as named tensors: `step`, and `NAME.exp_avg` and `NAME.exp_avg_sq` of each parameter. They are copies.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = vec![(STEP.to_owned(), Tensor::from(self.steps))];
        for ((name, _), slot) in self.parameters.iter().zip(&self.slots) {
            for (moment, tensor) in [("exp_avg", &slot.exp_avg), ("exp_avg_sq", &slot.exp_avg_sq)] {
                state.push((
                    format!("{name}.{moment}"),
                    tensor.f_detach_copy().context("copying the optimizer's state")?,
                ));
            }
        }
        Ok(state)
    }

    /// Takes over a state that [`AdamW::state`] gave, whatever its order.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] names a tensor that is missing, unknown, or of another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        let mismatch = |tensor: &str, expected: String, found: String| Error::StateMismatch {
            what: "optimizer state",
            tensor: tensor.to_owned(),
            expected,
            found,
        };
        let find = |name: &str| -> Result<&Tensor> {
            let (_, tensor) = state
                .iter()
                .find(|(other, _)| other == name)
                .ok_or_else(|| mismatch(name, "a tensor of this name".into(), "none".into()))?;
            Ok(tensor)
        };
        let steps = find(STEP)?;
        let found =
            format!("{:?} {:?}", steps.f_kind().context("reading the optimizer's state")?, steps.size());
        if found != "Int64 []" {
            return Err(mismatch(STEP, "Int64 []".into(), found));
        }
        let steps = steps.f_int64_value(&[]).context("reading the optimizer's state")?;
        if steps < 0 {
            return Err(mismatch(STEP, "a number of at least 0".into(), steps.to_string()));
        }
        let mut slots = Vec::with_capacity(self.slots.len());
        for ((name, parameter), slot) in self.parameters.iter().zip(&self.slots) {
            let moment = |suffix: &str| -> Result<Tensor> {
                let name = format!("{name}.{suffix}");
                let tensor = find(&name)?;
                let shape = |tensor: &Tensor| -> Result<String> {
                    Ok(format!(
                        "{:?} {:?}",
                        tensor.f_kind().context("reading the optimizer's state")?,
                        tensor.size()
                    ))
                };
                let (expected, found) = (shape(parameter)?, shape(tensor)?);
                if expected != found {
                    return Err(mismatch(&name, expected, found));
                }
                let here = tensor.f_to_device(parameter.device()).context("reading the optimizer's state")?;
                // A copy, even where it is on the right device already: the state moves in place.
                here.f_detach_copy().context("reading the optimizer's state")
            };
            slots.push(Slot {
                decays: slot.decays,
                exp_avg: moment("exp_avg")?,
                exp_avg_sq: moment("exp_avg_sq")?,
            });
        }
        if let Some((unknown, _)) = state.iter().find(|(name, _)| {
            name != STEP
                && !self.parameters.iter().any(|(parameter, _)| {
                    name.strip_prefix(parameter.as_str())
                        .is_some_and(|rest| rest == ".exp_avg" || rest == ".exp_avg_sq")
                })
        }) {
            return Err(mismatch(
                unknown,
                "the name of a parameter and a moment".into(),
                "no such parameter".into(),
            ));
        }
        self.steps = steps;
        self.slots = slots;
        Ok(())
    }

    fn matched<'a>(&self, gradients: &'a Gradients) -> Result<Vec<&'a Tensor>> {
        let tensors = gradients.all()?;
        let mismatch = |tensor: &str, expected: String, found: String| {
            Err(Error::StateMismatch { what: "gradients", tensor: tensor.to_owned(), expected, found })
        };
        if tensors.len() != self.parameters.len() {
            return mismatch(
                "all",
                format!("{} gradients", self.parameters.len()),
                format!("{} gradients", tensors.len()),
            );
        }
        for (((name, parameter), (found, _)), gradient) in
            self.parameters.iter().zip(gradients.iter()).zip(&tensors)
        {
            if name != found {
                return mismatch(name, format!("the gradient of {name}"), format!("that of {found}"));
            }
            if parameter.size() != gradient.size() {
                return mismatch(name, format!("{:?}", parameter.size()), format!("{:?}", gradient.size()));
            }
        }
        Ok(tensors)
    }
}

const STEP: &str = "step";

/// Whether weight decay acts on a parameter of this name: not if it is a bias or belongs to a norm.
///
/// ```
/// use ferrotune_trainer::decays;
/// assert!(decays("model.layers.0.self_attn.q_proj.lora_A.weight"));
/// assert!(!decays("model.layers.0.input_layernorm.weight"));
/// assert!(!decays("model.norm.weight") && !decays("lm_head.bias"));
/// assert!(decays("model.normalizer.weight"));
/// ```
///
/// # References
/// `transformers.Trainer.get_decay_parameter_names` 5.23, which also leaves out every `torch.nn.LayerNorm`, however it is called.
pub fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    let holds = ["bias", "layernorm", "rmsnorm"].into_iter().any(|word| name.contains(word));
    !holds && !name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
}
