//! Analytic gradients held to numerical ones.

use crate::error::{BoxedError, Error, Result};
use tch::{Kind, Tensor};

/// Compares the gradients that backward gives with central differences.
///
/// For every element `x_i` of an input and every element `y_j` of an output the analytic derivative, from backward, has to agree with
/// `(y_j(x_i + epsilon) - y_j(x_i - epsilon)) / (2 epsilon)`: their difference is at most
/// `absolute_tolerance + relative_tolerance * |numerical|`. Each analytic gradient is computed twice and has to come out the same.
///
/// # Examples
/// ```
/// use ferrotune_autograd::{GradientCheck, tch::{Device, Kind, Tensor}};
/// let x = Tensor::rand([3, 4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
/// let w = Tensor::rand([2, 4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
/// GradientCheck::default().run(|inputs| Ok(vec![inputs[0].f_linear(&inputs[1], None::<&Tensor>)?.f_tanh()?]), &[x, w])?;
/// # Ok::<(), ferrotune_autograd::Error>(())
/// ```
///
/// # References
/// `torch.autograd.gradcheck`, whose defaults these are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientCheck {
    /// Step of the differences.
    pub epsilon: f64,
    /// Difference that is allowed whatever the size of the derivative.
    pub absolute_tolerance: f64,
    /// Difference that is allowed as a share of the numerical derivative.
    pub relative_tolerance: f64,
}

impl Default for GradientCheck {
    fn default() -> Self {
        Self { epsilon: 1e-6, absolute_tolerance: 1e-5, relative_tolerance: 1e-3 }
    }
}

impl GradientCheck {
    /// Checks `function` at `inputs`.
    ///
    /// Inputs that require a gradient are varied, one element at a time; the others are passed on as they are. The function must
    /// give the same outputs each time: fix the seed of whatever is random in it. Outputs that do not require a gradient are not
    /// differentiated. Tensors may have any strides, and no elements.
    ///
    /// # Errors
    /// [`Error::GradientMismatch`] names the input, the output and the element where the two differ most;
    /// [`Error::GradientChanged`] if the same backward gave two results; [`Error::GradientCheck`] if nothing can be checked: no
    /// input requires a gradient, one that does is not f64, no output depends on them; [`Error::Forward`] from the function itself.
    pub fn run(
        &self,
        function: impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, BoxedError>,
        inputs: &[Tensor],
    ) -> Result<()> {
        let varied: Vec<usize> = (0..inputs.len()).filter(|&index| inputs[index].requires_grad()).collect();
        if varied.is_empty() {
            return Err(cannot_check(
                "no input requires a gradient: call `set_requires_grad(true)` on those to vary",
            ));
        }
        if let Some(&index) = varied.iter().find(|&&index| inputs[index].kind() != Kind::Double) {
            return Err(cannot_check(format!(
                "input {index} is {:?}: differences are too coarse in anything but Double",
                inputs[index].kind()
            )));
        }
        let call = |inputs: &[Tensor]| {
            function(inputs).map_err(|source| Error::Forward { function: "the checked function", source })
        };
        let outputs = call(inputs)?;
        if !outputs.iter().any(Tensor::requires_grad) {
            return Err(cannot_check("no output depends on an input that requires a gradient"));
        }
        let wanted: Vec<&Tensor> = varied.iter().map(|&index| &inputs[index]).collect();
        for (output, tensor) in outputs.iter().enumerate() {
            if !tensor.requires_grad() || tensor.numel() == 0 {
                continue;
            }
            let jacobians = analytic_jacobians(tensor, &wanted).map_err(torch)?;
            let again = analytic_jacobians(tensor, &wanted).map_err(torch)?;
            for ((&input, analytic), again) in varied.iter().zip(&jacobians).zip(&again) {
                if inputs[input].numel() == 0 {
                    continue;
                }
                if !same_bits(analytic, again).map_err(torch)? {
                    return Err(Error::GradientChanged { input, output });
                }
                let numerical = self.numerical_jacobian(&call, inputs, input, output)?;
                self.compare(Place { input, output }, analytic, &numerical)?;
            }
        }
        Ok(())
    }

    /// `[elements of the output, elements of the input]`, by central differences.
    fn numerical_jacobian(
        &self,
        call: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
        inputs: &[Tensor],
        varied: usize,
        output: usize,
    ) -> Result<Tensor> {
        let moved_output = |element: usize, step: f64| -> Result<Tensor> {
            let moved = moved(&inputs[varied], element, step).map_err(torch)?;
            let inputs: Vec<Tensor> = (0..inputs.len())
                .map(|index| if index == varied { moved.shallow_clone() } else { inputs[index].detach() })
                .collect();
            let outputs = call(&inputs)?;
            let output = outputs.get(output).ok_or_else(|| {
                cannot_check("the function does not return the same number of outputs each time")
            })?;
            output.f_detach().and_then(|y| y.f_reshape([-1])).map_err(torch)
        };
        let columns: Vec<Tensor> = (0..inputs[varied].numel())
            .map(|element| {
                let (above, below) =
                    (moved_output(element, self.epsilon)?, moved_output(element, -self.epsilon)?);
                above.f_sub(&below).and_then(|y| y.f_div_scalar(2.0 * self.epsilon)).map_err(torch)
            })
            .collect::<Result<_>>()?;
        Tensor::f_stack(&columns, 1).map_err(torch)
    }

    fn compare(&self, place: Place, analytic: &Tensor, numerical: &Tensor) -> Result<()> {
        let excess = (|| {
            let allowed = numerical.f_abs()?.f_mul_scalar(self.relative_tolerance)?;
            let difference = analytic.f_sub(numerical)?.f_abs()?;
            let excess = difference.f_sub(&allowed.f_add_scalar(self.absolute_tolerance)?)?;
            // What is not a number is as wrong as can be.
            excess.f_nan_to_num(f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY)
        })()
        .map_err(torch)?;
        let worst = excess.f_argmax(None, false).and_then(|index| index.f_int64_value(&[])).map_err(torch)?;
        let at =
            |tensor: &Tensor| tensor.f_reshape([-1]).and_then(|t| t.f_double_value(&[worst])).map_err(torch);
        if at(&excess)? <= 0.0 {
            return Ok(());
        }
        let columns = analytic.size()[1];
        Err(Error::GradientMismatch {
            input: place.input,
            input_element: worst % columns,
            output: place.output,
            output_element: worst / columns,
            analytic: at(analytic)?,
            numerical: at(numerical)?,
        })
    }
}

/// Which output by which input.
#[derive(Clone, Copy)]
struct Place {
    input: usize,
    output: usize,
}

/// For each input, `[elements of the output, elements of the input]`, by one backward pass an element of the output.
fn analytic_jacobians(
    output: &Tensor,
    inputs: &[&Tensor],
) -> std::result::Result<Vec<Tensor>, tch::TchError> {
    let mut rows: Vec<Vec<Tensor>> = inputs.iter().map(|_| Vec::new()).collect();
    let flat = output.f_reshape([-1])?;
    for element in 0..flat.size()[0] {
        let gradients = Tensor::f_run_backward(&[flat.f_select(0, element)?], inputs, true, false)?;
        for ((rows, gradient), input) in rows.iter_mut().zip(gradients).zip(inputs) {
            // An input that this output does not depend on has no gradient, which counts as zero.
            let gradient = if gradient.defined() { gradient } else { input.f_zeros_like()? };
            rows.push(gradient.f_detach()?.f_reshape([-1])?);
        }
    }
    rows.iter().map(|rows| Tensor::f_stack(rows, 0)).collect()
}

/// `input` with `step` added to one element, in row-major order.
fn moved(input: &Tensor, element: usize, step: f64) -> std::result::Result<Tensor, tch::TchError> {
    let mut delta = vec![0.0; input.numel()];
    if let Some(value) = delta.get_mut(element) {
        *value = step;
    }
    let delta = Tensor::f_from_slice(&delta)?.f_reshape(input.size())?.f_to_device(input.device())?;
    input.f_detach()?.f_add(&delta)
}

/// Whether two results are equal, NaN at the same places included.
fn same_bits(a: &Tensor, b: &Tensor) -> std::result::Result<bool, tch::TchError> {
    let equal = a.f_eq_tensor(b)?.f_logical_or(&a.f_isnan()?.f_logical_and(&b.f_isnan()?)?)?;
    Ok(equal.f_all()?.f_int64_value(&[])? == 1)
}

fn cannot_check(reason: impl Into<String>) -> Error {
    Error::GradientCheck { reason: reason.into() }
}

fn torch(error: tch::TchError) -> Error {
    Error::GradientCheck { reason: error.to_string() }
}
