//! Whether several ways to compute one training step give the same loss and gradients.

use crate::error::{BoxedError, Error, Result};
use tch::{Kind, Tensor};

/// Collects the losses of one way to compute a step, and their gradients.
#[derive(Debug)]
pub struct Step<'a> {
    parameters: &'a [(String, Tensor)],
    loss: f64,
    gradients: Vec<Option<Tensor>>,
}

impl Step<'_> {
    /// Runs backward from a scalar and adds its value to the loss of the step; its graph is freed.
    ///
    /// A step that accumulates calls this once a micro-batch.
    ///
    /// # Errors
    /// libtorch's, for a loss that is no scalar or depends on no parameter.
    pub fn backward(&mut self, loss: &Tensor) -> std::result::Result<(), tch::TchError> {
        let parameters: Vec<&Tensor> = self.parameters.iter().map(|(_, tensor)| tensor).collect();
        let gradients = Tensor::f_run_backward(&[loss], &parameters, false, false)?;
        for (sum, gradient) in self.gradients.iter_mut().zip(gradients) {
            if gradient.defined() {
                let gradient = gradient.f_detach()?.f_to_kind(Kind::Double)?;
                *sum = Some(match sum.take() {
                    Some(sum) => sum.f_add(&gradient)?,
                    None => gradient,
                });
            }
        }
        self.loss += loss.f_double_value(&[])?;
        Ok(())
    }
}

/// One way to compute a training step: hands each of its losses to [`Step::backward`].
pub type Way<'a> = &'a dyn Fn(&mut Step<'_>) -> std::result::Result<(), BoxedError>;

/// Holds every way to compute a step to the first: the same loss, and the same gradient of every parameter.
///
/// Packing, accumulation, checkpointing and sharding must not change what a model learns, and mistakes in them (a mean of means, a
/// sequence that sees its neighbour, a mask drawn twice) show in nothing but slightly wrong gradients. Write each way as a closure over
/// your model and compare them in a test. `tolerance` bounds `|loss - reference| / |reference|` and, for each parameter,
/// `||gradient - reference|| / ||reference||`; 0 asks for the same bits, 1e-5 suits f32.
///
/// # Errors
/// [`Error::TrainingDiffers`] names the way and what differs most: the loss, or a parameter by its name; also if a parameter has a gradient
/// in one way and none in the other, or in no way at all. [`Error::Forward`] carries what a way itself returned.
///
/// # Examples
/// ```
/// use ferrotune_autograd::{Step, assert_same_training, checkpoint, tch::{Device, Kind, Tensor}};
/// let weight = Tensor::rand([1, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let x = Tensor::rand([6, 4], (Kind::Float, Device::Cpu));
/// let loss = |rows: &Tensor| rows.f_linear(&weight, None::<&Tensor>)?.f_square()?.f_sum(Kind::Float);
///
/// let whole = |step: &mut Step| Ok(step.backward(&loss(&x)?)?);
/// let accumulated = |step: &mut Step| {
///     for rows in x.f_split(2, 0)? {
///         step.backward(&loss(&rows)?)?;
///     }
///     Ok(())
/// };
/// let parameters = [("weight".to_owned(), weight.shallow_clone())];
/// assert_same_training(&parameters, 1e-5, &[("whole", &whole), ("accumulated", &accumulated)])?;
/// # Ok::<(), ferrotune_autograd::Error>(())
/// ```
pub fn assert_same_training(
    parameters: &[(String, Tensor)],
    tolerance: f64,
    ways: &[(&str, Way<'_>)],
) -> Result<()> {
    let run = |way: Way<'_>| {
        let mut step = Step { parameters, loss: 0.0, gradients: parameters.iter().map(|_| None).collect() };
        way(&mut step).map_err(|source| Error::Forward { function: "a way to compute the step", source })?;
        Ok(step)
    };
    let Some((first, rest)) = ways.split_first() else { return Ok(()) };
    let reference = run(first.1)?;
    let without = parameters.iter().zip(&reference.gradients).find(|(_, gradient)| gradient.is_none());
    if let Some(((name, _), _)) = without {
        return Err(differs(first.0, name, f64::INFINITY, "it has no gradient at all"));
    }
    for (name, way) in rest {
        let step = run(*way)?;
        let distance = relative((step.loss - reference.loss).abs(), reference.loss.abs());
        if distance > tolerance {
            return Err(differs(
                name,
                "the loss",
                distance,
                &format!("{} against {}", step.loss, reference.loss),
            ));
        }
        let mut worst: Option<(f64, &str)> = None;
        for (((parameter, _), ours), expected) in
            parameters.iter().zip(&step.gradients).zip(&reference.gradients)
        {
            let (Some(ours), Some(expected)) = (ours, expected) else {
                return Err(differs(name, parameter, f64::INFINITY, "it has no gradient this way"));
            };
            let distance = relative_distance(ours, expected)
                .map_err(|error| differs(name, parameter, f64::INFINITY, &error.to_string()))?;
            if distance > tolerance && worst.is_none_or(|(worst, _)| distance > worst) {
                worst = Some((distance, parameter));
            }
        }
        if let Some((distance, parameter)) = worst {
            return Err(differs(name, parameter, distance, "its gradient differs most"));
        }
    }
    Ok(())
}

/// `||ours - reference|| / ||reference||`.
fn relative_distance(ours: &Tensor, reference: &Tensor) -> std::result::Result<f64, tch::TchError> {
    let norm = |tensor: &Tensor| tensor.f_norm()?.f_double_value(&[]);
    Ok(relative(norm(&ours.f_sub(reference)?)?, norm(reference)?))
}

/// `difference / size`, or the difference itself from a size of zero; infinite for what is not a number.
fn relative(difference: f64, size: f64) -> f64 {
    let distance = if size > 0.0 { difference / size } else { difference };
    if distance.is_nan() { f64::INFINITY } else { distance }
}

fn differs(way: &str, what: &str, distance: f64, how: &str) -> Error {
    Error::TrainingDiffers { way: way.to_owned(), what: what.to_owned(), distance, how: how.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checkpoint, live_functions};
    use tch::Device;

    struct Model {
        parameters: Vec<(String, Tensor)>,
        x: Tensor,
    }

    impl Model {
        fn new() -> Self {
            let values = |count: i64, shift: f64| {
                (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7 + shift).sin()
            };
            let leaf = |name: &str, shape: [i64; 2], shift: f64| {
                (name.to_owned(), values(shape[0] * shape[1], shift).reshape(shape).set_requires_grad(true))
            };
            let parameters = vec![leaf("up", [8, 4], 0.1), leaf("down", [1, 8], 0.2)];
            Self { parameters, x: values(20, 0.3).reshape([5, 4]) }
        }

        fn loss(&self, rows: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
            let hidden = rows.f_linear(&self.parameters[0].1, None::<&Tensor>)?.f_tanh()?;
            hidden.f_linear(&self.parameters[1].1, None::<&Tensor>)?.f_square()?.f_sum(Kind::Float)
        }

        fn whole(&self, step: &mut Step<'_>) -> std::result::Result<(), BoxedError> {
            Ok(step.backward(&self.loss(&self.x)?)?)
        }

        /// Rows in groups of 3 and 2, each loss times `weight`.
        fn accumulated(&self, step: &mut Step<'_>, weight: f64) -> std::result::Result<(), BoxedError> {
            for rows in self.x.f_split(3, 0)? {
                step.backward(&(self.loss(&rows)? * weight))?;
            }
            Ok(())
        }

        fn hold(&self, other: Way<'_>) -> Result<()> {
            let whole = |step: &mut Step<'_>| self.whole(step);
            assert_same_training(&self.parameters, 1e-6, &[("whole", &whole), ("other", other)])
        }
    }

    #[test]
    fn the_same_sum_in_parts_and_checkpointed_is_the_same_training() {
        let model = Model::new();
        model.hold(&|step| model.accumulated(step, 1.0)).unwrap();
        let before = live_functions();
        let kept = |step: &mut Step<'_>| {
            let (up, down) = (&model.parameters[0].1, &model.parameters[1].1);
            let captured = up.shallow_clone();
            let layer = move |x: &[Tensor]| Ok(vec![x[0].f_linear(&captured, None::<&Tensor>)?.f_tanh()?]);
            let hidden = checkpoint(layer, &[&model.x], &[up])?.remove(0);
            step.backward(&hidden.f_linear(down, None::<&Tensor>)?.f_square()?.f_sum(Kind::Float)?)?;
            Ok(())
        };
        model.hold(&kept).unwrap();
        assert_eq!(live_functions(), before);
    }

    #[test]
    fn a_loss_that_is_scaled_is_named() {
        let model = Model::new();
        let error = model.hold(&|step| model.accumulated(step, 0.5)).unwrap_err();
        let Error::TrainingDiffers { way, what, distance, .. } = error else { panic!("{error}") };
        assert_eq!((way.as_str(), what.as_str()), ("other", "the loss"));
        assert!((distance - 0.5).abs() < 1e-5);
    }

    #[test]
    fn a_gradient_that_is_cut_off_or_wrong_is_named() {
        let model = Model::new();
        let cut = |step: &mut Step<'_>| {
            let hidden = model.x.f_linear(&model.parameters[0].1.detach(), None::<&Tensor>)?.f_tanh()?;
            Ok(step.backward(
                &hidden.f_linear(&model.parameters[1].1, None::<&Tensor>)?.f_square()?.f_sum(Kind::Float)?,
            )?)
        };
        let error = model.hold(&cut).unwrap_err().to_string();
        assert!(
            error.contains("`other`") && error.contains("up") && error.contains("no gradient"),
            "{error}"
        );
        // The same value of the loss, the gradient of `up` doubled.
        let doubled = |step: &mut Step<'_>| {
            let up = &model.parameters[0].1;
            let hidden = model.x.f_linear(&(up * 2.0 - up.detach()), None::<&Tensor>)?.f_tanh()?;
            Ok(step.backward(
                &hidden.f_linear(&model.parameters[1].1, None::<&Tensor>)?.f_square()?.f_sum(Kind::Float)?,
            )?)
        };
        let error = model.hold(&doubled).unwrap_err();
        assert!(
            matches!(&error, Error::TrainingDiffers { what, distance, .. } if what == "up" && (distance - 1.0).abs() < 1e-5),
            "{error}"
        );
    }

    #[test]
    fn a_parameter_that_no_way_reaches_is_told() {
        let mut model = Model::new();
        model
            .parameters
            .push(("unused".into(), Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true)));
        let error = model.hold(&|step| model.whole(step)).unwrap_err().to_string();
        assert!(error.contains("unused") && error.contains("no gradient at all"), "{error}");
    }
}
