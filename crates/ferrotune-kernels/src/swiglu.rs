//! The gate of Llama's feed-forward block.

use crate::{
    cpu::{Kernel, Rows, dispatch, exp, fill_rows, map},
    error::{Result, check_shape},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use std::ops::Range;
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

impl Function for SwiGlu {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let gate_up = inputs[0].ok_or("gate_up is required")?;
        context.save(&[gate_up]);
        Ok(vec![forward(gate_up)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let (Some(grad), [gate_up]) = (&grads[0], context.saved()) else { return Ok(vec![None]) };
        Ok(vec![Some(backward(grad, gate_up)?)])
    }
}

/// `silu(gate) * up`.
pub(crate) fn forward(gate_up: &Tensor) -> Result<Tensor> {
    match fused_forward(gate_up)? {
        Some(y) => Ok(y),
        None => torch_forward(gate_up),
    }
}

/// The gradient of `gate_up`.
pub(crate) fn backward(grad: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    match fused_backward(grad, gate_up)? {
        Some(result) => Ok(result),
        None => torch_backward(grad, gate_up),
    }
}

/// The gradient of `gate_up`, and `y` once more, which forward's caller did not keep.
pub(crate) fn backward_again(grad: &Tensor, gate_up: &Tensor) -> Result<[Tensor; 2]> {
    match fused_backward_again(grad, gate_up)? {
        Some(results) => Ok(results),
        None => Ok([backward(grad, gate_up)?, forward(gate_up)?]),
    }
}

fn torch_forward(gate_up: &Tensor) -> Result<Tensor> {
    let half = gate_up.size()[1] / 2;
    Ok(gate_up.f_narrow(1, 0, half)?.f_silu()?.f_mul_(&gate_up.f_narrow(1, half, half)?)?)
}

fn torch_backward(grad: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let half = gate_up.size()[1] / 2;
    let (gate, up) = (gate_up.f_narrow(1, 0, half)?, gate_up.f_narrow(1, half, half)?);
    let result = gate_up.f_empty_like()?;
    result.f_narrow(1, half, half)?.f_copy_(&gate.f_silu()?.f_mul_(grad)?)?;
    result.f_narrow(1, 0, half)?.f_copy_(&gate.f_silu_backward(&grad.f_mul(&up)?)?)?;
    Ok(result)
}

/// [`torch_forward`] in one pass.
fn fused_forward(gate_up: &Tensor) -> Result<Option<Tensor>> {
    let Some(rows) = Rows::of(gate_up, 1) else { return Ok(None) };
    let size = gate_up.size();
    let [y] = fill_rows(rows.count(), [&[size[0], size[1] / 2]], |range, [y]| {
        dispatch(Forward { gate_up: rows, range, y });
    })?;
    Ok(Some(y))
}

/// [`torch_backward`] in one pass.
fn fused_backward(grad: &Tensor, gate_up: &Tensor) -> Result<Option<Tensor>> {
    let (Some(grads), Some(rows)) = (Rows::of(grad, 1), Rows::of(gate_up, 1)) else { return Ok(None) };
    let [result] = fill_rows(rows.count(), [&gate_up.size()], |range, [result]| {
        dispatch(Backward { grad: grads, gate_up: rows, range, result });
    })?;
    Ok(Some(result))
}

/// [`backward_again`] in one pass.
fn fused_backward_again(grad: &Tensor, gate_up: &Tensor) -> Result<Option<[Tensor; 2]>> {
    let (Some(grads), Some(rows)) = (Rows::of(grad, 1), Rows::of(gate_up, 1)) else { return Ok(None) };
    let results = fill_rows(rows.count(), [&gate_up.size(), &grad.size()], |range, [result, y]| {
        dispatch(BackwardAgain { grad: grads, gate_up: rows, range, result, y });
    })?;
    Ok(Some(results))
}

struct Forward<'a> {
    gate_up: Rows<'a>,
    range: Range<usize>,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let half = self.gate_up.width() / 2;
        for (index, y) in self.range.zip(self.y.chunks_exact_mut(half)) {
            let (gate, up) = self.gate_up.row(index).split_at(half);
            map([gate, up], [y], |[gate, up]| [gate * sigmoid::<FMA>(gate)[1] * up]);
        }
    }
}

struct Backward<'a> {
    grad: Rows<'a>,
    gate_up: Rows<'a>,
    range: Range<usize>,
    result: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let half = self.gate_up.width() / 2;
        for (index, result) in self.range.zip(self.result.chunks_exact_mut(2 * half)) {
            let (gate, up) = self.gate_up.row(index).split_at(half);
            let (grad_gate, grad_up) = result.split_at_mut(half);
            map([self.grad.row(index), gate, up], [grad_gate, grad_up], |[grad, gate, up]| {
                let [grad_gate, grad_up, _] = gradients::<FMA>(grad, gate, up);
                [grad_gate, grad_up]
            });
        }
    }
}

/// `exp(-gate)`, and `1 / (1 + exp(-gate))`.
#[inline(always)]
fn sigmoid<const FMA: bool>(gate: f32) -> [f32; 2] {
    let exponential = exp::<FMA>(-gate);
    [exponential, 1.0 / (1.0 + exponential)]
}

/// The gradients of gate and up, and `silu(gate) * up`.
#[inline(always)]
fn gradients<const FMA: bool>(grad: f32, gate: f32, up: f32) -> [f32; 3] {
    let [exponential, sigmoid] = sigmoid::<FMA>(gate);
    // 1 - sigmoid, without cancellation where sigmoid is near one and without infinity where it is near zero.
    let rest = if gate < 0.0 { 1.0 - sigmoid } else { exponential * sigmoid };
    let silu = gate * sigmoid;
    [grad * up * (sigmoid * (1.0 + gate * rest)), grad * silu, silu * up]
}

struct BackwardAgain<'a> {
    grad: Rows<'a>,
    gate_up: Rows<'a>,
    range: Range<usize>,
    result: &'a mut [f32],
    y: &'a mut [f32],
}

impl Kernel for BackwardAgain<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let half = self.gate_up.width() / 2;
        let results = self.result.chunks_exact_mut(2 * half).zip(self.y.chunks_exact_mut(half));
        for (index, (result, y)) in self.range.zip(results) {
            let (gate, up) = self.gate_up.row(index).split_at(half);
            let (grad_gate, grad_up) = result.split_at_mut(half);
            map([self.grad.row(index), gate, up], [grad_gate, grad_up, y], |[grad, gate, up]| {
                gradients::<FMA>(grad, gate, up)
            });
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
        for (tokens, half) in [(650, 1536), (5, 7), (3, 16), (2, 33), (1, 1)] {
            let (gate_up, grad) = (noise(1, &[tokens, 2 * half]) * 8.0, noise(2, &[tokens, half]));
            assert_close(&fused_forward(&gate_up).unwrap().unwrap(), &torch_forward(&gate_up).unwrap(), 1e-6);
            let found = fused_backward(&grad, &gate_up).unwrap().unwrap();
            assert_close(&found, &torch_backward(&grad, &gate_up).unwrap(), 1e-6);
            let [again, y] = backward_again(&grad, &gate_up).unwrap();
            assert_eq!(again, found);
            assert_eq!(y, fused_forward(&gate_up).unwrap().unwrap());
            let doubled = [&grad, &gate_up].map(|x| x.to_kind(Kind::Double));
            let [again, y] = backward_again(&doubled[0], &doubled[1]).unwrap();
            assert_close(&again, &found.to_kind(Kind::Double), 1e-6);
            assert_close(&y, &torch_forward(&doubled[1]).unwrap(), 1e-12);
        }
    }

    #[test]
    fn every_element_is_near_the_formula_in_double_precision() {
        let gate = Tensor::arange_start_step(-90.0, 90.0, 0.01, (Kind::Double, tch::Device::Cpu))
            .to_kind(Kind::Float);
        let gate_up = Tensor::stack(&[&gate, &gate.ones_like()], 1);
        let leaf = gate_up.to_kind(Kind::Double).set_requires_grad(true);
        let expected = leaf.narrow(1, 0, 1).silu() * leaf.narrow(1, 1, 1);
        expected.sum(Kind::Double).backward();
        let y = fused_forward(&gate_up).unwrap().unwrap();
        let gradient = fused_backward(&y.ones_like(), &gate_up).unwrap().unwrap();
        // silu'(g) has a root near -1.28, so its error is measured against 1 there.
        for (found, expected, floor) in [(&y, &expected, 1e-30), (&gradient, &leaf.grad(), 1e-1)] {
            let difference = (found.to_kind(Kind::Double) - expected).abs();
            let error = (difference / expected.abs().clamp_min(floor)).max().double_value(&[]);
            assert!(error < 1e-6, "{error:e}");
        }
    }

    #[test]
    fn extreme_and_senseless_gates_give_what_libtorch_gives() {
        let gate =
            [f32::INFINITY, f32::MAX, 1e4, 0.0, -0.0, -1e4, f32::MIN, f32::NEG_INFINITY, f32::NAN, 1.0];
        let up = [2.0, 0.5, -1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN];
        let gate_up = Tensor::stack(&[Tensor::from_slice(&gate), Tensor::from_slice(&up)], 1);
        let grad = gate_up.ones_like().narrow(1, 0, 1).contiguous();
        let [gradient, y] = backward_again(&grad, &gate_up).unwrap();
        let (forward, backward) = (torch_forward(&gate_up), torch_backward(&grad, &gate_up));
        let pairs = [
            (fused_forward(&gate_up).unwrap().unwrap(), &forward),
            (y, &forward),
            (fused_backward(&grad, &gate_up).unwrap().unwrap(), &backward),
            (gradient, &backward),
        ];
        for (found, expected) in pairs {
            let expected = expected.as_ref().unwrap();
            assert!(found.allclose(expected, 1e-6, 0.0, true), "{found:?}\n{expected:?}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let gate_up = noise(1, &[301, 200]);
        let of = |threads| {
            tch::set_num_threads(threads);
            let y = fused_forward(&gate_up).unwrap().unwrap();
            (fused_backward(&y, &gate_up).unwrap().unwrap(), y)
        };
        assert_eq!(of(1), of(3));
    }
}
