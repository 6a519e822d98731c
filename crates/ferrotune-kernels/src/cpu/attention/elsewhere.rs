//! On processors that no loops are written for, libtorch attends.

use crate::{attention::AttentionOptions, cached_attention::Sequence, error::Result, layout::Segment};
use tch::Tensor;

pub(crate) fn over_cache(_: &[Sequence], _: [&Tensor; 3], _: AttentionOptions) -> bool {
    false
}

pub(crate) fn takes(_: i64) -> bool {
    false
}

pub(crate) fn forward(_: [&Tensor; 3], _: &[Segment], _: AttentionOptions) -> Result<Option<[Tensor; 2]>> {
    Ok(None)
}

pub(crate) fn backward(
    _: [&Tensor; 3],
    _: [&Tensor; 3],
    _: &[Tensor; 3],
    _: &[Segment],
    _: AttentionOptions,
) -> Result<bool> {
    Ok(false)
}
