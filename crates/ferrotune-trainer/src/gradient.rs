//! The gradients of one optimizer step.
//!
//! They are asked of libtorch for the named parameters alone and kept here, not in the parameters' own `grad`: a parameter that the
//! loss does not reach has no gradient rather than a zero or a stale one, so that its absence can be seen.

use ferrotune_kernels::{add_all, squared_norms};
use ferrotune_precision::GradScaler;
use tch::{Kind, Tensor};

use crate::error::{Context, Place};
use crate::{Error, Result};

/// One gradient, or none yet, for each of a list of named parameters.
///
/// ```
/// use ferrotune_trainer::Gradients;
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::from_slice(&[3.0f32, 4.0]).set_requires_grad(true);
/// let parameters = vec![("weight".to_string(), weight.shallow_clone())];
/// let mut gradients = Gradients::new(&parameters);
/// assert!(gradients.norm().is_err()); // "weight" has none
/// gradients.backward(&(&weight * &weight).sum(Kind::Float).f_div_scalar(2.0)?, &parameters)?;
/// assert_eq!(gradients.norm()?, 5.0);
/// gradients.scale_to(1.0, 5.0)?;
/// assert!((gradients.norm()? - 1.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Gradients {
    entries: Vec<(String, Option<Tensor>)>,
    /// Whether the gradient at this place was made here, in memory that no other tensor shares.
    owned: Vec<bool>,
}

impl Gradients {
    /// No gradient yet for any of the parameters.
    pub fn new(parameters: &[(String, Tensor)]) -> Self {
        Self {
            entries: parameters.iter().map(|(name, _)| (name.clone(), None)).collect(),
            owned: vec![false; parameters.len()],
        }
    }

    /// The gradients that a plain `backward()` of a loop of your own left in the parameters.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn of(parameters: &[(String, Tensor)]) -> Result<Self> {
        let mut gradients = Self::new(parameters);
        for ((_, slot), (_, parameter)) in gradients.entries.iter_mut().zip(parameters) {
            let gradient = parameter.f_grad().context("reading a gradient")?;
            *slot = gradient.defined().then_some(gradient);
        }
        Ok(gradients)
    }

    /// Adds the gradients of `loss` with respect to the parameters (those that `self` was made for, in the same order).
    ///
    /// From the third call on sums change in place: a shallow clone of one changes with it.
    ///
    /// # Errors
    /// [`Error::UnfitLoss`] if the loss is not a single number or depends on nothing trainable; [`Error::Torch`] if libtorch fails.
    pub fn backward(&mut self, loss: &Tensor, parameters: &[(String, Tensor)]) -> Result<()> {
        if loss.numel() != 1 || !loss.requires_grad() {
            return Err(Error::UnfitLoss {
                expected: "one number that depends on a trainable parameter",
                found: match loss.requires_grad() {
                    true => format!("a tensor of shape {:?}", loss.size()),
                    false => format!("a tensor of shape {:?} without a gradient function", loss.size()),
                },
                place: Box::default(),
            });
        }
        let leaves: Vec<&Tensor> = parameters.iter().map(|(_, parameter)| parameter).collect();
        let new = Tensor::f_run_backward(&[loss], &leaves, false, false).context("the backward pass")?;
        let _guard = tch::no_grad_guard();
        let (mut sums, mut addends) = (Vec::new(), Vec::new());
        for (((_, slot), owned), gradient) in self.entries.iter_mut().zip(&mut self.owned).zip(&new) {
            if !gradient.defined() {
                continue;
            }
            let Some(sum) = slot else {
                *slot = Some(gradient.shallow_clone());
                continue;
            };
            if *owned {
                sums.push(sum);
                addends.push(gradient);
            } else {
                // Out of place: libtorch may return one tensor, or an expanded view, for two parameters.
                *sum = sum.f_add(gradient).context("summing gradients")?;
                *owned = true;
            }
        }
        add_all(&mut sums, &addends).context("summing gradients")
    }

    /// The names, and the gradients there are.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Tensor>)> {
        self.entries.iter().map(|(name, gradient)| (name.as_str(), gradient.as_ref()))
    }

    /// The names, and the gradients to change or to set: for a [`crate::GradientReducer`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Option<Tensor>)> {
        // What is set from outside may share its memory.
        self.owned.fill(false);
        self.entries.iter_mut().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// The gradients, one per parameter.
    ///
    /// # Errors
    /// [`Error::MissingGradient`] with every parameter that has none.
    pub fn all(&self) -> Result<Vec<&Tensor>> {
        let missing: Vec<String> =
            self.iter().filter(|(_, gradient)| gradient.is_none()).map(|(name, _)| name.to_owned()).collect();
        if missing.is_empty() {
            Ok(self.entries.iter().filter_map(|(_, gradient)| gradient.as_ref()).collect())
        } else {
            Err(Error::MissingGradient { parameters: missing, place: Box::default() })
        }
    }

    /// The norm of all gradients as one vector, `sqrt(sum_i |g_i|^2)`, once it is certain that none is missing and all are finite.
    ///
    /// # Errors
    /// [`Error::MissingGradient`] and [`Error::NonFiniteGradient`], with the names of the parameters.
    ///
    /// # References
    /// `torch.nn.utils.get_total_norm`.
    pub fn norm(&self) -> Result<f64> {
        let squares = squared_norms(&self.all()?).context("the gradient norm")?;
        // Beyond f32 the moments overflow: as bad as an infinite gradient.
        let finite = |square: f64| (square as f32).is_finite();
        let total: f64 = squares.iter().sum();
        if finite(total) {
            return Ok(total.sqrt());
        }
        let mut parameters: Vec<String> = self
            .entries
            .iter()
            .zip(&squares)
            .filter(|(_, square)| !finite(**square))
            .map(|((name, _), _)| name.clone())
            .collect();
        if parameters.is_empty() {
            parameters = self.entries.iter().map(|(name, _)| name.clone()).collect();
        }
        Err(Error::NonFiniteGradient { parameters, place: Box::default() })
    }

    /// The factor that scales gradients of norm `norm` down to `max_norm`: `min(1, max_norm / (norm + 1e-6))`.
    ///
    /// # References
    /// `torch.nn.utils.clip_grads_with_norm_`.
    pub fn clip_coefficient(max_norm: f64, norm: f64) -> f64 {
        // In f32, as the reference does.
        f64::from((max_norm as f32 / (norm as f32 + 1e-6)).min(1.0))
    }

    /// Scales the gradients, of norm `norm`, down to `max_norm`; smaller ones stay as they are.
    ///
    /// `g = g * clip_coefficient(max_norm, norm)`. An optimizer step does so on its way: [`Optimizer::step_scaled`](crate::Optimizer::step_scaled).
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn scale_to(&mut self, max_norm: f64, norm: f64) -> Result<()> {
        let coefficient = Self::clip_coefficient(max_norm, norm);
        if coefficient == 1.0 {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        for ((_, gradient), owned) in self.entries.iter_mut().zip(&mut self.owned) {
            let Some(gradient) = gradient else { continue };
            // Out of place for the reason given in `backward`.
            *gradient = gradient.f_mul_scalar(coefficient).context("clipping gradients")?;
            *owned = true;
        }
        Ok(())
    }

    /// Divides the gradients of a scaled loss by the scale; `scaler` notes whether one is not finite.
    ///
    /// # Errors
    /// [`Error::MissingGradient`]; [`Error::Precision`] or [`Error::Torch`] if libtorch fails.
    pub fn unscale(&mut self, scaler: &mut GradScaler) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for ((_, gradient), owned) in self.entries.iter_mut().zip(&mut self.owned) {
            // For the reason given in `backward`.
            if let (Some(gradient), false) = (gradient, *owned) {
                *gradient = gradient.f_detach_copy().context("unscaling gradients")?;
                *owned = true;
            }
        }
        scaler.unscale(self.all()?).map_err(Error::Precision)
    }

    /// Clips as `torch.nn.utils.clip_grad_norm_` does, and returns the norm before it.
    ///
    /// # Errors
    /// As [`Gradients::norm`] and [`Gradients::scale_to`].
    pub fn clip_norm(&mut self, max_norm: f64) -> Result<f64> {
        let norm = self.norm()?;
        self.scale_to(max_norm, norm)?;
        Ok(norm)
    }
}

/// What a trainable parameter must be; anything else is refused before the first step.
pub(crate) fn check_parameters(parameters: &[(String, Tensor)], kind: Kind) -> Result<()> {
    if parameters.is_empty() {
        return Err(Error::NoTrainableParameters);
    }
    let mut names = std::collections::HashSet::new();
    for (name, parameter) in parameters {
        if !names.insert(name) {
            return Err(Error::DuplicateParameter { parameter: name.clone() });
        }
        let unfit = |expected: String, found: String| Error::UnfitParameter {
            parameter: name.clone(),
            expected,
            found,
        };
        if !parameter.requires_grad() {
            return Err(unfit("a tensor that requires a gradient".into(), "a frozen one".into()));
        }
        if !parameter.f_is_leaf().context("checking a parameter")? {
            return Err(unfit("a leaf".into(), "the result of an operation on other tensors".into()));
        }
        let found = parameter.f_kind().context("checking a parameter")?;
        if found != kind {
            return Err(unfit(format!("dtype {kind:?}"), format!("{found:?}")));
        }
    }
    Ok(())
}

/// The names of the parameters that have a NaN or an infinite element.
pub(crate) fn non_finite(parameters: &[(String, Tensor)]) -> Result<Vec<String>> {
    let _guard = tch::no_grad_guard();
    let mut names = Vec::new();
    for (name, parameter) in parameters {
        let finite = parameter.f_isfinite().and_then(|finite| finite.f_all()?.f_int64_value(&[]));
        if finite.context("checking a parameter")? == 0 {
            names.push(name.clone());
        }
    }
    Ok(names)
}

impl Place {
    pub(crate) fn boxed(step: usize, examples: Vec<String>) -> Box<Self> {
        Box::new(Self { step: Some(step), examples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    #[test]
    fn a_parameter_that_the_loss_does_not_reach_is_named() {
        let parameters = vec![("used".to_string(), leaf(&[1.0])), ("forgotten".to_string(), leaf(&[1.0]))];
        let mut gradients = Gradients::new(&parameters);
        gradients.backward(&parameters[0].1.sum(Kind::Float), &parameters).unwrap();
        let error = gradients.norm().unwrap_err();
        assert!(
            matches!(&error, Error::MissingGradient { parameters, .. } if parameters == &["forgotten"]),
            "{error}"
        );
    }

    #[test]
    fn micro_batches_add_up_even_where_libtorch_shares_one_gradient() {
        let parameters = vec![("a".to_string(), leaf(&[1.0, 2.0])), ("b".to_string(), leaf(&[5.0, 7.0]))];
        let mut gradients = Gradients::new(&parameters);
        for _ in 0..3 {
            // The gradient of a sum of a sum is one expanded element, the same for both.
            gradients.backward(&(&parameters[0].1 + &parameters[1].1).sum(Kind::Float), &parameters).unwrap();
        }
        assert!((gradients.clip_norm(0.6).unwrap() - 6.0).abs() < 1e-5);
        for (_, gradient) in gradients.iter() {
            let values = Vec::<f32>::try_from(gradient.unwrap()).unwrap();
            assert!(values.iter().all(|value| (value - 0.3).abs() < 1e-6), "{values:?}");
        }
    }

    #[test]
    fn sums_change_only_in_memory_of_their_own() {
        let parameters = vec![("a".to_string(), leaf(&[1.0, 2.0])), ("b".to_string(), leaf(&[5.0, 7.0]))];
        let mut gradients = Gradients::new(&parameters);
        let backward = |gradients: &mut Gradients| {
            let loss = (&parameters[0].1 + &parameters[1].1 * 3.0).sum(Kind::Float);
            gradients.backward(&loss, &parameters).unwrap();
        };
        for _ in 0..3 {
            backward(&mut gradients);
        }
        // A reducer sets one tensor for both.
        let shared = Tensor::from_slice(&[10.0f32, 20.0]);
        for (_, gradient) in gradients.iter_mut() {
            *gradient = Some(shared.shallow_clone());
        }
        for _ in 0..3 {
            backward(&mut gradients);
        }
        assert_eq!(Vec::<f32>::try_from(&shared).unwrap(), [10.0, 20.0]);
        let values: Vec<Vec<f32>> =
            gradients.all().unwrap().iter().map(|g| Vec::try_from(*g).unwrap()).collect();
        assert_eq!(values, [[13.0, 23.0], [19.0, 29.0]]);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named_and_only_that_one() {
        for bad in [f32::NAN, f32::INFINITY] {
            let parameters = vec![("good".to_string(), leaf(&[1.0])), ("bad".to_string(), leaf(&[1.0]))];
            let mut gradients = Gradients::new(&parameters);
            let loss = &parameters[0].1 + &parameters[1].1 * f64::from(bad);
            gradients.backward(&loss, &parameters).unwrap();
            let error = gradients.norm().unwrap_err();
            assert!(
                matches!(&error, Error::NonFiniteGradient { parameters, .. } if parameters == &["bad"]),
                "{error}"
            );
        }
    }

    #[test]
    fn a_loss_without_a_gradient_function_is_an_error_and_no_crash() {
        let parameters = vec![("a".to_string(), leaf(&[1.0, 2.0]))];
        let mut gradients = Gradients::new(&parameters);
        for loss in [Tensor::from(1.0f32), parameters[0].1.detach().sum(Kind::Float), &parameters[0].1 * 2.0]
        {
            assert!(matches!(gradients.backward(&loss, &parameters), Err(Error::UnfitLoss { .. })));
        }
    }

    #[test]
    fn gradients_of_a_loop_of_ones_own_are_read_from_the_parameters() {
        let parameters = vec![("a".to_string(), leaf(&[3.0])), ("b".to_string(), leaf(&[1.0]))];
        (&parameters[0].1 * 2.0).sum(Kind::Float).backward();
        let gradients = Gradients::of(&parameters).unwrap();
        let found: Vec<bool> = gradients.iter().map(|(_, gradient)| gradient.is_some()).collect();
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn unfit_parameters_are_refused_by_name() {
        let named = |tensor: Tensor| vec![("weight".to_string(), tensor)];
        assert!(matches!(check_parameters(&[], Kind::Float), Err(Error::NoTrainableParameters)));
        let frozen = named(Tensor::from_slice(&[1.0f32]));
        let result = &leaf(&[1.0]) * 2.0;
        let double = named(Tensor::from_slice(&[1.0f64]).set_requires_grad(true));
        for parameters in [frozen, named(result), double] {
            let error = check_parameters(&parameters, Kind::Float).unwrap_err();
            assert!(
                matches!(&error, Error::UnfitParameter { parameter, .. } if parameter == "weight"),
                "{error}"
            );
        }
        let twice = vec![("weight".to_string(), leaf(&[1.0])), ("weight".to_string(), leaf(&[1.0]))];
        assert!(matches!(check_parameters(&twice, Kind::Float), Err(Error::DuplicateParameter { .. })));
    }
}
