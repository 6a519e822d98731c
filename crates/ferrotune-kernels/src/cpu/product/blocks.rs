//! Numbers in blocks of few bits, each of which can be had again exactly.

use super::{
    number::Number,
    right_rows::{BlockRows, RightRows},
    vector::Vector,
};
use half::bf16;

/// Numbers of a block; a row of a matrix is cut into whole blocks.
pub(super) const BLOCK: usize = 32;

/// [`BLOCK`] numbers in fewer bits.
pub(crate) trait Block: Copy + Send + Sync {
    /// The block that holds exactly these numbers, if there is one.
    fn of(numbers: &[f32; BLOCK]) -> Option<Self>;

    /// The numbers from `part * V::LANES` on.
    ///
    /// # Safety
    /// As the methods of [`Vector`]; `(part + 1) * V::LANES` is at most [`BLOCK`].
    unsafe fn part<V: Vector>(&self, part: usize) -> V;

    /// The number `place`, which is less than [`BLOCK`].
    fn number(&self, place: usize) -> f32;
}

/// The whole number next to one between -2^22 and 2^22, and its lowest bits.
#[inline(always)]
fn nearest(number: f32) -> (f32, u8) {
    // Numbers from 2^23 on are whole; the lowest bits of this one are zero.
    const LARGE: f32 = (3 << 22) as f32;
    let sum = number + LARGE;
    (sum - LARGE, sum.to_bits() as u8)
}

/// The numbers of a block made one, by a function of two that does not mind the order; half of them with the other half, so that registers
/// take many.
#[inline(always)]
fn reduced(numbers: &[f32; BLOCK], of_two: impl Fn(f32, f32) -> f32) -> f32 {
    let mut numbers = *numbers;
    let mut count = BLOCK;
    while count > 1 {
        count /= 2;
        let (first, second) = numbers.split_at_mut(count);
        for (a, b) in first.iter_mut().zip(second) {
            *a = of_two(*a, *b);
        }
    }
    numbers[0]
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
        let base = reduced(numbers, |a, b| if a < b { a } else { b });
        let largest = reduced(numbers, |a, b| if a > b { a } else { b });
        // What the step is depends on the code of the largest number.
        for code in (1..=15u8).rev() {
            let step = (largest - base) / f32::from(code);
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let (mut codes, mut different) = ([0u8; BLOCK], 0);
            for (code, &number) in codes.iter_mut().zip(numbers) {
                let (nearest, bits) = nearest((number - base) * inverse);
                different |=
                    step.mul_add(nearest, base).to_bits() ^ number.to_bits() | u32::from(number.is_nan());
                *code = bits;
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

    #[inline(always)]
    fn number(&self, place: usize) -> f32 {
        let pair = self.codes[place % (BLOCK / 2)];
        let code = if place < BLOCK / 2 { pair & 15 } else { pair >> 4 };
        self.step.mul_add(f32::from(code), self.base)
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
        let largest = reduced(&numbers.map(f32::abs), |a, b| if a > b { a } else { b });
        for code in (1..=127u8).rev() {
            let step = largest / f32::from(code);
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            let (mut codes, mut different) = ([0i8; BLOCK], 0);
            for (code, &number) in codes.iter_mut().zip(numbers) {
                let (nearest, bits) = nearest(number * inverse);
                different |= (step * nearest).to_bits() ^ number.to_bits() | u32::from(number.is_nan());
                *code = bits.cast_signed();
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

    #[inline(always)]
    fn number(&self, place: usize) -> f32 {
        self.step * f32::from(self.codes[place])
    }
}

/// Numbers of bf16.
pub(crate) type Halves = [bf16; BLOCK];

impl Block for Halves {
    #[inline(always)]
    fn of(numbers: &[f32; BLOCK]) -> Option<Self> {
        let (mut halves, mut lower) = ([bf16::ZERO; BLOCK], 0);
        for (half, number) in halves.iter_mut().zip(numbers) {
            lower |= number.to_bits() & 0xffff;
            *half = bf16::from_bits((number.to_bits() >> 16) as u16);
        }
        (lower == 0).then_some(halves)
    }

    #[inline(always)]
    unsafe fn part<V: Vector>(&self, part: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { bf16::load(self.as_ptr().add(part * V::LANES)) }
    }

    #[inline(always)]
    fn number(&self, place: usize) -> f32 {
        self[place].single()
    }
}

/// A matrix whose rows are blocks, or the transpose of one.
pub(crate) struct BlockMatrix<'a, B> {
    blocks: &'a [B],
    blocks_in_a_row: usize,
    /// Whether the rows of blocks are columns of the matrix.
    pub(super) turned: bool,
}

impl<B> Clone for BlockMatrix<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for BlockMatrix<'_, B> {}

impl<'a, B: Block> BlockMatrix<'a, B> {
    /// Blocks that fill whole rows.
    pub(super) fn new(blocks: &'a [B], blocks_in_a_row: usize) -> Self {
        Self { blocks, blocks_in_a_row, turned: false }
    }

    /// Its transpose.
    pub(super) fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    /// Numbers of rows and of columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        let [rows, columns] = [self.blocks.len() / self.blocks_in_a_row.max(1), self.blocks_in_a_row * BLOCK];
        if self.turned { [columns, rows] } else { [rows, columns] }
    }

    /// The rows of blocks.
    pub(super) fn rows(&self) -> BlockRows<B> {
        BlockRows { start: self.blocks.as_ptr(), blocks_in_a_row: self.blocks_in_a_row }
    }

    /// The number of a row and column.
    ///
    /// # Safety
    /// It exists.
    pub(super) unsafe fn number(&self, row: usize, column: usize) -> f32 {
        let (line, place) = if self.turned { (column, row) } else { (row, column) };
        // SAFETY: as the caller says.
        unsafe { self.rows().number(line, place) }
    }
}
