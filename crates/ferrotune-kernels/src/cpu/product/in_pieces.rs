//! Products of f32 by the processor's unit for tiles of bf16 (AMX), as exact as those of f32.
//!
//! A number of f32 is the sum of three of bf16: the first 8 bits of its significand, the next 8, and the last 8. A product of two numbers
//! of bf16 is exact in f32, and the unit sums in f32. Where the right factor holds numbers of bf16, as weights that were published in bf16
//! do, three products of pieces are the product of f32. Numbers of 16 bits, as blocks of 4 bits give, want five, and all others six: the
//! products of the other pairs of pieces are on average below what a sum in f32 keeps. The unit multiplies bf16 sixteen times as fast as
//! the registers multiply f32.
//!
//! Both factors are copied once, cut into pieces and in the order in which the unit reads them; then threads take blocks of the result.
//!
//! The ends of the range are the exception: the unit takes pieces below 1.2e-38 for zero, so that of numbers below some 1e-31 digits are
//! lost, and products with infinite numbers may come out as NaN.
//!
//! # References
//! Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
//! arXiv:1904.06376.

use super::{FEW_ROWS, Factor, Target, Term, in_parallel, in_shares, panel::depth_blocks};
use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

mod numbers;
mod pack;
mod room;
mod unit;

use room::Room;
use unit::{BLOCK, STEP, STEP_BYTES, Segment, Unit};

/// Depth of a part of a product at the most, so that the blocks that meet in a task stay in a core's second cache.
const DEPTH: usize = 1536;
/// Steps of the parts that are summed before the result is written.
const STEPS: usize = 56;
/// Bytes of a copied factor at the most.
const COPY_BYTES: usize = 16 << 20;
/// Blocks of rows and of columns of a task.
const TASK_BLOCKS: usize = 4;

/// Whether this machine has the unit, and the system lets this process use it.
pub(super) fn is_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| unit::is_there() && unit::is_permitted())
}

/// Whether the unit is the best way to that product.
pub(super) fn suits(rows: usize, right: &Factor) -> bool {
    let [depth, columns] = right.shape();
    rows > FEW_ROWS && depth >= STEP && columns >= BLOCK && takes_numbers_of(right)
}

/// Whether the unit is the best way to products with such numbers: all bits of f32 in both factors are twice the work of one in bf16, and
/// no gain beside a good product of f32. Judged by some numbers of the right factor; what it needs is seen when it is copied.
pub(super) fn takes_numbers_of(right: &Factor) -> bool {
    pack::has_two_pieces_at_most(right)
}

/// A range of a term's depth.
struct Part {
    term: usize,
    depth: Range<usize>,
    /// Where its steps begin among those of its pass.
    first_step: usize,
}

/// The parts whose sum is written at once.
#[derive(Default)]
struct Pass {
    parts: Vec<Part>,
    steps: usize,
}

fn passes(terms: &[Term]) -> Vec<Pass> {
    let mut passes: Vec<Pass> = Vec::new();
    for (term, Term { left, .. }) in terms.iter().enumerate() {
        for steps in depth_blocks(left.columns.div_ceil(STEP), DEPTH / STEP) {
            if passes.last().is_none_or(|pass| pass.steps + steps.len() > STEPS) {
                passes.push(Pass::default());
            }
            if let Some(pass) = passes.last_mut() {
                let depth = steps.start * STEP..(steps.end * STEP).min(left.columns);
                pass.parts.push(Part { term, depth, first_step: pass.steps });
                pass.steps += steps.len();
            }
        }
    }
    passes
}

/// A factor in the order in which the unit reads it: for each block of its rows or columns, step by step, piece by piece.
struct Copied {
    room: Room,
    steps: usize,
}

// SAFETY: threads write blocks of their own, and read when all are written.
unsafe impl Sync for Copied {}

impl Copied {
    /// Room for blocks of that many steps.
    fn new(steps: usize) -> Self {
        Self { room: Room::take(), steps }
    }

    /// Where a step of a block begins.
    fn at(&self, block: usize, step: usize) -> *mut u16 {
        let index = block * self.steps + step;
        debug_assert!(step < self.steps && (index + 1) * STEP_BYTES <= COPY_BYTES);
        self.room.start().wrapping_add(index * STEP_BYTES / 2)
    }
}

/// Writes the sum of the terms.
///
/// # Safety
/// As [`Level::fill`](super::Level::fill); the unit [`is_available`].
pub(super) unsafe fn fill(target: Target, terms: &[Term]) {
    let passes = passes(terms);
    let steps = passes.iter().map(|pass| pass.steps).max().unwrap_or(0);
    let limit = COPY_BYTES / (steps * STEP_BYTES);
    let (rows, columns) = (target.rows.div_ceil(BLOCK), target.columns.div_ceil(BLOCK));
    let (lefts, rights) = (Copied::new(steps), Copied::new(steps));
    for (index, pass) in passes.iter().enumerate() {
        for first_row in (0..rows).step_by(limit) {
            for first_column in (0..columns).step_by(limit) {
                let area = Area {
                    target,
                    terms,
                    parts: &pass.parts,
                    rows: first_row..(first_row + limit).min(rows),
                    columns: first_column..(first_column + limit).min(columns),
                    lefts: &lefts,
                    rights: &rights,
                    add: index > 0 || target.holds_sums,
                };
                // SAFETY: as the caller says; areas are disjoint.
                unsafe { area.fill(first_column == 0) };
            }
        }
    }
}

/// Blocks of the result whose factors are copied together.
struct Area<'a> {
    target: Target,
    terms: &'a [Term<'a>],
    parts: &'a [Part],
    rows: Range<usize>,
    columns: Range<usize>,
    lefts: &'a Copied,
    rights: &'a Copied,
    add: bool,
}

impl Area<'_> {
    /// # Safety
    /// As [`fill`].
    unsafe fn fill(&self, copy_left: bool) {
        let lefts = if copy_left { self.rows.len() } else { 0 };
        let depth: usize = self.parts.iter().map(|part| part.depth.len()).sum();
        let pieces: Vec<AtomicUsize> =
            (0..self.columns.len() * self.parts.len()).map(|_| AtomicUsize::new(0)).collect();
        // A copy of a number takes about as long as eight products.
        let work = (lefts + self.columns.len()) * BLOCK * depth * 8;
        in_shares([lefts, self.columns.len()], work, |kind, task| {
            // SAFETY: each task writes a block of its own; the machine has AVX-512 where it has the unit.
            unsafe {
                match kind {
                    0 => self.copy_rows(task),
                    _ => self.copy_columns(task, &pieces),
                }
            }
        });
        let row_tasks = self.rows.len().div_ceil(TASK_BLOCKS);
        let column_tasks = self.columns.len().div_ceil(TASK_BLOCKS);
        let products = self.rows.len() * self.columns.len() * BLOCK * BLOCK * depth;
        in_parallel(row_tasks * column_tasks, products / 4, |task| {
            let part_of = |index: usize, whole: &Range<usize>| {
                index * TASK_BLOCKS..((index + 1) * TASK_BLOCKS).min(whole.len())
            };
            // Tasks that follow each other read the same rows.
            let (rows, columns) =
                (part_of(task / column_tasks, &self.rows), part_of(task % column_tasks, &self.columns));
            // SAFETY: the unit is available, and each task writes blocks of its own, of factors that are copied.
            unsafe { self.multiply(rows, columns, &pieces) };
        });
    }

    /// Copies a block of rows of the left factors, counted from the first of the area.
    ///
    /// # Safety
    /// The machine has AVX-512, and no other task writes the copy of the block.
    unsafe fn copy_rows(&self, row: usize) {
        for part in self.parts {
            let left = &self.terms[part.term].left;
            let to = self.lefts.at(row, part.first_step);
            // SAFETY: as the caller says; the copy has room for all steps of its block.
            unsafe { pack::left(left, (self.rows.start + row) * BLOCK, part.depth.clone(), to) };
        }
    }

    /// Copies a block of columns of the right factors that reach it, and tells the pieces of each part.
    ///
    /// # Safety
    /// As [`Area::copy_rows`].
    unsafe fn copy_columns(&self, column: usize, pieces: &[AtomicUsize]) {
        for (index, part) in self.parts.iter().enumerate() {
            let term = &self.terms[part.term];
            if self.reaches(term, column) {
                let to = self.rights.at(column, part.first_step);
                let first = (self.columns.start + column) * BLOCK;
                // SAFETY: as the caller says; the copy has room for all steps of its block.
                let count = unsafe { pack::right(term, first, part.depth.clone(), to) };
                pieces[column * self.parts.len() + index].store(count, Ordering::Relaxed);
            }
        }
    }

    /// Writes blocks, counted from the first of the area.
    ///
    /// # Safety
    /// As [`fill`]; the factors of the blocks are copied, and no other task writes these.
    unsafe fn multiply(&self, rows: Range<usize>, columns: Range<usize>, pieces: &[AtomicUsize]) {
        // SAFETY: the unit is available.
        let unit = unsafe { Unit::configured() };
        let stride = self.target.columns;
        for column in columns {
            let first_column = (self.columns.start + column) * BLOCK;
            let width = (self.target.columns - first_column).min(BLOCK);
            for row in rows.clone() {
                let first_row = (self.rows.start + row) * BLOCK;
                let height = (self.target.rows - first_row).min(BLOCK);
                // SAFETY: the block lies in the target; the segments are copies of as many steps.
                unsafe {
                    let start = self.target.start.as_ptr().add(first_row * stride + first_column);
                    let segments = self.segments(row, column, pieces);
                    unit.multiply(segments, start, stride, [height, width], self.add);
                }
            }
        }
    }

    /// The factors of a block, counted from the first of the area.
    fn segments(&self, row: usize, column: usize, pieces: &[AtomicUsize]) -> impl Iterator<Item = Segment> {
        let reaching = self
            .parts
            .iter()
            .enumerate()
            .filter(move |(_, part)| self.reaches(&self.terms[part.term], column));
        reaching.map(move |(index, part)| Segment {
            left: self.lefts.at(row, part.first_step),
            right: self.rights.at(column, part.first_step),
            steps: part.depth.len().div_ceil(STEP),
            right_pieces: pieces[column * self.parts.len() + index].load(Ordering::Relaxed),
        })
    }

    /// Whether a term is added to a block of columns, counted from the first of the area.
    fn reaches(&self, term: &Term, column: usize) -> bool {
        let first = (self.columns.start + column) * BLOCK;
        !term.columns_among(first..first + BLOCK).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::product::{
        Compact, Level, Matrix,
        tests::{in_tiles, of_few_bits},
    };
    use crate::cpu::{assert_close, noise};
    use tch::{Kind, Tensor};

    fn has_avx512() -> bool {
        Level::available().any(|level| matches!(level, Level::Avx512))
    }

    /// Numbers whose significands have that many bits.
    fn of_bits(bits: u32, x: &Tensor) -> Tensor {
        let numbers: Vec<f32> = x.reshape([-1]).try_into().unwrap();
        let mask = u32::MAX << (24 - bits);
        let cut: Vec<f32> = numbers.iter().map(|number| f32::from_bits(number.to_bits() & mask)).collect();
        Tensor::from_slice(&cut).reshape(x.size())
    }

    fn product(left: &Tensor, right: &Tensor, scale: f32) -> Tensor {
        let (left, right) = (Matrix::of(left).unwrap(), Matrix::of(right).unwrap());
        in_tiles(&[Term { scale, ..Term::new(left, right) }])
    }

    #[test]
    fn as_exact_as_a_sum_in_f32_whatever_the_bits_of_the_right_factor() {
        if !is_available() {
            return;
        }
        let x = noise(1, &[77, 1700]);
        for (bits, pieces) in [(8, 1), (16, 2), (24, 3)] {
            let w = of_bits(bits, &noise(2, &[101, 1700]));
            let term = Term::new(Matrix::of(&x).unwrap(), Matrix::of(&w).unwrap().turned());
            let mut room = vec![0u16; 4 * STEP_BYTES / 2];
            // SAFETY: room for four steps; the machine has AVX-512.
            assert_eq!(unsafe { pack::right(&term, 64, 100..228, room.as_mut_ptr()) }, pieces);
            for w in [w.tr(), w.tr().contiguous()] {
                let expected = x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double)) * 0.5;
                assert_close(&product(&x, &w, 0.5).to_kind(Kind::Double), &expected, 4e-7);
            }
        }
    }

    #[test]
    fn copies_of_a_right_factor_are_alike_in_every_form() {
        if !has_avx512() {
            return;
        }
        let x = noise(1, &[3, 96]);
        let copied = |factor: Factor, first_column: usize, depth: Range<usize>, scale: f32| {
            let term = Term { scale, ..Term::new(Matrix::of(&x).unwrap(), factor) };
            let mut room = vec![7u16; depth.len().div_ceil(STEP) * STEP_BYTES / 2];
            // SAFETY: room for the steps of the depth; the machine has AVX-512.
            (unsafe { pack::right(&term, first_column, depth, room.as_mut_ptr()) }, room)
        };
        for (weight, _) in of_few_bits(96, 128) {
            let compact = Compact::of(&weight).unwrap();
            let single = Factor::of(&weight).unwrap();
            // Neither rows nor columns of it lie dense.
            let apart = Tensor::stack(&[&weight, &weight], 2).select(2, 1);
            let apart = Factor::of(&apart).unwrap();
            let brain = weight.to_kind(Kind::BFloat16);
            let brain = Factor::of(&brain).filter(|_| weight == brain.to_kind(Kind::Float));
            for factor in [compact.factor(), apart].into_iter().chain(brain) {
                // The second tile of the last block is beyond the factor's columns.
                for first in [0, 32, 80] {
                    let of = |factor: Factor| copied(factor, first, 32..96, 1.0);
                    assert!(
                        of(factor) == of(single) && of(factor.turned()) == of(single.turned()),
                        "{first}"
                    );
                    let of = |factor: Factor| copied(factor, first, 64..96, 0.75);
                    assert!(
                        of(factor) == of(single) && of(factor.turned()) == of(single.turned()),
                        "{first}"
                    );
                }
            }
        }
    }

    #[test]
    fn copies_of_bf16_are_those_of_f32_at_every_border() {
        if !has_avx512() {
            return;
        }
        let x = noise(1, &[3, 50]);
        let (brain, first_column) = (noise(2, &[70, 50]).to_kind(Kind::BFloat16), 21);
        let single = brain.to_kind(Kind::Float);
        let copied = |factor: Factor, first: usize, depth: Range<usize>| {
            let term = Term { first_column, scale: 0.5, ..Term::new(Matrix::of(&x).unwrap(), factor) };
            let mut room = vec![7u16; depth.len().div_ceil(STEP) * STEP_BYTES / 2];
            // SAFETY: room for the steps of the depth; the machine has AVX-512.
            (unsafe { pack::right(&term, first, depth, room.as_mut_ptr()) }, room)
        };
        let turned = |tensor: &Tensor| tensor.tr().contiguous();
        for [brain, single] in
            [[brain.shallow_clone(), single.shallow_clone()], [turned(&brain), turned(&single)]]
        {
            let (rows, columns) = (brain.size()[0] as usize, brain.size()[1] as usize);
            for first in (0..first_column + columns).step_by(BLOCK) {
                for depth in [0..rows, 7..rows.min(40)] {
                    let of = |tensor| copied(Factor::of(tensor).unwrap(), first, depth.clone());
                    assert!(of(&brain) == of(&single), "{first} {depth:?}");
                }
            }
            for first in (0..first_column + rows).step_by(BLOCK) {
                for depth in [0..columns, 7..columns.min(40)] {
                    let of = |tensor| copied(Factor::of(tensor).unwrap().turned(), first, depth.clone());
                    assert!(of(&brain) == of(&single), "turned {first} {depth:?}");
                }
            }
        }
    }

    #[test]
    fn results_of_several_areas_and_of_several_passes() {
        if !is_available() {
            return;
        }
        for [rows, depth, columns] in [[40, 1792, 1600], [1600, 1792, 40], [64, 2049, 96]] {
            let (x, w) = (noise(1, &[rows, depth]), of_bits(8, &noise(2, &[columns, depth])).tr());
            let expected = x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double));
            assert_close(&product(&x, &w, 1.0).to_kind(Kind::Double), &expected, 4e-7);
        }
    }

    #[test]
    fn it_takes_large_products_with_numbers_of_few_bits() {
        let takes = |rows: usize, depth: i64, columns: i64, bits: u32| {
            let w = of_bits(bits, &noise(2, &[columns, depth]));
            // The row of a token that is never seen.
            let _ = w.get(0).zero_();
            suits(rows, &Factor::of(&w).unwrap().turned())
        };
        assert!(takes(33, 32, 32, 8) && takes(33, 700, 40, 16));
        assert!(!takes(33, 32, 32, 24) && !takes(33, 700, 40, 24));
        assert!(!takes(32, 32, 32, 8) && !takes(33, 31, 32, 8) && !takes(33, 32, 31, 8));
    }

    #[test]
    fn numbers_at_the_ends_of_the_range() {
        if !is_available() {
            return;
        }
        // Every row and column by itself: one number of each, and zeros.
        let left = [f32::MAX, -3.4e38, 1e-30, f32::INFINITY, f32::NAN, 1.0];
        let right = [1.0f32, 0.25, 1.0, 2.0, 1.0, f32::NEG_INFINITY];
        let diagonal = |numbers: &[f32]| Tensor::from_slice(numbers).diag(0);
        let (left, right) = (diagonal(&left), diagonal(&right));
        let found = product(&left.narrow(0, 0, 3), &right, 1.0);
        assert_eq!(found.narrow(1, 0, 5), left.narrow(0, 0, 3).matmul(&right).narrow(1, 0, 5));
        let found = product(&left, &right, 1.0).diagonal(0, 0, 1);
        let finite: Vec<bool> = found.isfinite().try_into().unwrap();
        assert_eq!(finite, [true, true, true, false, false, false]);
    }
}
