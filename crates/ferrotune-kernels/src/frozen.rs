//! A weight that never changes, and the layer of one.

use crate::{
    error::{Result, check_shape},
    filled_rows::{filled_up, first_rows},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use tch::Tensor;

mod product;
#[cfg(test)]
mod tests;
mod weight;

pub(crate) use product::Update;
pub use weight::FrozenWeight;

/// `y = x W^T + bias`, differentiable in `x` alone.
///
/// # Shapes
/// - `x`: `[..., in_features]`; `bias`: `[out_features]`; returns `[..., out_features]`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `x` or `bias` do not fit the weight.
pub fn frozen_linear(x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let (flat, shape) = flatten_rows("frozen_linear", x, weight.in_features(), weight.out_features())?;
    let bias = bias.map(|bias| bias.f_detach()).transpose()?;
    if let Some(bias) = &bias {
        check_shape("frozen_linear", "bias", bias, &[weight.out_features()])?;
    }
    let y = apply_one(FrozenLinear { weight: weight.shallow_clone(), bias, rows: 0 }, &[Some(&flat)])?;
    in_shape(first_rows(y, flat.size()[0])?, &shape)
}

/// The result of a layer in its shape. A view of the same shape would be one more node for backward, and could not be changed in place
/// without another.
pub(crate) fn in_shape(y: Tensor, shape: &[i64]) -> Result<Tensor> {
    if y.size() == shape { Ok(y) } else { Ok(y.f_view(shape)?) }
}

/// `x` as `[rows, columns]`, and the shape of a result with `out_features`.
pub(crate) fn flatten_rows(
    function: &'static str,
    x: &Tensor,
    columns: i64,
    out_features: i64,
) -> Result<(Tensor, Vec<i64>)> {
    let mut shape = x.size();
    let rows: i64 = shape.iter().rev().skip(1).product();
    if shape.last() != Some(&columns) {
        return Err(crate::Error::Shape {
            function,
            what: "x".to_owned(),
            found: shape,
            expected: format!("[..., in_features = {columns}]"),
        });
    }
    let flat = if shape.len() == 2 { x.shallow_clone() } else { x.f_reshape([rows, columns])? };
    if let Some(last) = shape.last_mut() {
        *last = out_features;
    }
    Ok((flat, shape))
}

struct FrozenLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
    /// Of its input.
    rows: i64,
}

impl Function for FrozenLinear {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        _: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let x = inputs[0].ok_or("x is required")?;
        // Rows that are filled up stay: a view made here could not be changed in place by who gets it.
        let mut y = self.weight.forward_product(&filled_up(x)?)?;
        if let Some(bias) = self.bias.take() {
            y = y.f_add_(&bias)?;
        }
        self.rows = x.size()[0];
        Ok(vec![y])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        _: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let of = |grad| first_rows(self.weight.input_gradient(grad)?, self.rows);
        Ok(vec![grads[0].as_ref().map(of).transpose()?])
    }
}
