//! The gate of Llama's feed-forward block.

use crate::error::{Result, check_shape};
use ferrotune_autograd::{BackwardContext, ForwardContext, Function, apply_one};
use tch::Tensor;

/// `y = silu(gate) * up` with `silu(g) = g / (1 + exp(-g))`, gate and up lying side by side in one tensor.
///
/// # Shapes
/// - `gate_up`: `[tokens, 2 * intermediate_size]`; returns `[tokens, intermediate_size]`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) unless `gate_up` has two dimensions and an even number of columns.
///
/// # References
/// Shazeer 2020, arXiv:2002.05202.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let columns = gate_up.size().last().copied().unwrap_or(0);
    check_shape("swiglu", "gate_up", gate_up, &[-1, columns / 2 * 2])?;
    Ok(apply_one(SwiGlu, &[Some(gate_up)])?)
}

struct SwiGlu;

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Function for SwiGlu {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, Boxed> {
        let gate_up = inputs[0].ok_or("gate_up is required")?;
        let half = gate_up.size()[1] / 2;
        context.save(&[gate_up]);
        Ok(vec![gate_up.f_narrow(1, 0, half)?.f_silu()?.f_mul_(&gate_up.f_narrow(1, half, half)?)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, Boxed> {
        let (Some(grad), [gate_up]) = (&grads[0], context.saved()) else { return Ok(vec![None]) };
        let half = gate_up.size()[1] / 2;
        let (gate, up) = (gate_up.f_narrow(1, 0, half)?, gate_up.f_narrow(1, half, half)?);
        let result = gate_up.f_empty_like()?;
        result.f_narrow(1, half, half)?.f_copy_(&gate.f_silu()?.f_mul_(grad)?)?;
        result.f_narrow(1, 0, half)?.f_copy_(&gate.f_silu_backward(&grad.f_mul(&up)?)?)?;
        Ok(vec![Some(result)])
    }
}
