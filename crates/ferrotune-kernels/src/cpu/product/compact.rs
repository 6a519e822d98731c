//! A weight's numbers in fewer bits, each of which can be had again exactly.
//!
//! A product of few rows takes as long as it takes to read the weight. Models that were published in bf16, or quantised to 4 or 8
//! bits, have f32 numbers that hold no more than that. What they hold is found in the numbers themselves, wherever they came from;
//! sums are of the same f32 numbers in the same order, so a product with the compact form equals the dense one bit by bit.

use super::{Matrix, vector::Vector};
use crate::cpu::{Kernel, dispatch};
use ferrotune_autograd::parallel_for;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Numbers of a block; a row of the weight is cut into whole blocks.
pub(super) const BLOCK: usize = 32;
/// Rows that a thread reads at a time.
const ROWS: usize = 64;

/// The rows of a matrix in one of the forms that hold all of its numbers.
#[derive(Debug)]
pub(crate) enum Compact {
    /// 6 bits a number.
    Nibbles(Vec<Nibbles>),
    /// 9 bits a number.
    Bytes(Vec<Bytes>),
    /// 16 bits a number.
    Halves(Vec<Halves>),
}

impl Compact {
    /// The numbers of `matrix`, whose rows lie dense; `None` if no form holds all of them.
    pub(crate) fn of(matrix: &Matrix) -> Option<Self> {
        if matrix.column_stride != 1 || !matrix.columns.is_multiple_of(BLOCK) {
            return None;
        }
        blocks_of(matrix)
            .map(Self::Nibbles)
            .or_else(|| blocks_of(matrix).map(Self::Bytes))
            .or_else(|| blocks_of(matrix).map(Self::Halves))
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Nibbles(blocks) => size_of_val(blocks.as_slice()),
            Self::Bytes(blocks) => size_of_val(blocks.as_slice()),
            Self::Halves(blocks) => size_of_val(blocks.as_slice()),
        }
    }
}

/// [`BLOCK`] numbers in fewer bits.
pub(super) trait Block: Copy + Send {
    /// The block that holds exactly these numbers, if there is one. `FMA` says that the machine multiplies and adds in one instruction.
    fn of(numbers: &[f32; BLOCK]) -> Option<Self>;

    /// The numbers from `part * V::LANES` on.
    ///
    /// # Safety
    /// As the methods of [`Vector`]; `(part + 1) * V::LANES` is at most [`BLOCK`].
    unsafe fn part<V: Vector>(&self, part: usize) -> V;
}

/// `step * code + base` with codes of 4 bits, rounded once.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Nibbles {
    step: f32,
    base: f32,
    /// In the low halves the first numbers, in the high ones the others.
    codes: [u8; BLOCK / 2],
}

impl Block for Nibbles {
    #[inline(always)]
    fn of(numbers: &[f32; BLOCK]) -> Option<Self> {
        let (mut base, mut largest) = (numbers[0], numbers[0]);
        for &number in numbers {
            base = if number < base { number } else { base };
            largest = if number > largest { number } else { largest };
        }
        // What the step is depends on the code of the largest number.
        for code in (1..=15u8).rev() {
            let step = (largest - base) / f32::from(code);
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let (mut codes, mut different) = ([0u8; BLOCK], 0);
            for (code, &number) in codes.iter_mut().zip(numbers) {
                let nearest = ((number - base) * inverse + 0.5) as i32;
                let again = step.mul_add(nearest as f32, base);
                different |= again.to_bits() ^ number.to_bits();
                *code = nearest as u8;
            }
            if different == 0 {
                let mut pairs = [0; BLOCK / 2];
                for (index, pair) in pairs.iter_mut().enumerate() {
                    *pair = codes[index] | codes[index + BLOCK / 2] << 4;
                }
                return Some(Self { step, base, codes: pairs });
            }
        }
        None
    }

    #[inline(always)]
    unsafe fn part<V: Vector>(&self, part: usize) -> V {
        let first = part * V::LANES;
        // SAFETY: as the caller says; half a block is a whole number of registers.
        unsafe {
            V::nibbles(self.codes.as_ptr().add(first % (BLOCK / 2)), first >= BLOCK / 2, self.step, self.base)
        }
    }
}

/// `step * code` with signed codes of 8 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Bytes {
    step: f32,
    codes: [i8; BLOCK],
}

impl Block for Bytes {
    #[inline(always)]
    fn of(numbers: &[f32; BLOCK]) -> Option<Self> {
        let mut largest = 0.0;
        for number in numbers {
            largest = if number.abs() > largest { number.abs() } else { largest };
        }
        for code in (1..=127u8).rev() {
            let step = largest / f32::from(code);
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let (mut codes, mut different) = ([0i8; BLOCK], 0);
            for (code, &number) in codes.iter_mut().zip(numbers) {
                let nearest = (number * inverse + 0.5f32.copysign(number)) as i32;
                different |= (step * nearest as f32).to_bits() ^ number.to_bits();
                *code = nearest as i8;
            }
            if different == 0 {
                return Some(Self { step, codes });
            }
        }
        None
    }

    #[inline(always)]
    unsafe fn part<V: Vector>(&self, part: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { V::bytes(self.codes.as_ptr().add(part * V::LANES), self.step) }
    }
}

/// The upper halves of numbers whose lower halves are zero: bf16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halves([u16; BLOCK]);

impl Block for Halves {
    #[inline(always)]
    fn of(numbers: &[f32; BLOCK]) -> Option<Self> {
        let (mut halves, mut lower) = ([0; BLOCK], 0);
        for (half, number) in halves.iter_mut().zip(numbers) {
            lower |= number.to_bits() & 0xffff;
            *half = (number.to_bits() >> 16) as u16;
        }
        (lower == 0).then_some(Self(halves))
    }

    #[inline(always)]
    unsafe fn part<V: Vector>(&self, part: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { V::halves(self.0.as_ptr().add(part * V::LANES)) }
    }
}

/// The blocks of all rows, one row after the other.
fn blocks_of<B: Block>(matrix: &Matrix) -> Option<Vec<B>> {
    let in_a_row = matrix.columns / BLOCK;
    let fits = AtomicBool::new(true);
    let parts = Mutex::new(Vec::new());
    parallel_for(matrix.rows.div_ceil(ROWS), 1, |tasks| {
        for task in tasks {
            let rows = task * ROWS..((task + 1) * ROWS).min(matrix.rows);
            let mut blocks = Vec::with_capacity(rows.len() * in_a_row);
            if fits.load(Ordering::Relaxed) {
                dispatch(Rows { matrix, rows, blocks: &mut blocks, fits: &fits });
            }
            if let Ok(mut parts) = parts.lock() {
                parts.push((task, blocks));
            }
        }
    });
    let mut parts = parts.into_inner().ok().filter(|_| fits.into_inner())?;
    parts.sort_unstable_by_key(|(task, _)| *task);
    let mut all = Vec::with_capacity(matrix.rows * in_a_row);
    for (_, blocks) in parts {
        all.extend_from_slice(&blocks);
    }
    (all.len() == matrix.rows * in_a_row).then_some(all)
}

struct Rows<'a, B> {
    matrix: &'a Matrix<'a>,
    rows: std::ops::Range<usize>,
    blocks: &'a mut Vec<B>,
    fits: &'a AtomicBool,
}

impl<B: Block> Kernel for Rows<'_, B> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for row in self.rows {
            for block in self.matrix.dense_row(row).as_chunks().0 {
                match B::of(block) {
                    Some(block) => self.blocks.push(block),
                    None => return self.fits.store(false, Ordering::Relaxed),
                }
            }
        }
    }
}
