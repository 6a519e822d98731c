//! Root-mean-square normalisation.

use crate::error::{Result, check_shape};
use ferrotune_autograd::{BackwardContext, ForwardContext, Function, apply_one};
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

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Function for RmsNorm {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, Boxed> {
        let (x, weight) = (inputs[0].ok_or("x is required")?, inputs[1].ok_or("weight is required")?);
        let wide = x.f_to_kind(Kind::Float)?;
        let mean_square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
        let inverse = mean_square.f_add_scalar(self.eps)?.f_rsqrt()?;
        let y = wide.f_mul(&inverse)?.f_to_kind(x.kind())?.f_mul(weight)?;
        // The normalised values are one product away from x and 1 / rms: only those are kept.
        context.save(&[x, weight, &inverse]);
        Ok(vec![y])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, Boxed> {
        let (Some(grad), [x, weight, inverse]) = (&grads[0], context.saved()) else {
            return Ok(vec![None, None]);
        };
        let grad = grad.f_to_kind(Kind::Float)?;
        let normalised = x.f_to_kind(Kind::Float)?.f_mul(inverse)?;
        let grad_x = if context.needs_input_grad(0) {
            // dx = (g - n * mean(g * n)) / rms with g = grad * weight, n = x / rms
            let weighted = grad.f_mul(&weight.f_to_kind(Kind::Float)?)?;
            let projection =
                weighted.f_mul(&normalised)?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
            let along = normalised.f_mul(&projection)?;
            Some(weighted.f_sub(&along)?.f_mul(inverse)?.f_to_kind(x.kind())?)
        } else {
            None
        };
        let grad_weight = if context.needs_input_grad(1) {
            let product = grad.f_mul(&normalised)?.f_reshape([-1, weight.size()[0]])?;
            Some(product.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?.f_to_kind(weight.kind())?)
        } else {
            None
        };
        Ok(vec![grad_x, grad_weight])
    }
}
