//! Activation checkpointing.

use crate::{
    error::{BoxedError, Result},
    function::{BackwardContext, ForwardContext, Function, apply},
};
use tch::{Kind, Tensor};

/// Runs `function` and keeps only its inputs; backward runs it again for what lies between.
///
/// The outputs and all gradients equal those of calling `function` directly, to the last bit, for one more forward. `inputs` are
/// what the function computes from; `parameters` are tensors that it holds itself and that want gradients as well, such as the weights of a
/// layer. One that is in neither list gets no gradient through this call.
///
/// The function must compute the same when it is called again. Randomness that is a function of a key (`RandomKey` in
/// `ferrotune-kernels`) does so by itself; draws from libtorch's own generator do not, and give wrong gradients.
///
/// Calls nest: a function that is checkpointed may checkpoint parts of itself, if the outer call lists the parameters of the inner ones.
///
/// # Errors
/// [`Error::Forward`](crate::Error::Forward) and [`Error::Panic`](crate::Error::Panic) from the function; what happens in its second
/// run reaches the caller of backward.
///
/// # Examples
/// ```
/// use ferrotune_autograd::{checkpoint, tch::{Device, Kind, Tensor}};
/// let x = Tensor::ones([2, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let weight = Tensor::ones([4, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let captured = weight.shallow_clone();
/// let layer = move |inputs: &[Tensor]| Ok(vec![inputs[0].f_linear(&captured, None::<&Tensor>)?.f_gelu("none")?]);
/// let y = checkpoint(layer, &[&x], &[&weight])?.remove(0);
/// y.sum(Kind::Float).f_backward()?;
/// assert_eq!((x.grad().size(), weight.grad().size()), (vec![2, 8], vec![4, 8]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
/// Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174.
pub fn checkpoint<F>(function: F, inputs: &[&Tensor], parameters: &[&Tensor]) -> Result<Vec<Tensor>>
where
    F: Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, BoxedError> + Send + 'static,
{
    let all: Vec<Option<&Tensor>> = inputs.iter().chain(parameters).map(|tensor| Some(*tensor)).collect();
    apply(Checkpoint { function, inputs: inputs.len() }, &all)
}

struct Checkpoint<F> {
    function: F,
    /// How many of the tensors are inputs; the rest are parameters that the function holds.
    inputs: usize,
}

impl<F> Function for Checkpoint<F>
where
    F: Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, BoxedError> + Send + 'static,
{
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let tensors: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
        context.save(&tensors);
        let inputs: Vec<Tensor> =
            tensors[..self.inputs].iter().map(|tensor| tensor.shallow_clone()).collect();
        let outputs = (self.function)(&inputs)?;
        for (index, output) in outputs.iter().enumerate() {
            if !output.is_floating_point() {
                context.mark_non_differentiable(index);
            }
        }
        Ok(outputs)
    }

    fn backward(
        &self,
        grad_outputs: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let saved = context.saved();
        let needed: Vec<usize> = (0..saved.len()).filter(|&index| context.needs_input_grad(index)).collect();
        let gradients = tch::with_grad(|| -> std::result::Result<Vec<Tensor>, BoxedError> {
            // Leaves of a graph of their own: backward ends at them and reaches nothing before this call.
            let inputs: Vec<Tensor> = saved[..self.inputs]
                .iter()
                .enumerate()
                .map(|(index, tensor)| {
                    tensor.f_detach()?.f_set_requires_grad(context.needs_input_grad(index))
                })
                .collect::<std::result::Result<_, tch::TchError>>()?;
            let outputs = (self.function)(&inputs)?;
            // The gradient of `sum(output * grad)` with respect to `output` is `grad`.
            let mut total: Option<Tensor> = None;
            for (output, grad) in outputs.iter().zip(grad_outputs) {
                let Some(grad) = grad else { continue };
                if !output.requires_grad() {
                    continue;
                }
                let part = output.f_mul(&grad.f_detach()?)?.f_sum(None::<Kind>)?;
                total = Some(match total {
                    Some(total) => total.f_add(&part)?,
                    None => part,
                });
            }
            let Some(total) = total else { return Ok(Vec::new()) };
            let wanted: Vec<&Tensor> =
                needed.iter().map(|&index| inputs.get(index).unwrap_or(&saved[index])).collect();
            Ok(Tensor::f_run_backward(&[total], &wanted, false, false)?)
        })?;
        let mut result: Vec<Option<Tensor>> = saved.iter().map(|_| None).collect();
        for (index, gradient) in needed.into_iter().zip(gradients) {
            result[index] = gradient.defined().then_some(gradient);
        }
        Ok(result)
    }
}
