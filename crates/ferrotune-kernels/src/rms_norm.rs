//! Root-mean-square normalisation.

use crate::{
    cpu::{Kernel, Rows, dispatch, dot, fill_rows, map},
    error::{Result, check_shape},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use std::ops::Range;
use tch::{Kind, Tensor};

/// `y = weight * x / sqrt(mean(x^2) + eps)`, the mean over the last dimension.
///
/// The normalisation is computed in f32 and rounded to the kind of `x` before the weight is applied, as in Hugging Face's Llama.
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
        let grad_x =
            if context.needs_input_grad(0) { Some(backward(grad, x, weight, inverse)?) } else { None };
        let grad_weight = if context.needs_input_grad(1) {
            let normalised = x.f_to_kind(Kind::Float)?.f_mul(inverse)?;
            let product =
                grad.f_to_kind(Kind::Float)?.f_mul(&normalised)?.f_reshape([-1, weight.size()[0]])?;
            Some(product.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?.f_to_kind(weight.kind())?)
        } else {
            None
        };
        Ok(vec![grad_x, grad_weight])
    }
}

/// `y` and `1 / rms` of each row.
pub(crate) fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    match fused_forward(x, weight, eps)? {
        Some(results) => Ok(results),
        None => torch_forward(x, weight, eps),
    }
}

/// The gradient of `x`.
pub(crate) fn backward(grad: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    match fused_backward(grad, x, weight, inverse)? {
        Some(grad_x) => Ok(grad_x),
        None => torch_backward(grad, x, weight, inverse),
    }
}

/// [`forward`] in libtorch's operators.
fn torch_forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let wide = x.f_to_kind(Kind::Float)?;
    let mean_square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
    let inverse = mean_square.f_add_scalar(eps)?.f_rsqrt()?;
    let y = wide.f_mul(&inverse)?.f_to_kind(x.kind())?.f_mul(weight)?;
    Ok((y, inverse))
}

/// `dx = (g - n * mean(g * n)) / rms` with `g = grad * weight` and `n = x / rms`, in libtorch's operators.
fn torch_backward(grad: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let normalised = x.f_to_kind(Kind::Float)?.f_mul(inverse)?;
    let weighted = grad.f_to_kind(Kind::Float)?.f_mul(&weight.f_to_kind(Kind::Float)?)?;
    let projection = weighted.f_mul(&normalised)?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
    let along = normalised.f_mul(&projection)?;
    Ok(weighted.f_sub(&along)?.f_mul(inverse)?.f_to_kind(x.kind())?)
}

/// [`torch_forward`] in one pass over each row.
fn fused_forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Option<(Tensor, Tensor)>> {
    let (Some(rows), Some(scale)) = (Rows::of(x, 1), Rows::of(weight, 1)) else { return Ok(None) };
    let shape = x.size();
    let mut inverse_shape = shape.clone();
    if let Some(last) = inverse_shape.last_mut() {
        *last = 1;
    }
    let [y, inverse] = fill_rows(rows.count(), [&shape, &inverse_shape], |range, [y, inverse]| {
        dispatch(Forward { x: rows, weight: scale.row(0), eps: eps as f32, range, y, inverse });
    })?;
    Ok(Some((y, inverse)))
}

/// [`torch_backward`] in one pass over each row.
fn fused_backward(grad: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Result<Option<Tensor>> {
    let (Some(grads), Some(rows), Some(scale), Some(inverses)) =
        (Rows::of(grad, 1), Rows::of(x, 1), Rows::of(weight, 1), Rows::of(inverse, 1))
    else {
        return Ok(None);
    };
    let [grad_x] = fill_rows(rows.count(), [&x.size()], |range, [grad_x]| {
        dispatch(Backward { grad: grads, x: rows, weight: scale.row(0), inverse: inverses, range, grad_x });
    })?;
    Ok(Some(grad_x))
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
            let x = self.x.row(index);
            *inverse = 1.0 / (dot::<FMA>(x, x) / width as f32 + self.eps).sqrt();
            let factor = *inverse;
            map([x, self.weight], [y], |[x, weight]| [x * factor * weight]);
        }
    }
}

struct Backward<'a> {
    grad: Rows<'a>,
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
            for ((weighted, &grad), &weight) in grad_x.iter_mut().zip(grad).zip(self.weight) {
                *weighted = grad * weight;
            }
            let projection = dot::<FMA>(grad_x, x) * inverse / width as f32;
            for (grad_x, &x) in grad_x.iter_mut().zip(x) {
                *grad_x = (*grad_x - x * inverse * projection) * inverse;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};

    #[test]
    fn both_paths_give_the_same_values_and_gradients() {
        for shape in [&[650i64, 576][..], &[3, 5, 7], &[40], &[2, 1, 33], &[1, 1]] {
            let (x, grad, weight) = (noise(1, shape), noise(2, shape), noise(3, &shape[shape.len() - 1..]));
            let (y, inverse) = fused_forward(&x, &weight, 1e-5).unwrap().unwrap();
            let (expected, expected_inverse) = torch_forward(&x, &weight, 1e-5).unwrap();
            assert_close(&y, &expected, 1e-6);
            assert_close(&inverse, &expected_inverse, 1e-6);
            let grad_x = fused_backward(&grad, &x, &weight, &inverse).unwrap().unwrap();
            assert_close(&grad_x, &torch_backward(&grad, &x, &weight, &inverse).unwrap(), 2e-6);
        }
    }

    #[test]
    fn rows_of_a_wider_tensor_take_the_fused_path_and_columns_do_not() {
        let (wide, weight) = (noise(1, &[9, 20]), noise(2, &[8]));
        let (x, grad) = (wide.narrow(1, 4, 8), noise(3, &[9, 16]).narrow(1, 8, 8));
        let (y, inverse) = fused_forward(&x, &weight, 1e-5).unwrap().unwrap();
        assert_close(&y, &torch_forward(&x, &weight, 1e-5).unwrap().0, 1e-6);
        let grad_x = fused_backward(&grad, &x, &weight, &inverse).unwrap().unwrap();
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
            (fused_backward(&y, &x, &weight, &inverse).unwrap().unwrap(), y)
        };
        assert_eq!(of(1), of(3));
    }
}
