//! What a layer does to its input before the product, and does again in backward.

use crate::{
    error::{Result, check_shape},
    rms_norm, swiglu,
};
use tch::Tensor;

/// A step between a layer's input and its product that costs one pass over memory and is computed again in backward.
///
/// The result of a norm or a gate is as large as an activation and as cheap as reading it: a layer that takes the step itself keeps
/// the step's input alone, which its neighbours keep anyway.
#[derive(Debug, Clone, Copy, Default)]
pub enum Prologue<'a> {
    /// None: the product reads the input as it is.
    #[default]
    None,
    /// [`rms_norm`](crate::rms_norm()) with a frozen weight.
    RmsNorm {
        /// `[in_features]`; it receives no gradient.
        weight: &'a Tensor,
        /// Constant under the root.
        eps: f64,
    },
    /// [`swiglu`](crate::swiglu()): the input has twice as many columns as the product reads.
    SwiGlu,
}

impl Prologue<'_> {
    /// Columns of an input whose result has `in_features`.
    pub(crate) fn input_columns(&self, in_features: i64) -> i64 {
        match self {
            Self::SwiGlu => 2 * in_features,
            Self::None | Self::RmsNorm { .. } => in_features,
        }
    }

    /// The step as a function of its own, for a product that keeps nothing anyway.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.shallow_clone()),
            Self::RmsNorm { weight, eps } => crate::rms_norm(x, &weight.f_detach()?, *eps),
            Self::SwiGlu => crate::swiglu(x),
        }
    }

    pub(crate) fn to_owned(self, function: &'static str, in_features: i64) -> Result<OwnedPrologue> {
        Ok(match self {
            Self::None => OwnedPrologue::None,
            Self::RmsNorm { weight, eps } => {
                check_shape(function, "the norm's weight", weight, &[in_features])?;
                OwnedPrologue::RmsNorm { weight: weight.f_detach()?, eps }
            }
            Self::SwiGlu => OwnedPrologue::SwiGlu,
        })
    }
}

/// A [`Prologue`] that lives as long as the graph.
pub(crate) enum OwnedPrologue {
    None,
    RmsNorm { weight: Tensor, eps: f64 },
    SwiGlu,
}

impl OwnedPrologue {
    /// The step on `[rows, columns]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.shallow_clone()),
            Self::RmsNorm { weight, eps } => Ok(rms_norm::forward(x, weight, *eps)?.0),
            Self::SwiGlu => swiglu::forward(x),
        }
    }

    /// The gradient of `x` from that of the step's result, and this result once more: one pass gives both.
    pub(crate) fn backward_again(&self, grad: Tensor, x: &Tensor) -> Result<[Tensor; 2]> {
        match self {
            Self::None => Ok([grad, x.shallow_clone()]),
            Self::RmsNorm { weight, eps } => rms_norm::backward_again(&grad, x, weight, *eps),
            Self::SwiGlu => swiglu::backward_again(&grad, x),
        }
    }
}
