//! Kinds of numbers within a function.

use crate::error::Result;
use tch::{Kind, Tensor};

/// The kind in which a function of tensors of `kind` computes what must not be rounded on the way: f32, or f64 for f64.
pub(crate) fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// `x` in a kind; itself if it is of that kind, without asking libtorch's dispatcher, which costs microseconds beside a large product.
pub(crate) fn in_kind(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.f_kind()? == kind { Ok(x.shallow_clone()) } else { Ok(x.f_to_kind(kind)?) }
}
