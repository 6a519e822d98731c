//! On processors that no loops are written for, libtorch attends.

use crate::{attention::AttentionOptions, error::Result, layout::Segment};
use std::ops::Range;
use tch::Tensor;

#[allow(dead_code, reason = "read where there are loops")]
pub(crate) struct Prompt<'a> {
    pub(crate) tokens: Range<usize>,
    pub(crate) rows: &'a [Range<usize>],
}

pub(crate) fn over_cache(_: &[Prompt], _: [&Tensor; 3], _: AttentionOptions) -> bool {
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
