//! Names of dtypes, and which of them a run uses where.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::Context;
use crate::{Error, Result};

/// A floating-point dtype of storage or arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ComputeDtype {
    /// 32-bit IEEE float.
    #[default]
    F32,
    /// 16 bits with the exponent of `f32`.
    Bf16,
    /// 16-bit IEEE float.
    F16,
}

impl ComputeDtype {
    /// The dtype as libtorch names it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for ComputeDtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(Error::UnknownDtype { found: name.into(), known: "f32, bf16, f16".into() }),
        }
    }
}

impl TryFrom<String> for ComputeDtype {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<ComputeDtype> for String {
    fn from(dtype: ComputeDtype) -> Self {
        dtype.to_string()
    }
}

/// Which dtype a run uses for what.
///
/// Adapters, their gradients and the optimizer's state are `f32` in every policy.
///
/// ```
/// use ferrotune_precision::{ComputeDtype, DtypePolicy};
/// let policy = DtypePolicy::for_compute("f32".parse()?)?;
/// assert_eq!(policy.optimizer_state(), ComputeDtype::F32);
/// let refusal = DtypePolicy::for_compute(ComputeDtype::Bf16).unwrap_err().to_string();
/// assert!(refusal.contains("bf16 is not offered yet"));
/// # Ok::<(), ferrotune_precision::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DtypePolicy {
    weights: ComputeDtype,
    compute: ComputeDtype,
    gradients: ComputeDtype,
    optimizer_state: ComputeDtype,
}

impl DtypePolicy {
    /// The policy under which this workspace's layers compute in `compute`.
    ///
    /// # Errors
    /// [`Error::DtypeNotOffered`] for everything but [`ComputeDtype::F32`].
    pub fn for_compute(compute: ComputeDtype) -> Result<Self> {
        match compute {
            ComputeDtype::F32 => Ok(Self::default()),
            ComputeDtype::Bf16 => Err(Error::DtypeNotOffered {
                dtype: compute,
                reason: "weights keep the digits of f32, and training has bf16 = true for products in bf16, which are slower than f32 \
                         on a processor without avx512_bf16",
            }),
            ComputeDtype::F16 => Err(Error::DtypeNotOffered {
                dtype: compute,
                reason: "weights keep the digits of f32, and training has fp16 = true for products in f16, with a scaled loss against \
                         gradients that underflow",
            }),
        }
    }

    /// The policy of `bf16` and `fp16` in `TrainingArguments`: products in the 16-bit dtype, everything that is kept (weights,
    /// gradients, moments) with the digits of `f32`. With neither, everything is `f32`.
    ///
    /// It is for a model that casts by it, at two places: [`to_compute`](Self::to_compute) on both factors of a product, and
    /// [`to_full`](Self::to_full) before a norm, a softmax or a loss. Since the casts are differentiable, an `f32` adapter gets an
    /// `f32` gradient. The decoder of this workspace does so in training; [`for_compute`](Self::for_compute) is for weights that are
    /// held in another type altogether.
    ///
    /// # Errors
    /// [`Error::TwoComputeDtypes`] if both are asked for.
    pub fn from_flags(bf16: bool, fp16: bool) -> Result<Self> {
        let compute = match (bf16, fp16) {
            (false, false) => ComputeDtype::F32,
            (true, false) => ComputeDtype::Bf16,
            (false, true) => ComputeDtype::F16,
            (true, true) => return Err(Error::TwoComputeDtypes),
        };
        Ok(Self { compute, ..Self::default() })
    }

    /// A tensor as a factor of a product.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn to_compute(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.f_to_kind(self.compute.kind()).context("the cast to the dtype of products")
    }

    /// A tensor as a norm, a softmax or a loss wants it.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn to_full(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.f_to_kind(Kind::Float).context("the cast to f32")
    }

    /// Whether small gradients underflow, so that the loss wants a [`GradScaler`](crate::GradScaler): in `f16`, whose exponent is
    /// small, and not in `bf16`.
    pub fn needs_loss_scaling(&self) -> bool {
        self.compute == ComputeDtype::F16
    }

    /// The precision of frozen weights, in however few bits they are kept.
    pub fn weights(&self) -> ComputeDtype {
        self.weights
    }

    /// What products are computed in.
    pub fn compute(&self) -> ComputeDtype {
        self.compute
    }

    /// What trainable parameters and their gradients are held in.
    pub fn gradients(&self) -> ComputeDtype {
        self.gradients
    }

    /// What the optimizer's moments are held in.
    pub fn optimizer_state(&self) -> ComputeDtype {
        self.optimizer_state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_an_unknown_one_lists_the_known() {
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::F16] {
            assert_eq!(dtype.to_string().parse::<ComputeDtype>().unwrap(), dtype);
        }
        let message = "fp8".parse::<ComputeDtype>().unwrap_err().to_string();
        assert_eq!(message, "unknown dtype \"fp8\": expected one of f32, bf16, f16");
    }

    #[test]
    fn the_flags_change_what_products_are_computed_in_and_nothing_that_is_kept() {
        let flags = [(false, false, Kind::Float), (true, false, Kind::BFloat16), (false, true, Kind::Half)];
        for (bf16, fp16, kind) in flags {
            let policy = DtypePolicy::from_flags(bf16, fp16).unwrap();
            let kept = [policy.weights(), policy.gradients(), policy.optimizer_state()];
            assert_eq!((policy.compute().kind(), kept), (kind, [ComputeDtype::F32; 3]));
            assert_eq!(policy.needs_loss_scaling(), fp16);
            let adapter = Tensor::from_slice(&[0.5f32, 2.0]).set_requires_grad(true);
            let product = policy.to_compute(&adapter).unwrap();
            assert_eq!(product.kind(), kind);
            let loss = policy.to_full(&(&product * &product)).unwrap().sum(Kind::Float);
            loss.backward();
            assert_eq!((loss.kind(), adapter.grad().kind()), (Kind::Float, Kind::Float));
            assert_eq!(Vec::<f32>::try_from(adapter.grad()).unwrap(), [1.0, 4.0]);
        }
        assert!(matches!(DtypePolicy::from_flags(true, true), Err(Error::TwoComputeDtypes)));
    }

    #[test]
    fn sixteen_bit_policies_are_refused_by_name_with_a_reason() {
        for (dtype, word) in [(ComputeDtype::Bf16, "avx512_bf16"), (ComputeDtype::F16, "underflow")] {
            let message = DtypePolicy::for_compute(dtype).unwrap_err().to_string();
            assert!(message.contains(&format!("compute_dtype {dtype} is not offered yet")), "{message}");
            assert!(message.contains(word) && message.contains("\"f32\""), "{message}");
        }
    }
}
