//! A tensor as a factor of a product.

use super::number::Number;
use crate::cpu::rows::is_plain;
use std::{marker::PhantomData, ptr::NonNull};
use tch::Tensor;

/// A matrix on the CPU; its numbers lie at fixed distances, in whatever order.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T = f32> {
    pub(super) start: NonNull<T>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: a matrix is only read, and nothing writes its numbers during its life (see the comment of `rows`).
unsafe impl<T: Number> Send for Matrix<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Matrix<'_, T> {}

impl<'a, T: Number> Matrix<'a, T> {
    /// A tensor `[rows, columns]`; `None` if its numbers are no `T` on the CPU, or there are none.
    pub(crate) fn of(tensor: &'a Tensor) -> Option<Self> {
        if !is_plain(tensor, T::KIND)? || tensor.numel() == 0 {
            return None;
        }
        let ([rows, columns], [row_stride, column_stride]) =
            (tensor.size().try_into().ok()?, tensor.stride().try_into().ok()?);
        let [rows, columns, row_stride, column_stride]: [i64; 4] = [rows, columns, row_stride, column_stride];
        Some(Self {
            start: NonNull::new(tensor.data_ptr().cast())?,
            rows: usize::try_from(rows).ok()?,
            columns: usize::try_from(columns).ok()?,
            row_stride: usize::try_from(row_stride).ok()?,
            column_stride: usize::try_from(column_stride).ok()?,
            tensor: PhantomData,
        })
    }

    /// A matrix at an address.
    ///
    /// # Safety
    /// Rows and columns, at their strides, are numbers of one tensor, which nobody writes for as long as `'a`.
    pub(in crate::cpu) unsafe fn at(
        start: NonNull<T>,
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        Self { start, rows, columns, row_stride, column_stride, tensor: PhantomData }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Its transpose.
    pub(crate) fn turned(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The number of a row and column.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    pub(super) unsafe fn number(&self, row: usize, column: usize) -> f32 {
        // SAFETY: libtorch keeps every element that sizes and strides lead to inside the tensor's memory.
        unsafe { self.start.as_ptr().add(row * self.row_stride + column * self.column_stride).read() }
            .single()
    }

    /// Row `index` of a matrix whose rows lie dense.
    pub(super) fn dense_row(&self, index: usize) -> &'a [T] {
        assert!(index < self.rows && self.column_stride == 1, "row {index} of {}", self.rows);
        // SAFETY: libtorch keeps every element that sizes and strides lead to inside the tensor's memory; the row is side by side.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(index * self.row_stride), self.columns) }
    }
}
