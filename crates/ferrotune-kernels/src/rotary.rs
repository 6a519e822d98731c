//! Rotary position embedding.

use crate::error::{Result, check_shape};
use ferrotune_autograd::{BackwardContext, ForwardContext, Function, apply_one};
use tch::Tensor;

/// Rotates the two halves of each head by the angle of its position: with `x = [x1, x2]`,
/// `y = [x1 cos - x2 sin, x2 cos + x1 sin]` (half-split, as Hugging Face checkpoints are laid out).
///
/// # Shapes
/// - `x`: `[total_tokens, heads, head_dim]`; `cos`, `sin`: `[total_tokens, head_dim / 2]`; returns the shape of `x`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the tables do not fit `x`.
///
/// # References
/// Su et al. 2021, arXiv:2104.09864.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    const NAME: &str = "rotary";
    check_shape(NAME, "x", x, &[-1, -1, -1])?;
    let (tokens, head_dim) = (x.size()[0], x.size()[2]);
    check_shape(NAME, "cos", cos, &[tokens, head_dim / 2])?;
    check_shape(NAME, "sin", sin, &[tokens, head_dim - head_dim / 2])?;
    Ok(apply_one(Rotary, &[Some(x), Some(&cos.f_detach()?), Some(&sin.f_detach()?)])?)
}

struct Rotary;

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.size()[2] / 2;
    let (cos, sin) = (cos.f_unsqueeze(1)?, sin.f_unsqueeze(1)?);
    let (first, second) = (x.f_narrow(2, 0, half)?, x.f_narrow(2, half, half)?);
    let y = x.f_empty_like()?;
    let (mut y1, mut y2) = (y.f_narrow(2, 0, half)?, y.f_narrow(2, half, half)?);
    y1.f_copy_(&first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?)?;
    y2.f_copy_(&second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?)?;
    Ok(y)
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Function for Rotary {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, Boxed> {
        let [Some(x), Some(cos), Some(sin)] = inputs else {
            return Err("x, cos and sin are required".into());
        };
        context.save(&[cos, sin]);
        Ok(vec![rotate(x, cos, sin)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, Boxed> {
        let (Some(grad), [cos, sin]) = (&grads[0], context.saved()) else {
            return Ok(vec![None, None, None]);
        };
        // The transpose of a rotation is the rotation back.
        Ok(vec![Some(rotate(grad, cos, &sin.f_neg()?)?), None, None])
    }
}
