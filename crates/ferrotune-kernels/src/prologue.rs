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
    /// The step on `[rows, columns]`; the same bits each time.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Stepped> {
        Ok(match self {
            Self::None => Stepped { y: x.shallow_clone(), inverse: None },
            Self::RmsNorm { weight, eps } => {
                let (y, inverse) = rms_norm::forward(x, weight, *eps)?;
                Stepped { y, inverse: Some(inverse) }
            }
            Self::SwiGlu => Stepped { y: swiglu::forward(x)?, inverse: None },
        })
    }

    /// The gradient of `x` from that of the step's result.
    pub(crate) fn backward(&self, grad: Tensor, x: &Tensor, stepped: &Stepped) -> Result<Tensor> {
        match (self, &stepped.inverse) {
            (Self::RmsNorm { weight, .. }, Some(inverse)) => rms_norm::backward(&grad, x, weight, inverse),
            (Self::SwiGlu, _) => swiglu::backward(&grad, x),
            _ => Ok(grad),
        }
    }
}

/// The result of a step.
pub(crate) struct Stepped {
    /// What the product reads.
    pub(crate) y: Tensor,
    /// `1 / rms` of each row, for the norm's own backward.
    inverse: Option<Tensor>,
}
