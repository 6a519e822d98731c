//! A weight's numbers in fewer bits, found in the numbers themselves.
//!
//! Models that were published in bf16, or quantised to 4 or 8 bits, have f32 numbers that hold no more than that, wherever they came
//! from. A product of few rows takes as long as it takes to read the weight; and a weight that is kept so takes a half to a fifth of the
//! memory. Sums are of the same f32 numbers in the same order, so a product with the compact form equals the dense one bit by bit.

use super::{
    Factor, Matrix,
    blocks::{BLOCK, Block, BlockMatrix, Bytes, Halves, Nibbles},
};
use crate::{
    cpu::{Kernel, dispatch},
    error::Result as KernelResult,
    filled_tensor::{self, filled_tensor, in_parts},
};
use std::{
    cell::RefCell,
    convert::Infallible,
    mem::MaybeUninit,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicBool, Ordering},
};
use tch::{Kind, Tensor};

/// Bytes of the f32 numbers of a block.
const BLOCK_BYTES: usize = BLOCK * size_of::<f32>();
/// Numbers that a thread reads at a time, about: they stay in its core's second cache.
const PART: usize = 48 << 10;

// A part of a tensor that is filled is whole blocks.
const _: () = assert!(filled_tensor::PART.is_multiple_of(BLOCK_BYTES));

thread_local! {
    /// Numbers that are to become blocks.
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The rows of a matrix in one of the forms that hold all of its numbers.
#[derive(Debug)]
pub(crate) struct Compact {
    form: Form,
    blocks_in_a_row: usize,
}

#[derive(Debug)]
enum Form {
    /// 6 bits a number.
    Nibbles(Vec<Nibbles>),
    /// 9 bits a number.
    Bytes(Vec<Bytes>),
    /// 16 bits a number.
    Halves(Vec<Halves>),
}

impl Compact {
    /// The numbers of an f32 tensor `[rows, columns]` on the CPU, whose rows lie dense; `None` if no form holds all of them.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        let matrix = Matrix::<f32>::of(tensor).filter(|matrix| matrix.column_stride == 1)?;
        let fill = |first: usize, bytes: &mut [u8]| {
            let row_bytes = matrix.columns * size_of::<f32>();
            for (row, targets) in (first / row_bytes..).zip(bytes.chunks_mut(row_bytes)) {
                for (target, number) in targets.as_chunks_mut::<4>().0.iter_mut().zip(matrix.dense_row(row)) {
                    *target = number.to_ne_bytes();
                }
            }
            Ok::<(), Infallible>(())
        };
        match Self::filled([matrix.rows, matrix.columns], fill) {
            Ok(found) => found,
            Err(never) => match never {},
        }
    }

    /// The numbers that `fill` writes as bytes of f32, whole rows at a time, given the place of the first byte; `None` if no form holds all
    /// of them. It may be asked for the same rows again.
    pub(crate) fn filled<E: Send>(
        [rows, columns]: [usize; 2],
        fill: impl Fn(usize, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<Option<Self>, E> {
        if rows == 0 || columns == 0 || !columns.is_multiple_of(BLOCK) {
            return Ok(None);
        }
        let shape = [rows, columns];
        let form = if let Some(blocks) = blocks_of(shape, &fill)? {
            Form::Nibbles(blocks)
        } else if let Some(blocks) = blocks_of(shape, &fill)? {
            Form::Bytes(blocks)
        } else if let Some(blocks) = blocks_of(shape, &fill)? {
            Form::Halves(blocks)
        } else {
            return Ok(None);
        };
        Ok(Some(Self { form, blocks_in_a_row: columns / BLOCK }))
    }

    /// As a factor of products.
    pub(crate) fn factor(&self) -> Factor<'_> {
        match &self.form {
            Form::Nibbles(blocks) => Factor::Nibbles(BlockMatrix::new(blocks, self.blocks_in_a_row)),
            Form::Bytes(blocks) => Factor::Bytes(BlockMatrix::new(blocks, self.blocks_in_a_row)),
            Form::Halves(blocks) => {
                let numbers = blocks.as_flattened();
                let columns = self.blocks_in_a_row * BLOCK;
                // SAFETY: the numbers lie row by row, and are borrowed for as long as the factor lives.
                Factor::Halves(unsafe {
                    Matrix::at(
                        NonNull::from(numbers).cast(),
                        [numbers.len() / columns, columns],
                        [columns, 1],
                    )
                })
            }
        }
    }

    /// Some of its rows, which exist, as a dense f32 tensor.
    pub(crate) fn rows(&self, indices: &[i64]) -> KernelResult<Tensor> {
        match &self.form {
            Form::Nibbles(blocks) => self.rows_of(blocks, indices),
            Form::Bytes(blocks) => self.rows_of(blocks, indices),
            Form::Halves(blocks) => self.rows_of(blocks, indices),
        }
    }

    fn rows_of<B: Block>(&self, blocks: &[B], indices: &[i64]) -> KernelResult<Tensor> {
        let row_bytes = self.blocks_in_a_row * BLOCK * size_of::<f32>();
        let shape = [indices.len() as i64, (self.blocks_in_a_row * BLOCK) as i64];
        filled_tensor(&shape, Kind::Float, |first, mut bytes| {
            // A part may begin and end within a row.
            let mut place = first;
            while !bytes.is_empty() {
                let (row, start) = (place / row_bytes, place % row_bytes);
                let (target, rest) = bytes.split_at_mut(bytes.len().min(row_bytes - start));
                let first = indices[row] as usize * self.blocks_in_a_row;
                let blocks = &blocks[first..first + self.blocks_in_a_row];
                place += target.len();
                dispatch(Unpack { blocks: &blocks[start / BLOCK_BYTES..], target });
                bytes = rest;
            }
            Ok(())
        })
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> usize {
        match &self.form {
            Form::Nibbles(blocks) => size_of_val(blocks.as_slice()),
            Form::Bytes(blocks) => size_of_val(blocks.as_slice()),
            Form::Halves(blocks) => size_of_val(blocks.as_slice()),
        }
    }
}

/// The blocks of all rows, one row after the other; `None` if some numbers are in no such block.
fn blocks_of<B: Block, E: Send>(
    [rows, columns]: [usize; 2],
    fill: &(impl Fn(usize, &mut [u8]) -> Result<(), E> + Sync),
) -> Result<Option<Vec<B>>, E> {
    let in_a_row = columns / BLOCK;
    let fits = AtomicBool::new(true);
    let write = |first_block: usize, blocks: &mut [MaybeUninit<B>]| -> Result<(), E> {
        // Taken out: `fill` may come here again.
        let mut buffer = BUFFER.take();
        buffer.resize(buffer.len().max(blocks.len() * BLOCK), 0.0);
        let numbers = &mut buffer[..blocks.len() * BLOCK];
        let result = fill(first_block * BLOCK_BYTES, bytes_of(numbers));
        if result.is_ok() {
            dispatch(Pack { numbers, blocks, fits: &fits });
        }
        BUFFER.set(buffer);
        result
    };
    // A row shows what the others are, mostly.
    write(0, &mut vec![MaybeUninit::uninit(); in_a_row])?;
    if !fits.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let mut blocks = Vec::new();
    // Whoever makes the dense weight instead tells that there is no memory.
    let Some(count) = rows.checked_mul(in_a_row).filter(|&count| blocks.try_reserve_exact(count).is_ok())
    else {
        return Ok(None);
    };
    let part = in_a_row * (PART / columns).max(1);
    in_parts(&mut blocks.spare_capacity_mut()[..count], part, |index, blocks| {
        if fits.load(Ordering::Relaxed) { write(index * part, blocks) } else { Ok(()) }
    })?;
    if !fits.into_inner() {
        return Ok(None);
    }
    // SAFETY: every part was written, since none failed and all numbers fit.
    unsafe { blocks.set_len(count) };
    Ok(Some(blocks))
}

/// The memory of numbers.
fn bytes_of(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory, borrowed for as long; any bits are a byte, and any bytes a number.
    unsafe { slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

/// Writes the blocks that hold some numbers.
struct Pack<'a, B> {
    numbers: &'a [f32],
    blocks: &'a mut [MaybeUninit<B>],
    fits: &'a AtomicBool,
}

impl<B: Block> Kernel for Pack<'_, B> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (numbers, block) in self.numbers.as_chunks().0.iter().zip(self.blocks) {
            match B::of(numbers) {
                Some(found) => block.write(found),
                None => return self.fits.store(false, Ordering::Relaxed),
            };
        }
    }
}

/// Writes the numbers of blocks.
struct Unpack<'a, B> {
    blocks: &'a [B],
    target: &'a mut [u8],
}

impl<B: Block> Kernel for Unpack<'_, B> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let targets = self.target.as_chunks_mut::<4>().0.as_chunks_mut::<BLOCK>().0;
        for (block, target) in self.blocks.iter().zip(targets) {
            for (place, number) in target.iter_mut().enumerate() {
                *number = block.number(place).to_ne_bytes();
            }
        }
    }
}
