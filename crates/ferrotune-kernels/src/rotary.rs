//! Rotary position embedding.

use crate::{
    cpu::{Kernel, Rows, RowsMut, change_rows, dispatch, fill_rows},
    error::{Error, Result, check_shape},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use std::ops::Range;
use tch::Tensor;

/// Rotates the two halves of each head by the angle of its position: with `x = [x1, x2]`,
/// `y = [x1 cos - x2 sin, x2 cos + x1 sin]` (half-split, as Hugging Face checkpoints are laid out).
///
/// # Shapes
/// - `x`: `[total_tokens, heads, head_dim]`; `cos`, `sin`: `[total_tokens, head_dim / 2]`; returns the shape of `x`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the tables do not fit `x`.
///
/// # References
/// Su et al. 2021, arXiv:2104.09864.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    const NAME: &str = "rotary";
    check_shape(NAME, "x", x, &[-1, -1, -1])?;
    let (tokens, head_dim) = (x.size()[0], x.size()[2]);
    check_shape(NAME, "cos", cos, &[tokens, head_dim / 2])?;
    check_shape(NAME, "sin", sin, &[tokens, head_dim - head_dim / 2])?;
    Ok(apply_one(Rotary, &[Some(x), Some(&cos.f_detach()?), Some(&sin.f_detach()?)])?)
}

/// [`rotary`] of the first `heads` heads in the memory of `x`, outside the graph: for a tensor that nobody else reads, such as a new
/// product of queries, keys and values.
///
/// # Shapes
/// - `x`: `[total_tokens, heads and others, head_dim]`; `cos`, `sin`: `[total_tokens, head_dim / 2]`
///
/// # Errors
/// [`Error::Shape`] if heads or tables do not fit `x`; [`Error::ChangesGraph`] if `x` has a gradient.
pub fn rotary_(x: &mut Tensor, heads: i64, cos: &Tensor, sin: &Tensor) -> Result<()> {
    const NAME: &str = "rotary_";
    check_shape(NAME, "x", x, &[-1, -1, -1])?;
    let (tokens, all_heads, head_dim) = (x.size()[0], x.size()[1], x.size()[2]);
    if !(0..=all_heads).contains(&heads) {
        return Err(Error::Shape {
            function: NAME,
            what: "x".to_owned(),
            found: x.size(),
            expected: format!("at least the {heads} heads to rotate"),
        });
    }
    check_shape(NAME, "cos", cos, &[tokens, head_dim / 2])?;
    check_shape(NAME, "sin", sin, &[tokens, head_dim - head_dim / 2])?;
    if x.requires_grad() {
        return Err(Error::ChangesGraph { function: NAME, what: "x", instead: "rotary" });
    }
    let _no_grad = tch::no_grad_guard();
    rotate_first_in_place(x, heads, cos, sin, Sense::Forward)
}

struct Rotary;

/// Which way the angle runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sense {
    Forward,
    /// The transpose of a rotation is the rotation back.
    Backward,
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, sense: Sense) -> Result<Tensor> {
    rotate_first(x, x.size()[1], cos, sin, sense)
}

/// The first `heads` heads rotated, the others as they are: q and k beside v.
pub(crate) fn rotate_first(
    x: &Tensor,
    heads: i64,
    cos: &Tensor,
    sin: &Tensor,
    sense: Sense,
) -> Result<Tensor> {
    match fused(x, heads, cos, sin, sense)? {
        Some(y) => Ok(y),
        None => torch(x, heads, cos, sin, sense),
    }
}

/// [`rotate_first`] in the memory of `x`.
pub(crate) fn rotate_first_in_place(
    x: &mut Tensor,
    heads: i64,
    cos: &Tensor,
    sin: &Tensor,
    sense: Sense,
) -> Result<()> {
    if !fused_in_place(x, heads, cos, sin, sense)? {
        let rotated = x.f_narrow(1, 0, heads)?;
        x.f_narrow(1, 0, heads)?.f_copy_(&torch(&rotated, heads, cos, sin, sense)?)?;
    }
    Ok(())
}

/// The rotation in libtorch's operators.
fn torch(x: &Tensor, heads: i64, cos: &Tensor, sin: &Tensor, sense: Sense) -> Result<Tensor> {
    let half = x.size()[2] / 2;
    let (cos, mut sin) = (cos.f_unsqueeze(1)?, sin.f_unsqueeze(1)?);
    if sense == Sense::Backward {
        sin = sin.f_neg()?;
    }
    let y = x.f_empty_like()?;
    let others = x.size()[1] - heads;
    y.f_narrow(1, heads, others)?.f_copy_(&x.f_narrow(1, heads, others)?)?;
    let (x, rotated) = (x.f_narrow(1, 0, heads)?, y.f_narrow(1, 0, heads)?);
    let (first, second) = (x.f_narrow(2, 0, half)?, x.f_narrow(2, half, half)?);
    let (mut y1, mut y2) = (rotated.f_narrow(2, 0, half)?, rotated.f_narrow(2, half, half)?);
    y1.f_copy_(&first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?)?;
    y2.f_copy_(&second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?)?;
    Ok(y)
}

/// The rotation in one pass. The heads of a token lie side by side; tokens may lie apart, as in a split of q, k and v.
fn fused(x: &Tensor, heads: i64, cos: &Tensor, sin: &Tensor, sense: Sense) -> Result<Option<Tensor>> {
    let (Some(rows), Some(cos), Some(sin)) = (Rows::of(x, 2), Rows::of(cos, 1), Rows::of(sin, 1)) else {
        return Ok(None);
    };
    let Ok(heads) = usize::try_from(heads) else { return Ok(None) };
    if cos.width() != sin.width() {
        return Ok(None);
    }
    let [y] = fill_rows(rows.count(), [&x.size()], |range, [y]| {
        dispatch(Rotation { x: rows, heads, cos, sin, sense, range, y });
    })?;
    Ok(Some(y))
}

/// [`fused`] in the memory of `x`; `false` if it does not lie in rows.
fn fused_in_place(x: &mut Tensor, heads: i64, cos: &Tensor, sin: &Tensor, sense: Sense) -> Result<bool> {
    let (Some(cos), Some(sin), Ok(heads)) = (Rows::of(cos, 1), Rows::of(sin, 1), usize::try_from(heads))
    else {
        return Ok(false);
    };
    if cos.width() != sin.width() {
        return Ok(false);
    }
    let changed = change_rows(x, 2, [], |x, []| dispatch(RotationInPlace { x, heads, cos, sin, sense }))?;
    Ok(changed.is_some())
}

struct RotationInPlace<'a> {
    x: RowsMut<'a>,
    heads: usize,
    cos: Rows<'a>,
    sin: Rows<'a>,
    sense: Sense,
}

impl Kernel for RotationInPlace<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(mut self) {
        let half = self.cos.width();
        for index in self.x.range() {
            let (cos, sin) = (self.cos.row(index), self.sin.row(index));
            let (rotated, _) = self.x.row(index).split_at_mut(self.heads * 2 * half);
            for head in rotated.chunks_exact_mut(2 * half) {
                let (x1, x2) = head.split_at_mut(half);
                for ((x1, x2), (&cos, &sin)) in x1.iter_mut().zip(x2).zip(cos.iter().zip(sin)) {
                    [*x1, *x2] = rotated_pair([*x1, *x2], cos, sin, self.sense);
                }
            }
        }
    }
}

/// Two numbers of a head, turned by their angle.
#[inline(always)]
fn rotated_pair([x1, x2]: [f32; 2], cos: f32, sin: f32, sense: Sense) -> [f32; 2] {
    let sin = if sense == Sense::Forward { sin } else { -sin };
    [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
}

struct Rotation<'a> {
    x: Rows<'a>,
    heads: usize,
    cos: Rows<'a>,
    sin: Rows<'a>,
    sense: Sense,
    range: Range<usize>,
    y: &'a mut [f32],
}

impl Kernel for Rotation<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let half = self.cos.width();
        for (index, y) in self.range.zip(self.y.chunks_exact_mut(self.x.width())) {
            let (cos, sin) = (self.cos.row(index), self.sin.row(index));
            let (x, others) = self.x.row(index).split_at(self.heads * 2 * half);
            let (y, other_results) = y.split_at_mut(self.heads * 2 * half);
            other_results.copy_from_slice(others);
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
                let angles = cos.iter().zip(sin);
                let results = y1.iter_mut().zip(y2.iter_mut());
                for (((&x1, &x2), (&cos, &sin)), (y1, y2)) in x1.iter().zip(x2).zip(angles).zip(results) {
                    [*y1, *y2] = rotated_pair([x1, x2], cos, sin, self.sense);
                }
            }
        }
    }
}

impl Function for Rotary {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let [Some(x), Some(cos), Some(sin)] = inputs else {
            return Err("x, cos and sin are required".into());
        };
        context.save(&[cos, sin]);
        Ok(vec![rotate(x, cos, sin, Sense::Forward)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let (Some(grad), [cos, sin]) = (&grads[0], context.saved()) else {
            return Ok(vec![None, None, None]);
        };
        Ok(vec![Some(rotate(grad, cos, sin, Sense::Backward)?), None, None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};

    #[test]
    fn both_paths_rotate_alike_in_both_senses() {
        for [tokens, heads, half] in [[650, 12, 32], [5, 3, 4], [3, 1, 33], [1, 2, 1]] {
            // q and k of a tensor that holds v too
            let x = noise(1, &[tokens, heads + 2, 2 * half]).narrow(1, 0, heads);
            let angle = noise(2, &[tokens, half]) * 3.0;
            let (cos, sin) = (angle.cos(), angle.sin());
            for sense in [Sense::Forward, Sense::Backward] {
                for first in [heads, heads - 1] {
                    let y = fused(&x, first, &cos, &sin, sense).unwrap().unwrap();
                    assert!(y.is_contiguous());
                    assert_close(&y, &torch(&x, first, &cos, &sin, sense).unwrap(), 1e-7);
                    assert_eq!(y.narrow(1, first, heads - first), x.narrow(1, first, heads - first));
                }
            }
            let there = fused(&x, heads, &cos, &sin, Sense::Forward).unwrap().unwrap();
            assert_close(&fused(&there, heads, &cos, &sin, Sense::Backward).unwrap().unwrap(), &x, 1e-6);
        }
    }

    #[test]
    fn in_place_gives_the_same_bits_and_leaves_the_rest() {
        for [tokens, heads, half] in [[650, 12, 32], [5, 3, 4], [3, 1, 33], [1, 2, 1]] {
            let angle = noise(2, &[tokens, half]) * 3.0;
            let (cos, sin) = (angle.cos(), angle.sin());
            let x = noise(1, &[tokens, heads + 1, 2 * half]);
            for sense in [Sense::Forward, Sense::Backward] {
                let mut y = x.copy();
                assert!(fused_in_place(&mut y, heads, &cos, &sin, sense).unwrap());
                assert_eq!(y, fused(&x, heads, &cos, &sin, sense).unwrap().unwrap());
            }
            // The heads of a token of which some are not its own, and those that lie apart.
            let mut part = x.copy().narrow(1, 1, heads);
            rotary_(&mut part, heads - 1, &cos, &sin).unwrap();
            let expected =
                rotate_first(&x.narrow(1, 1, heads), heads - 1, &cos, &sin, Sense::Forward).unwrap();
            assert_eq!(part, expected);
            let mut apart = x.transpose(0, 1).contiguous().copy().transpose(0, 1);
            rotary_(&mut apart, heads, &cos, &sin).unwrap();
            assert_close(&apart, &rotate_first(&x, heads, &cos, &sin, Sense::Forward).unwrap(), 1e-7);
        }
    }

    #[test]
    fn heads_that_lie_apart_take_the_path_through_libtorch() {
        let angle = noise(2, &[5, 4]);
        let x = noise(1, &[3, 5, 8]).transpose(0, 1);
        assert!(fused(&x, 5, &angle.cos(), &angle.sin(), Sense::Forward).unwrap().is_none());
        let y = rotate(&x, &angle.cos(), &angle.sin(), Sense::Forward).unwrap();
        assert_close(&y, &rotate(&x.contiguous(), &angle.cos(), &angle.sin(), Sense::Forward).unwrap(), 1e-7);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (x, cos, sin) = (noise(1, &[301, 12, 64]), noise(2, &[301, 32]), noise(3, &[301, 32]));
        let of = |threads| {
            tch::set_num_threads(threads);
            fused(&x, 12, &cos, &sin, Sense::Forward).unwrap().unwrap()
        };
        assert_eq!(of(1), of(3));
    }
}
