//! Root-mean-square normalisation.

use crate::{
    cpu::{Kernel, Rows, dispatch, dot, fill_rows, map, update},
    error::{Result, check_shape},
    kind::wide_kind,
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply, apply_one};
use std::ops::Range;
use tch::Tensor;

/// `y = weight * x / sqrt(mean(x^2) + eps)`, the mean over the last dimension.
///
/// The normalisation is computed in f32 (f64 for f64) and rounded to the kind of `x` before the weight is applied, as in Hugging Face's Llama.
///
/// # Shapes
/// - `x`: `[..., hidden_size]`; `weight`: `[hidden_size]`; returns the shape of `x`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the weight does not fit `x`.
///
/// # References
/// Zhang and Sennrich 2019, arXiv:1910.07467.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let hidden_size = x.size().last().copied().unwrap_or(0);
    check_shape("rms_norm", "weight", weight, &[hidden_size])?;
    Ok(apply_one(RmsNorm { eps }, &[Some(x), Some(weight)])?)
}

/// `sum = x + residual` and [`rms_norm`] of the sum, in one pass over memory.
///
/// In a decoder the sum goes on as the next residual, the norm into the next layer. Backward keeps the sum alone, and adds up the
/// gradients of both in one pass.
///
/// # Shapes
/// - `x`, `residual`: `[..., hidden_size]`, of one shape and kind; `weight`: `[hidden_size]`; returns two tensors of the shape of `x`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if residual or weight do not fit `x`.
///
/// # Examples
/// ```
/// use ferrotune_kernels::{add_rms_norm, tch::Tensor};
/// let (x, residual) = (Tensor::from_slice(&[3.0f32, 0.0]), Tensor::from_slice(&[0.0f32, 4.0]));
/// let (sum, normed) = add_rms_norm(&x, &residual, &Tensor::from_slice(&[1.0f32, 2.0]), 0.0)?;
/// assert_eq!(Vec::<f32>::try_from(sum)?, [3.0, 4.0]);
/// let rms = 12.5_f32.sqrt();
/// let expected = Tensor::from_slice(&[3.0 / rms, 8.0 / rms]);
/// assert!((normed - expected).abs().max().double_value(&[]) < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    const NAME: &str = "add_rms_norm";
    let shape = x.size();
    check_shape(NAME, "residual", residual, &shape)?;
    check_shape(NAME, "weight", weight, &[shape.last().copied().unwrap_or(0)])?;
    let outputs = apply(AddRmsNorm { eps }, &[Some(x), Some(residual), Some(weight)])?;
    match <[Tensor; 2]>::try_from(outputs) {
        Ok([sum, normed]) => Ok((sum, normed)),
        Err(_) => Err(tch::TchError::Torch("a sum and its norm".to_owned()).into()),
    }
}

struct RmsNorm {
    eps: f64,
}

impl Function for RmsNorm {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let (x, weight) = (inputs[0].ok_or("x is required")?, inputs[1].ok_or("weight is required")?);
        let (y, inverse) = forward(x, weight, self.eps)?;
        // The normalised values are one product away from x and 1 / rms: only those are kept.
        context.save(&[x, weight, &inverse]);
        Ok(vec![y])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let (Some(grad), [x, weight, inverse]) = (&grads[0], context.saved()) else {
            return Ok(vec![None, None]);
        };
        let grad_x = if context.needs_input_grad(0) {
            Some(backward_beside(grad, None, x, weight, inverse)?)
        } else {
            None
        };
        let grad_weight =
            if context.needs_input_grad(1) { Some(weight_gradient(grad, x, weight, inverse)?) } else { None };
        Ok(vec![grad_x, grad_weight])
    }
}

struct AddRmsNorm {
    eps: f64,
}

impl Function for AddRmsNorm {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let [Some(x), Some(residual), Some(weight)] = inputs else {
            return Err("x, residual and weight are required".into());
        };
        let [sum, normed, inverse] = match fused_add_forward(x, residual, weight, self.eps)? {
            Some(results) => results,
            None => {
                let sum = x.f_add(residual)?;
                let (normed, inverse) = torch_forward(&sum, weight, self.eps)?;
                [sum, normed, inverse]
            }
        };
        context.save(&[&sum, weight, &inverse]);
        Ok(vec![sum, normed])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let ([grad_sum, grad_normed], [sum, weight, inverse]) = (grads, context.saved()) else {
            return Err("two gradients and three saved tensors".into());
        };
        let Some(grad) = grad_normed else {
            let grad = || grad_sum.as_ref().map(Tensor::shallow_clone);
            return Ok(vec![grad(), grad(), None]);
        };
        let grad_x = match context.needs_input_grad(0) || context.needs_input_grad(1) {
            true => Some(backward_beside(grad, grad_sum.as_ref(), sum, weight, inverse)?),
            false => None,
        };
        let grad_weight = match context.needs_input_grad(2) {
            true => Some(weight_gradient(grad, sum, weight, inverse)?),
            false => None,
        };
        Ok(vec![grad_x.as_ref().map(Tensor::shallow_clone), grad_x, grad_weight])
    }
}

/// `sum(grad * x / rms)` over all rows.
fn weight_gradient(grad: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let kind = inverse.kind();
    let product = grad.f_to_kind(kind)?.f_mul(&x.f_to_kind(kind)?.f_mul(inverse)?)?;
    let rows = product.f_reshape([-1, weight.size()[0]])?;
    Ok(rows.f_sum_dim_intlist([0i64].as_slice(), false, kind)?.f_to_kind(weight.kind())?)
}

/// `y` and `1 / rms` of each row.
pub(crate) fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    match fused_forward(x, weight, eps)? {
        Some(results) => Ok(results),
        None => torch_forward(x, weight, eps),
    }
}

/// The gradient of `x`, and `y` once more, which forward's caller did not keep.
pub(crate) fn backward_again(grad: &Tensor, x: &Tensor, weight: &Tensor, eps: f64) -> Result<[Tensor; 2]> {
    if let Some(results) = fused_backward_again(grad, x, weight, eps)? {
        return Ok(results);
    }
    let (y, inverse) = forward(x, weight, eps)?;
    Ok([backward_beside(grad, None, x, weight, &inverse)?, y])
}

/// The gradient of `x`, and that of another use of it on top.
fn backward_beside(
    grad: &Tensor,
    beside: Option<&Tensor>,
    x: &Tensor,
    weight: &Tensor,
    inverse: &Tensor,
) -> Result<Tensor> {
    if let Some(grad_x) = fused_backward(grad, beside, x, weight, inverse)? {
        return Ok(grad_x);
    }
    let grad_x = torch_backward(grad, x, weight, inverse)?;
    Ok(match beside {
        Some(beside) => grad_x.f_add(beside)?,
        None => grad_x,
    })
}

/// [`forward`] in libtorch's operators.
fn torch_forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let kind = wide_kind(x.kind());
    let wide = x.f_to_kind(kind)?;
    let mean_square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, kind)?;
    let inverse = mean_square.f_add_scalar(eps)?.f_rsqrt()?;
    let y = wide.f_mul(&inverse)?.f_to_kind(x.kind())?.f_mul(weight)?;
    Ok((y, inverse))
}

/// `dx = (g - n * mean(g * n)) / rms` with `g = grad * weight` and `n = x / rms`, in libtorch's operators.
fn torch_backward(grad: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let kind = inverse.kind();
    let normalised = x.f_to_kind(kind)?.f_mul(inverse)?;
    let weighted = grad.f_to_kind(kind)?.f_mul(&weight.f_to_kind(kind)?)?;
    let projection = weighted.f_mul(&normalised)?.f_mean_dim([-1i64].as_slice(), true, kind)?;
    let along = normalised.f_mul(&projection)?;
    Ok(weighted.f_sub(&along)?.f_mul(inverse)?.f_to_kind(x.kind())?)
}

/// [`torch_forward`] in one pass over each row.
fn fused_forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Option<(Tensor, Tensor)>> {
    let (Some(rows), Some(scale)) = (Rows::of(x, 1), Rows::of(weight, 1)) else { return Ok(None) };
    let shapes = [&x.size()[..], &one_a_row(x)];
    let [y, inverse] = fill_rows(rows.count(), shapes, |range, [y, inverse]| {
        dispatch(Forward { x: rows, weight: scale.row(0), eps: eps as f32, range, y, inverse });
    })?;
    Ok(Some((y, inverse)))
}

/// The sum, its norm and `1 / rms` in one pass over each row.
fn fused_add_forward(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Option<[Tensor; 3]>> {
    let (Some(rows), Some(residuals), Some(scale)) =
        (Rows::of(x, 1), Rows::of(residual, 1), Rows::of(weight, 1))
    else {
        return Ok(None);
    };
    let shape = x.size();
    let results = fill_rows(rows.count(), [&shape, &shape, &one_a_row(x)], |range, [sum, y, inverse]| {
        let (weight, eps) = (scale.row(0), eps as f32);
        dispatch(AddForward { x: rows, residual: residuals, weight, eps, range, sum, y, inverse });
    })?;
    Ok(Some(results))
}

/// [`torch_backward`], and the gradient beside it, in one pass over each row.
fn fused_backward(
    grad: &Tensor,
    beside: Option<&Tensor>,
    x: &Tensor,
    weight: &Tensor,
    inverse: &Tensor,
) -> Result<Option<Tensor>> {
    let (Some(grads), Some(rows), Some(scale), Some(inverses)) =
        (Rows::of(grad, 1), Rows::of(x, 1), Rows::of(weight, 1), Rows::of(inverse, 1))
    else {
        return Ok(None);
    };
    let beside_rows = beside.and_then(|beside| Rows::of(beside, 1));
    if beside.is_some() != beside_rows.is_some() {
        return Ok(None);
    }
    let [grad_x] = fill_rows(rows.count(), [&x.size()], |range, [grad_x]| {
        let (weight, inverse) = (scale.row(0), inverses);
        dispatch(Backward { grad: grads, beside: beside_rows, x: rows, weight, inverse, range, grad_x });
    })?;
    Ok(Some(grad_x))
}

/// [`backward_again`] in one pass over each row.
fn fused_backward_again(grad: &Tensor, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Option<[Tensor; 2]>> {
    let (Some(grads), Some(rows), Some(scale)) = (Rows::of(grad, 1), Rows::of(x, 1), Rows::of(weight, 1))
    else {
        return Ok(None);
    };
    let results = fill_rows(rows.count(), [&x.size(), &x.size()], |range, [grad_x, y]| {
        let (weight, eps) = (scale.row(0), eps as f32);
        dispatch(BackwardAgain { grad: grads, x: rows, weight, eps, range, grad_x, y });
    })?;
    Ok(Some(results))
}

/// The shape of one number for each row.
fn one_a_row(x: &Tensor) -> Vec<i64> {
    let mut shape = x.size();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    shape
}

struct Forward<'a> {
    x: Rows<'a>,
    weight: &'a [f32],
    eps: f32,
    range: Range<usize>,
    y: &'a mut [f32],
    inverse: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.weight.len();
        for ((index, y), inverse) in self.range.zip(self.y.chunks_exact_mut(width)).zip(self.inverse) {
            *inverse = normalise::<FMA>(self.x.row(index), self.weight, self.eps, y);
        }
    }
}

/// Fills a row of `y` and returns `1 / rms`.
#[inline(always)]
fn normalise<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let factor = 1.0 / (dot::<FMA>(x, x) / weight.len() as f32 + eps).sqrt();
    map([x, weight], [y], |[x, weight]| [x * factor * weight]);
    factor
}

struct AddForward<'a> {
    x: Rows<'a>,
    residual: Rows<'a>,
    weight: &'a [f32],
    eps: f32,
    range: Range<usize>,
    sum: &'a mut [f32],
    y: &'a mut [f32],
    inverse: &'a mut [f32],
}

impl Kernel for AddForward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.weight.len();
        let results = self.sum.chunks_exact_mut(width).zip(self.y.chunks_exact_mut(width)).zip(self.inverse);
        for (index, ((sum, y), inverse)) in self.range.zip(results) {
            map([self.x.row(index), self.residual.row(index)], [&mut *sum], |[x, residual]| [x + residual]);
            *inverse = normalise::<FMA>(sum, self.weight, self.eps, y);
        }
    }
}

struct Backward<'a> {
    grad: Rows<'a>,
    beside: Option<Rows<'a>>,
    x: Rows<'a>,
    weight: &'a [f32],
    inverse: Rows<'a>,
    range: Range<usize>,
    grad_x: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.weight.len();
        for (index, grad_x) in self.range.zip(self.grad_x.chunks_exact_mut(width)) {
            let (grad, x, inverse) = (self.grad.row(index), self.x.row(index), self.inverse.row(index)[0]);
            let beside = self.beside.as_ref().map(|beside| beside.row(index));
            gradient::<FMA>([grad, x, self.weight], inverse, beside, grad_x);
        }
    }
}

/// Fills a row of the gradient of `x`.
#[inline(always)]
fn gradient<const FMA: bool>(
    [grad, x, weight]: [&[f32]; 3],
    inverse: f32,
    beside: Option<&[f32]>,
    grad_x: &mut [f32],
) {
    for ((weighted, &grad), &weight) in grad_x.iter_mut().zip(grad).zip(weight) {
        *weighted = grad * weight;
    }
    let projection = dot::<FMA>(grad_x, x) * inverse / weight.len() as f32;
    let of = |weighted: f32, x: f32| (weighted - x * inverse * projection) * inverse;
    match beside {
        None => update([x], [grad_x], |[x], [weighted]| [of(weighted, x)]),
        Some(beside) => {
            update([x, beside], [grad_x], |[x, beside], [weighted]| [of(weighted, x) + beside]);
        }
    }
}

struct BackwardAgain<'a> {
    grad: Rows<'a>,
    x: Rows<'a>,
    weight: &'a [f32],
    eps: f32,
    range: Range<usize>,
    grad_x: &'a mut [f32],
    y: &'a mut [f32],
}

impl Kernel for BackwardAgain<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.weight.len();
        let results = self.grad_x.chunks_exact_mut(width).zip(self.y.chunks_exact_mut(width));
        for (index, (grad_x, y)) in self.range.zip(results) {
            let (grad, x) = (self.grad.row(index), self.x.row(index));
            let inverse = normalise::<FMA>(x, self.weight, self.eps, y);
            gradient::<FMA>([grad, x, self.weight], inverse, None, grad_x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::Kind;

    #[test]
    fn both_paths_give_the_same_values_and_gradients() {
        for shape in [&[650i64, 576][..], &[3, 5, 7], &[40], &[2, 1, 33], &[1, 1]] {
            let (x, grad, weight) = (noise(1, shape), noise(2, shape), noise(3, &shape[shape.len() - 1..]));
            let (y, inverse) = fused_forward(&x, &weight, 1e-5).unwrap().unwrap();
            let (expected, expected_inverse) = torch_forward(&x, &weight, 1e-5).unwrap();
            assert_close(&y, &expected, 1e-6);
            assert_close(&inverse, &expected_inverse, 1e-6);
            let grad_x = fused_backward(&grad, None, &x, &weight, &inverse).unwrap().unwrap();
            assert_close(&grad_x, &torch_backward(&grad, &x, &weight, &inverse).unwrap(), 2e-6);
            assert_eq!(backward_again(&grad, &x, &weight, 1e-5).unwrap(), [grad_x, y]);
            let [grad, x, weight] = [&grad, &x, &weight].map(|x| x.to_kind(Kind::Double));
            let (y, inverse) = torch_forward(&x, &weight, 1e-5).unwrap();
            let expected = [torch_backward(&grad, &x, &weight, &inverse).unwrap(), y];
            assert_eq!(backward_again(&grad, &x, &weight, 1e-5).unwrap(), expected);
        }
    }

    #[test]
    fn the_sum_is_normalised_as_a_sum_of_its_own() {
        for shape in [&[650i64, 576][..], &[3, 5, 7], &[40], &[2, 1, 33], &[1, 1]] {
            let (x, residual, weight) =
                (noise(1, shape), noise(2, shape), noise(3, &shape[shape.len() - 1..]));
            let [sum, y, inverse] = fused_add_forward(&x, &residual, &weight, 1e-5).unwrap().unwrap();
            assert_eq!(sum, &x + &residual);
            let (expected, expected_inverse) = fused_forward(&sum, &weight, 1e-5).unwrap().unwrap();
            assert_eq!((&y, &inverse), (&expected, &expected_inverse));
            let (grad, beside) = (noise(4, shape), noise(5, shape));
            let found = fused_backward(&grad, Some(&beside), &sum, &weight, &inverse).unwrap().unwrap();
            let expected = torch_backward(&grad, &sum, &weight, &inverse).unwrap() + &beside;
            assert_close(&found, &expected, 2e-6);
            let apart = beside.unsqueeze(-1).expand([shape, &[2]].concat(), false).contiguous().select(-1, 0);
            if shape.last() != Some(&1) {
                assert!(fused_backward(&grad, Some(&apart), &sum, &weight, &inverse).unwrap().is_none());
            }
            let found = backward_beside(&grad, Some(&apart), &sum, &weight, &inverse).unwrap();
            assert_close(&found, &expected, 2e-6);
        }
    }

    #[test]
    fn rows_of_a_wider_tensor_take_the_fused_path_and_columns_do_not() {
        let (wide, weight) = (noise(1, &[9, 20]), noise(2, &[8]));
        let (x, grad) = (wide.narrow(1, 4, 8), noise(3, &[9, 16]).narrow(1, 8, 8));
        let (y, inverse) = fused_forward(&x, &weight, 1e-5).unwrap().unwrap();
        assert_close(&y, &torch_forward(&x, &weight, 1e-5).unwrap().0, 1e-6);
        let grad_x = fused_backward(&grad, None, &x, &weight, &inverse).unwrap().unwrap();
        assert_close(&grad_x, &torch_backward(&grad, &x, &weight, &inverse).unwrap(), 2e-6);
        assert!(fused_forward(&noise(1, &[8, 9]).tr(), &weight, 1e-5).unwrap().is_none());
        assert!(fused_forward(&x.to_kind(Kind::BFloat16), &weight, 1e-5).unwrap().is_none());
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (x, weight) = (noise(1, &[301, 576]), noise(2, &[576]));
        let of = |threads| {
            tch::set_num_threads(threads);
            let (y, inverse) = fused_forward(&x, &weight, 1e-5).unwrap().unwrap();
            let sums = fused_add_forward(&x, &y, &weight, 1e-5).unwrap().unwrap();
            (fused_backward(&y, Some(&x), &x, &weight, &inverse).unwrap().unwrap(), y, sums)
        };
        assert_eq!(of(1), of(3));
    }
}
