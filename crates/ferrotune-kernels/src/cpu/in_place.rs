//! Tensors changed where they lie: the one place where this crate writes to memory that may have other handles.
//!
//! A `&mut Tensor` is one handle of several, so it does not say by itself that nobody else uses the memory. As with libtorch's own
//! in-place operators it is the caller's word that no other thread does so meanwhile. That the tensors of one call do not overlap
//! is checked here. Each change is counted, so that libtorch refuses a backward pass that saved what is changed.

use super::{
    Rows,
    rows::{ELEMENTS_PER_THREAD, fill_rows_beside, is_plain},
};
use crate::error::Result;
use ferrotune_autograd::{mark_changed, parallel_for};
use std::{ops::Range, ptr::NonNull, slice};
use tch::{Kind, Tensor};

/// Tensors of one size: element `i` of those that change is computed from element `i` of all.
pub(crate) struct Change<'a, const CHANGED: usize, const READ: usize> {
    /// Those that change.
    pub(crate) changed: [&'a mut Tensor; CHANGED],
    /// Those that are only read.
    pub(crate) read: [&'a Tensor; READ],
}

/// Changes the elements of many groups of tensors in one parallel region. `body` is given the index of a group and the same part of
/// each of its tensors; how groups are cut into parts depends on the number of threads.
///
/// Returns `false`, and nothing has changed, unless every tensor is f32 on the CPU with its elements side by side, all tensors of a
/// group have the same number of them, and none that changes overlaps another.
pub(crate) fn change_all<const CHANGED: usize, const READ: usize>(
    changes: &mut [Change<'_, CHANGED, READ>],
    body: impl Fn(usize, [&mut [f32]; CHANGED], [&[f32]; READ]) + Sync,
) -> bool {
    let Some(groups) = Group::of_all(changes) else { return false };
    parallel_for(groups.last().map_or(0, |group| group.end), ELEMENTS_PER_THREAD, |range| {
        let mut start = range.start;
        let first = groups.partition_point(|group| group.end <= start);
        for (index, group) in groups.iter().enumerate().skip(first) {
            if start == range.end {
                break;
            }
            let end = group.end.min(range.end);
            let part = start - group.start..end - group.start;
            start = end;
            if !part.is_empty() {
                // SAFETY: `part` lies within the group, and the ranges of `parallel_for` are disjoint.
                let (changed, read) = unsafe { group.part(part) };
                body(index, changed, read);
            }
        }
    });
    for change in changes {
        for tensor in &mut change.changed {
            mark_changed(tensor);
        }
    }
    true
}

/// The memory of a [`Change`], and its place in the row of all elements.
struct Group<const CHANGED: usize, const READ: usize> {
    start: usize,
    end: usize,
    changed: [NonNull<f32>; CHANGED],
    read: [NonNull<f32>; READ],
}

// SAFETY: threads form slices of disjoint parts only, see `change_all`.
unsafe impl<const CHANGED: usize, const READ: usize> Sync for Group<CHANGED, READ> {}

impl<const CHANGED: usize, const READ: usize> Group<CHANGED, READ> {
    /// `None` if the tensors are not what [`change_all`] demands.
    fn of_all(changes: &[Change<'_, CHANGED, READ>]) -> Option<Vec<Self>> {
        let mut groups: Vec<Self> = Vec::with_capacity(changes.len());
        let mut spans = Vec::with_capacity(changes.len() * (CHANGED + READ));
        for Change { changed, read } in changes {
            let length = changed.first()?.numel();
            let mut memory = |tensor: &Tensor, changes: bool| {
                let start = dense(tensor).filter(|_| tensor.numel() == length)?;
                let address = start.addr().get();
                spans.push(Span { memory: address..address + length * size_of::<f32>(), changes });
                Some(start)
            };
            let (mut changed_memory, mut read_memory) =
                ([NonNull::dangling(); CHANGED], [NonNull::dangling(); READ]);
            for (memory_of, tensor) in changed_memory.iter_mut().zip(changed) {
                *memory_of = memory(tensor, true)?;
            }
            for (memory_of, tensor) in read_memory.iter_mut().zip(read) {
                *memory_of = memory(tensor, false)?;
            }
            let start = groups.last().map_or(0, |group| group.end);
            groups.push(Self { start, end: start + length, changed: changed_memory, read: read_memory });
        }
        (!changes_overlap(spans)).then_some(groups)
    }

    /// # Safety
    /// `part` lies within the group's elements, and nobody else holds a part that overlaps it.
    unsafe fn part<'a>(&self, part: Range<usize>) -> ([&'a mut [f32]; CHANGED], [&'a [f32]; READ]) {
        // SAFETY: `of_all` found as many f32 side by side in each tensor as the group has elements, in memory that the tensors,
        // borrowed by the caller of `change_all`, keep alive; it also found that what changes overlaps nothing. Nobody else holds
        // this part. Any bits are an f32.
        unsafe {
            (
                self.changed
                    .map(|start| slice::from_raw_parts_mut(start.as_ptr().add(part.start), part.len())),
                self.read.map(|start| slice::from_raw_parts(start.as_ptr().add(part.start), part.len())),
            )
        }
    }
}

/// A part of the rows of a tensor, for one thread to change.
pub(crate) struct RowsMut<'a> {
    rows: &'a Start,
    part: Range<usize>,
}

/// Where the rows of a tensor lie.
struct Start {
    start: NonNull<f32>,
    width: usize,
    stride: usize,
}

// SAFETY: threads form slices of different rows only, see `change_rows`.
unsafe impl Sync for Start {}

impl RowsMut<'_> {
    /// The rows of this part.
    pub(crate) fn range(&self) -> Range<usize> {
        self.part.clone()
    }

    /// Row `index`, one of [`RowsMut::range`].
    #[inline(always)]
    pub(crate) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(self.part.contains(&index), "row {index} of {:?}", self.part);
        // SAFETY: `change_rows` found `width` f32 side by side at each row's start, and rows that do not overlap, in memory that
        // the tensor, borrowed by its caller, keeps alive; it hands out each row in one part only. The slice borrows the part, so no
        // second slice of this row exists. Any bits are an f32.
        unsafe {
            slice::from_raw_parts_mut(self.rows.start.as_ptr().add(index * self.rows.stride), self.rows.width)
        }
    }
}

/// Changes the rows of `x` (its last `inner_dims` dimensions, as in [`Rows::of`]) on libtorch's threads, and fills a new tensor for each
/// shape on the way, as [`fill_rows`](super::fill_rows) does. `None`, and nothing has changed, where `x` has no such rows or they overlap.
pub(crate) fn change_rows<const N: usize>(
    x: &mut Tensor,
    inner_dims: usize,
    shapes: [&[i64]; N],
    body: impl Fn(RowsMut<'_>, [&mut [f32]; N]) + Sync,
) -> Result<Option<[Tensor; N]>> {
    let Some((count, width, stride)) =
        Rows::of(x, inner_dims).map(|rows| (rows.count(), rows.width(), rows.stride()))
    else {
        return Ok(None);
    };
    let Some(start) = NonNull::new(x.data_ptr().cast()) else { return Ok(None) };
    if count > 1 && stride < width {
        return Ok(None);
    }
    let rows = Start { start, width, stride };
    let results = fill_rows_beside(width, count, shapes, |part, results| {
        body(RowsMut { rows: &rows, part }, results);
    })?;
    mark_changed(x);
    Ok(Some(results))
}

/// Where the elements of an f32 tensor on the CPU start, if they lie side by side in order.
fn dense(tensor: &Tensor) -> Option<NonNull<f32>> {
    if !is_plain(tensor, Kind::Float)? || !tensor.is_contiguous() {
        return None;
    }
    match tensor.numel() {
        // An empty tensor may have no memory; slices of no numbers may start anywhere.
        0 => Some(NonNull::dangling()),
        _ => NonNull::new(tensor.data_ptr().cast()),
    }
}

/// Addresses of a tensor's memory.
struct Span {
    memory: Range<usize>,
    changes: bool,
}

/// Whether memory that changes is also another tensor's.
fn changes_overlap(mut spans: Vec<Span>) -> bool {
    spans.retain(|span| !span.memory.is_empty());
    spans.sort_unstable_by_key(|span| span.memory.start);
    let (mut any_end, mut change_end) = (0, 0);
    spans.iter().any(|Span { memory, changes }| {
        let overlaps = memory.start < change_end || (*changes && memory.start < any_end);
        any_end = any_end.max(memory.end);
        if *changes {
            change_end = change_end.max(memory.end);
        }
        overlaps
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;
    use tch::{Device, Kind};

    fn add(pairs: &mut [(Tensor, Tensor)]) -> bool {
        let mut changes: Vec<Change<1, 1>> =
            pairs.iter_mut().map(|(sum, x)| Change { changed: [sum], read: [x] }).collect();
        change_all(&mut changes, |_, [sum], [x]| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x))
    }

    #[test]
    fn every_element_changes_once_whatever_the_number_of_threads() {
        for threads in [1, 3] {
            tch::set_num_threads(threads);
            let sizes = [0, 1, 70_001, 33, 0, 16_384, 5, 0];
            let mut pairs: Vec<_> = sizes.map(|size| (noise(1, &[size]), noise(2, &[1, size]).get(0))).into();
            let expected: Vec<Tensor> = pairs.iter().map(|(sum, x)| sum + x).collect();
            assert!(add(&mut pairs));
            for ((sum, _), expected) in pairs.iter().zip(&expected) {
                assert_eq!(sum, expected);
            }
        }
        assert!(add(&mut []));
    }

    #[test]
    fn what_overlaps_is_refused_unless_it_is_only_read() {
        let memory = noise(1, &[40]);
        let of = |start, length| memory.narrow(0, start, length);
        let other = || noise(2, &[10]);
        for mut pairs in [
            vec![(of(0, 10), of(0, 10))],
            vec![(of(0, 10), of(9, 10))],
            vec![(of(0, 10), other()), (of(9, 10), other())],
            vec![(other(), of(0, 10)), (of(5, 10), other())],
            vec![(of(0, 10), other()), (of(20, 10), of(9, 10))],
            vec![(of(0, 30), noise(2, &[30])), (of(12, 10), other())],
        ] {
            let before = memory.copy();
            assert!(!add(&mut pairs));
            assert_eq!(memory, before, "nothing has changed");
        }
        assert!(add(&mut [
            (of(0, 10), of(10, 10)),
            (of(20, 10), of(15, 5).repeat([2])),
            (other(), of(10, 10))
        ]));
    }

    #[test]
    fn what_does_not_lie_side_by_side_is_refused() {
        let (x, y) = (noise(1, &[3, 4]), noise(2, &[4, 3]));
        for (sum, x) in [
            (x.tr(), y.shallow_clone()),
            (y.shallow_clone(), x.tr()),
            (noise(3, &[12]), noise(3, &[1]).expand([12], false)),
            (x.to_kind(Kind::Double), y.shallow_clone()),
            (x.shallow_clone(), y.to_kind(Kind::BFloat16)),
            (noise(3, &[12]), noise(3, &[11])),
            (x.internal_neg_view(), y.shallow_clone()),
            (Tensor::new(), Tensor::new()),
        ] {
            assert!(!add(&mut [(sum, x)]));
        }
    }

    #[test]
    fn every_row_changes_once_and_what_lies_between_stays() {
        let wide = noise(1, &[1001, 20]);
        let before = wide.copy();
        let mut x = wide.narrow(1, 4, 8);
        let [sums] = change_rows(&mut x, 1, [&[1001]], |mut rows, [sums]| {
            for (index, sum) in rows.range().zip(sums) {
                *sum = rows.row(index).iter().sum();
                rows.row(index).iter_mut().for_each(|number| *number += index as f32);
            }
        })
        .unwrap()
        .unwrap();
        let added = Tensor::arange(1001, (Kind::Float, Device::Cpu)).unsqueeze(1);
        let expected = before.copy();
        expected.narrow(1, 4, 8).copy_(&(before.narrow(1, 4, 8) + added));
        assert_eq!(wide, expected);
        let expected = before.narrow(1, 4, 8).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        assert!((sums - expected).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn rows_that_overlap_are_refused() {
        for mut x in [
            noise(1, &[1, 8]).expand([3, 8], false),
            noise(1, &[20]).as_strided([3, 8], [4, 1], None),
            noise(1, &[8, 3]).tr(),
        ] {
            assert!(change_rows(&mut x, 1, [], |_, []| panic!("rows that overlap")).unwrap().is_none());
        }
    }

    #[test]
    fn libtorch_notices_the_change() {
        let x = noise(1, &[5]).set_requires_grad(true);
        let factor = noise(2, &[5]);
        let y = &x * &factor;
        assert!(add(&mut [(factor, noise(3, &[5]))]));
        let error = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("modified by an inplace operation"), "{error}");
    }
}
