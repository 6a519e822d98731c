//! Kinds of numbers within a function.

use tch::Kind;

/// The kind in which a function of tensors of `kind` computes what must not be rounded on the way: f32, or f64 for f64.
pub(crate) fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}
