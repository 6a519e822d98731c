//! How the numbers of a right factor come into registers, in whatever form they are kept.

use super::pack::SIDE;
use crate::cpu::product::{
    Matrix,
    blocks::Block,
    number::Number,
    right_rows::{BlockRows, DenseRows, RightRows},
};
use half::bf16;
use std::arch::x86_64::*;

/// A factor, of which a register takes 16 numbers.
pub(super) trait Numbers {
    /// Whether it takes those of a column, rather than of a row.
    const ALONG_COLUMNS: bool;

    /// The numbers of the mask from a row and column on, and zeros.
    ///
    /// # Safety
    /// The numbers of the mask exist, and others are not read. The machine has AVX-512.
    unsafe fn load(&self, row: usize, column: usize, mask: __mmask16) -> __m512;
}

/// A factor whose rows lie dense, or, if `COLUMNS`, whose columns do.
pub(super) struct Along<R, const COLUMNS: bool>(pub(super) R);

impl<R: Lines, const COLUMNS: bool> Numbers for Along<R, COLUMNS> {
    const ALONG_COLUMNS: bool = COLUMNS;

    #[inline(always)]
    unsafe fn load(&self, row: usize, column: usize, mask: __mmask16) -> __m512 {
        let (line, place) = if COLUMNS { (column, row) } else { (row, column) };
        // SAFETY: as the caller says.
        unsafe { self.0.load_masked(line, place, mask) }
    }
}

impl<T: Number> Numbers for Matrix<'_, T> {
    const ALONG_COLUMNS: bool = false;

    #[inline(always)]
    unsafe fn load(&self, row: usize, column: usize, mask: __mmask16) -> __m512 {
        let mut numbers = [0.0f32; SIDE];
        // SAFETY: numbers of the mask exist, and are the only ones that are read.
        unsafe {
            for (index, number) in numbers.iter_mut().enumerate().filter(|(index, _)| mask & 1 << index != 0)
            {
                *number = self.number(row, column.wrapping_add(index));
            }
            _mm512_loadu_ps(numbers.as_ptr())
        }
    }
}

/// Lines of numbers that lie side by side.
pub(super) trait Lines {
    /// # Safety
    /// As [`Numbers::load`].
    unsafe fn load_masked(&self, line: usize, place: usize, mask: __mmask16) -> __m512;
}

impl<T: Masked> Lines for DenseRows<T> {
    #[inline(always)]
    unsafe fn load_masked(&self, line: usize, place: usize, mask: __mmask16) -> __m512 {
        // SAFETY: as the caller says. An address of no number may be formed here.
        unsafe { T::load_masked(self.start.wrapping_add((line * self.stride).wrapping_add(place)), mask) }
    }
}

impl<B: Block> Lines for BlockRows<B> {
    #[inline(always)]
    unsafe fn load_masked(&self, line: usize, place: usize, mask: __mmask16) -> __m512 {
        // Lines are whole blocks, and tiles begin where a half of one does: all numbers exist, or none.
        debug_assert!(mask == 0 || mask == !0 && place.is_multiple_of(SIDE));
        // SAFETY: as the caller says.
        unsafe { if mask == 0 { _mm512_setzero_ps() } else { self.load(line, place) } }
    }
}

/// A number, some of which are read into a register.
pub(super) trait Masked: Number {
    /// # Safety
    /// As [`Numbers::load`].
    unsafe fn load_masked(from: *const Self, mask: __mmask16) -> __m512;
}

impl Masked for f32 {
    #[inline(always)]
    unsafe fn load_masked(from: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: as the caller says.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Masked for bf16 {
    #[inline(always)]
    unsafe fn load_masked(from: *const Self, mask: __mmask16) -> __m512 {
        // SAFETY: as the caller says; a bf16 is its 16 bits.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
}
