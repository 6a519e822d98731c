//! Tensors as rows of numbers, read, and new ones filled.
//!
//! libtorch lets several handles share one memory, and no Rust borrow can see a write through another handle. What holds here is
//! what libtorch demands of every operator: while a function reads its inputs, nobody writes them. Inside this module that is so,
//! for all that is written is tensors made here that have no second handle yet.

use crate::error::Result;
use ferrotune_autograd::parallel_for;
use std::{marker::PhantomData, ops::Range, ptr::NonNull, slice};
use tch::{Device, Kind, Tensor};

/// Elements worth a thread: below about 10 microseconds of work a second thread costs more than it brings.
pub(super) const ELEMENTS_PER_THREAD: usize = 1 << 14;

/// A tensor of f32 on the CPU as rows of numbers that lie side by side; the rows may lie apart, as those of a view's columns do.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    start: NonNull<f32>,
    count: usize,
    width: usize,
    stride: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: `Rows` only reads, and nothing writes the numbers during its life (see the module's comment).
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// The last `inner_dims` dimensions as rows, all others as their count; `None` if the tensor is not f32 on the CPU, is empty or
    /// does not lie that way.
    pub(crate) fn of(tensor: &'a Tensor, inner_dims: usize) -> Option<Self> {
        if !is_plain(tensor, Kind::Float)? {
            return None;
        }
        let (sizes, strides) = (tensor.size(), tensor.stride());
        if inner_dims > sizes.len() || sizes.contains(&0) {
            return None;
        }
        let outer_dims = sizes.len() - inner_dims;
        let width = dense_step(&sizes[outer_dims..], &strides[outer_dims..], 1)?;
        // A row apart from the next by the stride of the last dimension that has more than one place.
        let last = (0..outer_dims).rev().find(|&dim| sizes[dim] > 1);
        let stride = last.map_or(width, |dim| strides[dim]);
        dense_step(&sizes[..outer_dims], &strides[..outer_dims], stride)?;
        Some(Self {
            start: NonNull::new(tensor.data_ptr().cast())?,
            count: usize::try_from(sizes[..outer_dims].iter().product::<i64>()).ok()?,
            width: usize::try_from(width).ok()?,
            stride: usize::try_from(stride).ok()?,
            tensor: PhantomData,
        })
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Numbers in a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Numbers from the start of a row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Row `index`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.count, "row {index} of {}", self.count);
        // SAFETY: libtorch keeps every element that sizes and strides lead to inside the tensor's memory, and these do for each
        // row below `count`: `of` proved that they are `width` numbers side by side. The memory lives as long as the tensor, which
        // is borrowed for 'a; it is not written during that time.
        unsafe { slice::from_raw_parts(self.start.as_ptr().add(index * self.stride), self.width) }
    }
}

/// Whether a tensor's numbers lie at its strides: another one has no address to be asked for.
pub(crate) fn is_strided(tensor: &Tensor) -> bool {
    !tensor.is_sparse() && !tensor.is_mkldnn()
}

/// Whether a tensor's numbers are of that kind, in this process's memory, at its strides.
pub(super) fn is_plain(tensor: &Tensor, kind: Kind) -> Option<bool> {
    Some(
        tensor.defined()
            && tensor.device() == Device::Cpu
            && tensor.f_kind().ok()? == kind
            && is_strided(tensor)
            && !tensor.f_is_neg().ok()?,
    )
}

/// The step of a dimension before these, if they lie densely from `step` on.
fn dense_step(sizes: &[i64], strides: &[i64], mut step: i64) -> Option<i64> {
    for (&size, &stride) in sizes.iter().zip(strides).rev() {
        // Where there is a single place, no step is ever taken.
        if size > 1 && stride != step {
            return None;
        }
        step = step.checked_mul(size)?;
    }
    Some(step)
}

/// Start of the memory of a tensor made by [`fill_rows`].
struct Start(NonNull<f32>);

// SAFETY: threads form slices of disjoint parts only, see `fill_rows`.
unsafe impl Sync for Start {}

/// New f32 tensors of `count` rows each, filled by `body` on libtorch's threads: it is given a range of rows and, of every tensor, the
/// numbers of these rows (of no use are the numbers found there).
pub(crate) fn fill_rows<const N: usize>(
    count: usize,
    shapes: [&[i64]; N],
    body: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) -> Result<[Tensor; N]> {
    fill_rows_beside(0, count, shapes, body)
}

/// [`fill_rows`] where `body` works on another `elements` a row beside.
pub(crate) fn fill_rows_beside<const N: usize>(
    elements: usize,
    count: usize,
    shapes: [&[i64]; N],
    body: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) -> Result<[Tensor; N]> {
    let mut tensors = Vec::with_capacity(N);
    for shape in shapes {
        tensors.push(Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?);
    }
    let widths: Vec<usize> = tensors.iter().map(|tensor| tensor.numel() / count.max(1)).collect();
    let starts: Vec<Start> = tensors
        .iter()
        // An empty tensor has no memory; slices of no numbers may start anywhere.
        .map(|tensor| Start(NonNull::new(tensor.data_ptr().cast()).unwrap_or(NonNull::dangling())))
        .collect();
    let per_row = elements + widths.iter().sum::<usize>();
    parallel_for(count, ELEMENTS_PER_THREAD / per_row.max(1), |range| {
        let parts = std::array::from_fn(|place| {
            let (start, width) = (&starts[place].0, widths[place]);
            // SAFETY: a new tensor is dense and holds at least `count * width` f32 in memory that no other handle knows; `range` lies
            // within `0..count` and the ranges of `parallel_for` are disjoint, so no two of these slices overlap. They end with the
            // call, before the tensors are used again. The memory comes from libtorch's allocator, and any bits are an f32.
            unsafe { slice::from_raw_parts_mut(start.as_ptr().add(range.start * width), range.len() * width) }
        });
        body(range, parts);
    });
    tensors.try_into().map_err(|_| tch::TchError::Torch("a tensor for each shape".to_owned()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(shape: &[i64]) -> Tensor {
        Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(shape)
    }

    fn read(tensor: &Tensor, inner_dims: usize) -> Option<Vec<Vec<f32>>> {
        let rows = Rows::of(tensor, inner_dims)?;
        Some((0..rows.count()).map(|index| rows.row(index).to_vec()).collect())
    }

    #[test]
    fn rows_read_what_the_tensor_holds() {
        let x = sequence(&[2, 3, 4]);
        for (view, inner_dims) in [
            (x.shallow_clone(), 1),
            (x.shallow_clone(), 2),
            (x.shallow_clone(), 0),
            (x.narrow(2, 1, 2), 1), // columns of a wider tensor
            (x.narrow(1, 1, 2), 2),
            (x.narrow(0, 1, 1).transpose(0, 1), 1), // a dimension of one place
            (x.select(0, 1).select(0, 0), 1),
            (x.narrow(1, 0, 1).expand([2, 5, 4], false).narrow(0, 0, 1), 1), // the same row again and again
        ] {
            let width: i64 = view.size().iter().rev().take(inner_dims).product();
            let expected = Vec::<Vec<f32>>::try_from(view.reshape([-1, width])).unwrap();
            assert_eq!(read(&view, inner_dims).unwrap(), expected, "{:?}", view.size());
        }
    }

    #[test]
    fn what_does_not_lie_in_rows_is_refused() {
        let x = sequence(&[2, 3, 4]);
        for (tensor, inner_dims) in [
            (x.transpose(1, 2), 1),
            (x.narrow(1, 1, 2), 1), // rows at uneven distances
            (x.narrow(2, 1, 2), 2),
            (x.to_kind(Kind::Double), 1),
            (x.to_kind(Kind::BFloat16), 1),
            (x.narrow(0, 0, 0), 1),
            (x.get(0).get(0).expand([2, 3, 4], false).transpose(0, 2), 1),
            (x.reshape([6, 4]).to_sparse_sparse_dim(2), 1),
            (x.internal_neg_view(), 1),
            (Tensor::new(), 1),
            (x, 4),
        ] {
            assert!(Rows::of(&tensor, inner_dims).is_none(), "{tensor:?} {inner_dims}");
        }
    }

    #[test]
    fn every_row_is_filled_by_its_own_number() {
        let (count, wide) = (10_000usize, [100i64, 100, 5]);
        let [x, y] = fill_rows(count, [&wide, &[10_000]], |range, [x, y]| {
            for ((index, row), single) in range.zip(x.chunks_exact_mut(5)).zip(y) {
                row.fill(index as f32);
                *single = -(index as f32);
            }
        })
        .unwrap();
        let expected = sequence(&[10_000]);
        assert_eq!(y, -&expected);
        assert_eq!(x, expected.unsqueeze(1).repeat([1, 5]).reshape(wide));
        let [none] = fill_rows(0, [&[0, 3]], |_, _| {}).unwrap();
        assert_eq!(none.size(), [0, 3]);
    }
}
