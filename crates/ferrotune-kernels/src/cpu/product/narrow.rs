//! Products with a factor of few columns, as those of an adapter are: many numbers are read, and few come out.
//!
//! How fast they are is decided by how often the large factor is read from memory. Here a task takes some rows of it, and while they are in
//! its core's second cache computes all that is to be computed of them; of the small factor nothing is copied.

use super::{
    FEW_ROWS, Level, Matrix, Rows, Target, in_parallel, in_shares, level,
    panel::{self, depth_blocks},
    right_rows::DenseRows,
    tile::GROUP,
    vector::Vector,
};
use crate::{cpu::NarrowProducts, error::Result};
use std::{
    arch::x86_64::{__m256, __m512},
    ops::Range,
};
use tch::Tensor;

/// Numbers of a small factor at the most, and of each of a task's sums: beside rows of the large one they stay in a second cache.
const SMALL: usize = 1 << 16;
/// Numbers of the rows of the large factor that are read twice.
const LARGE: usize = 1 << 17;
/// Rows of a task at the most, unless the sums are too many. It has a sum of its own over its rows.
const TASK_ROWS: usize = 128;
/// What the number of tasks is a multiple of, so that an even number of threads is done at once.
const TASKS: usize = 2;
/// Numbers of the sums of all tasks, at the most.
const SUMS: usize = 1 << 22;
/// Sums and products that take as long as it takes to read a number.
const WORK_PER_NUMBER: usize = 64;

/// The products of `left`, `[rows, depth]`, with `right`, `[depth, columns]`, and `other`, `[rows, columns]`, and that of the first of them
/// with `input`, `[rows, width]`; `None` where these loops do not suit the tensors.
///
/// In backward of an adapter, whose left factor is the gradient of its output, they are the gradient of what `B` multiplies, that of `B`, and
/// that of `A`.
pub(crate) fn narrow_products(
    left: &Tensor,
    right: &Tensor,
    scale: f64,
    other: &Tensor,
    input: Option<&Tensor>,
) -> Result<Option<NarrowProducts>> {
    match level() {
        Some(level) => at_level(level, left, right, scale, other, input),
        None => Ok(None),
    }
}

fn at_level(
    level: Level,
    left: &Tensor,
    right: &Tensor,
    scale: f64,
    other: &Tensor,
    input: Option<&Tensor>,
) -> Result<Option<NarrowProducts>> {
    let (Some(left), Some(right), Some(other)) = (Matrix::of(left), Matrix::of(right), Matrix::of(other))
    else {
        return Ok(None);
    };
    let [rows, depth, columns] = [left.rows, left.columns, right.columns];
    // Dense along registers that it fills, and with few numbers in its product.
    let suits = |matrix: &Matrix| {
        let fills_registers = matrix.columns.is_multiple_of(GROUP) && matrix.column_stride == 1;
        matrix.rows == rows && fills_registers && matrix.columns * columns <= SMALL
    };
    let fits = right.rows == depth && [other.rows, other.columns] == [rows, columns];
    if !fits
        || rows <= FEW_ROWS
        || !suits(&left)
        || !columns.is_multiple_of(GROUP)
        || right.column_stride != 1
    {
        return Ok(None);
    }
    let input = input.and_then(Matrix::of).filter(suits);
    let width = input.map_or(0, |input| input.columns);
    // By the shapes alone: the number of threads changes no sum.
    let most = SUMS / (columns * (depth + width));
    let tasks = rows.div_ceil(TASK_ROWS).next_multiple_of(TASKS).min(most);
    let task_rows = rows.div_ceil(tasks).next_multiple_of(GROUP);
    let tasks = rows.div_ceil(task_rows);
    let (Some((product, product_target)), Some((_kept, sums)), Some((of_other, other_target))) = (
        Target::new(rows, columns)?,
        Target::new(tasks, columns * (depth + width))?,
        Target::new(depth, columns)?,
    ) else {
        return Ok(None);
    };
    let of_input = input.map(|_| Target::new(columns, width)).transpose()?.flatten();
    let (of_input, input_target) = of_input.unzip();
    let job = Job { level, left, right, scale: scale as f32, other, input, product: product_target, sums };
    in_parallel(tasks, rows * columns * (2 * depth + width), |task| {
        let start = task * task_rows;
        // SAFETY: the rows exist; each task writes those of its own, and its own sums.
        unsafe { job.run(start..(start + task_rows).min(rows), task) };
    });
    let work = WORK_PER_NUMBER * tasks * sums.columns;
    in_shares([depth / GROUP, input_target.map_or(0, |target| target.rows)], work, |kind, task| {
        // SAFETY: all sums are written, and nobody writes them any more; the levels come from the machine; each task writes rows of its
        // own.
        unsafe {
            match (kind, input_target) {
                (1, Some(target)) => job.write_input_row(target, task),
                _ => job.write_other_rows(other_target, task),
            }
        }
    });
    Ok(Some(NarrowProducts { product, of_other, of_input }))
}

struct Job<'a> {
    level: Level,
    left: Matrix<'a>,
    right: Matrix<'a>,
    scale: f32,
    other: Matrix<'a>,
    input: Option<Matrix<'a>>,
    /// `scale * left right`
    product: Target,
    /// For each task `other^T left` and `product^T input` over its rows, one after the other.
    sums: Target,
}

impl Job<'_> {
    /// # Safety
    /// The rows exist, and no other task writes them or the sums of this one.
    unsafe fn run(&self, rows: Range<usize>, task: usize) {
        for block in depth_blocks(rows.len(), (LARGE / self.left.columns).max(8)) {
            let add = block.start > 0;
            let block = rows.start + block.start..rows.start + block.end;
            // SAFETY: as the caller says; `other`, the product and the input have the rows of left. Of the product only rows of the block are
            // read, which this task has written and no other touches.
            unsafe {
                self.multiply(block.clone());
                let sums = self.sums_of(task);
                self.multiply_turned(&self.other, &self.left, block.clone(), sums, add);
                if let Some(input) = &self.input {
                    let size = [self.product.rows, self.product.columns];
                    let product = Matrix::at(self.product.start, size, [self.product.columns, 1]);
                    let sums = sums.add(self.product.columns * self.left.columns);
                    self.multiply_turned(&product, input, block, sums, add);
                }
            }
        }
    }

    /// Where the sums of a task begin.
    ///
    /// # Safety
    /// The task is one of those that there are sums for.
    unsafe fn sums_of(&self, task: usize) -> *mut f32 {
        // SAFETY: as the caller says.
        unsafe { self.sums.start.as_ptr().add(task * self.sums.columns) }
    }

    /// Writes rows of `scale * left right`.
    ///
    /// # Safety
    /// As [`Job::run`].
    unsafe fn multiply(&self, rows: Range<usize>) {
        let Self { left, right, .. } = self;
        // SAFETY: `rows` and `depth` are those of the factors; the product has the columns of right.
        unsafe {
            let target = self.product.start.as_ptr().add(rows.start * right.columns);
            for depth in depth_blocks(left.columns, panel::DEPTH) {
                self.level.rows(&Rows {
                    rows: rows.len(),
                    columns: right.columns,
                    depth: depth.len(),
                    left: left.start.as_ptr().add(rows.start * left.row_stride + depth.start),
                    left_row_stride: left.row_stride,
                    left_depth_stride: 1,
                    panel: right.start.as_ptr().add(depth.start * right.row_stride),
                    panel_stride: right.row_stride,
                    target,
                    target_row_stride: right.columns,
                    add: depth.start > 0,
                });
            }
            for number in std::slice::from_raw_parts_mut(target, rows.len() * right.columns) {
                *number *= self.scale;
            }
        }
    }

    /// Writes `narrow^T wide` over some of their rows, or adds it to what the target holds.
    ///
    /// # Safety
    /// The rows exist, in the target one for each column of `narrow`, as long as those of `wide`; no other task writes them.
    unsafe fn multiply_turned(
        &self,
        narrow: &Matrix,
        wide: &Matrix,
        rows: Range<usize>,
        target: *mut f32,
        add: bool,
    ) {
        // SAFETY: as the caller says.
        unsafe {
            self.level.rows(&Rows {
                rows: narrow.columns,
                columns: wide.columns,
                depth: rows.len(),
                left: narrow.start.as_ptr().add(rows.start * narrow.row_stride),
                left_row_stride: narrow.column_stride,
                left_depth_stride: narrow.row_stride,
                panel: wide.start.as_ptr().add(rows.start * wide.row_stride),
                panel_stride: wide.row_stride,
                target,
                target_row_stride: wide.columns,
                add,
            });
        }
    }

    /// Writes [`GROUP`] rows of `left^T other`: the transpose of the sum over all tasks.
    ///
    /// # Safety
    /// The sums are written, and the rows are nobody else's.
    unsafe fn write_other_rows(&self, target: Target, group: usize) {
        let Self { left, right, sums, .. } = self;
        // SAFETY: as the caller says; the groups are those of the columns of left, and of the target's rows.
        unsafe {
            let sums = Sums {
                start: sums.start.as_ptr().add(group * GROUP),
                matrices: sums.rows,
                matrix_stride: sums.columns,
                columns: right.columns,
                depth: left.columns,
            };
            let rows = target.start.as_ptr().add(group * GROUP * right.columns);
            let rows = std::slice::from_raw_parts_mut(rows, GROUP * right.columns);
            match self.level {
                Level::Avx512 => turned_sum_avx512(&sums, rows),
                Level::Avx2 => turned_sum_avx2(&sums, rows),
            }
        }
    }

    /// Writes a row of `product^T input`: the sum over all tasks.
    ///
    /// # Safety
    /// As [`Job::write_other_rows`].
    unsafe fn write_input_row(&self, target: Target, row: usize) {
        let width = target.columns;
        let first = self.right.columns * self.left.columns + row * width;
        // SAFETY: as the caller says; sums of an input come after those of left.
        unsafe {
            let sums_of = |task| std::slice::from_raw_parts(self.sums_of(task).add(first), width);
            let numbers = std::slice::from_raw_parts_mut(target.start.as_ptr().add(row * width), width);
            numbers.copy_from_slice(sums_of(0));
            for task in 1..self.sums.rows {
                for (number, sum) in numbers.iter_mut().zip(sums_of(task)) {
                    *number += sum;
                }
            }
        }
    }
}

/// [`GROUP`] columns of matrices `[columns, depth]`.
struct Sums {
    start: *const f32,
    matrices: usize,
    /// From the start of a matrix to that of the next.
    matrix_stride: usize,
    columns: usize,
    depth: usize,
}

/// Writes the transpose of the sum of the matrices, `[GROUP, columns]`.
///
/// # Safety
/// The numbers exist, rows have as many, and the machine has the instructions of `V`.
#[inline(always)]
unsafe fn turned_sum<V: Vector>(sums: &Sums, rows: &mut [f32]) {
    let Sums { start, matrices, matrix_stride, columns, depth } = *sums;
    for first in (0..columns).step_by(V::LANES) {
        for place in (0..GROUP).step_by(V::LANES) {
            let mut square = [0.0; GROUP * GROUP];
            // SAFETY: columns are a multiple of the group, and so of the register.
            unsafe {
                for (column, row) in square.chunks_exact_mut(V::LANES).take(V::LANES).enumerate() {
                    let numbers = start.add((first + column) * depth + place);
                    let mut sum = V::load(numbers);
                    for matrix in 1..matrices {
                        sum = sum.add(V::load(numbers.add(matrix * matrix_stride)));
                    }
                    sum.store(row.as_mut_ptr());
                }
                let square = DenseRows { start: square.as_ptr(), stride: V::LANES };
                V::turn(square, 0, 0, rows[place * columns + first..].as_mut_ptr(), columns);
            }
        }
    }
}

// SAFETY, for both: as the function that they call; the instructions are enabled here.

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn turned_sum_avx512(sums: &Sums, rows: &mut [f32]) {
    unsafe { turned_sum::<__m512>(sums, rows) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn turned_sum_avx2(sums: &Sums, rows: &mut [f32]) {
    unsafe { turned_sum::<__m256>(sums, rows) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::Kind;

    /// At every level that this machine has.
    fn products(
        left: &Tensor,
        right: &Tensor,
        other: &Tensor,
        input: Option<&Tensor>,
    ) -> Vec<Option<NarrowProducts>> {
        Level::available().map(|level| at_level(level, left, right, 0.5, other, input).unwrap()).collect()
    }

    #[test]
    fn all_are_the_products_of_the_formula() {
        let double = |x: &Tensor| x.to_kind(Kind::Double);
        // Several tasks and blocks of rows, depths of several panels, registers that a row fills and others.
        for [rows, depth, columns, width] in [
            [33, 16, 16, 48],
            [300, 592, 16, 32],
            [129, 1040, 48, 64],
            [4100, 4096, 16, 4096],
            [270, 1536, 32, 1024],
        ] {
            // Columns of wider tensors, as those of a stack of layers.
            let left = noise(1, &[rows, depth + 5]).narrow(1, 3, depth);
            let right = noise(2, &[depth, columns]);
            let other = noise(3, &[rows, 2 * columns]).narrow(1, columns, columns);
            let input = noise(4, &[rows, width + 3]).narrow(1, 2, width);
            let product = double(&left).matmul(&double(&right)) * 0.5;
            for input in [None, Some(&input)] {
                for found in products(&left, &right, &other, input) {
                    let found = found.unwrap();
                    assert_close(&double(&found.product), &product, 1e-6);
                    assert_close(&double(&found.of_other), &double(&left).tr().matmul(&double(&other)), 1e-6);
                    assert!(found.of_other.is_contiguous());
                    assert_eq!(found.of_input.is_some(), input.is_some());
                    if let (Some(found), Some(input)) = (found.of_input, input) {
                        assert_close(&double(&found), &product.tr().matmul(&double(input)), 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn no_number_of_threads_changes_a_bit() {
        let (left, right, other) = (noise(1, &[700, 320]), noise(2, &[320, 16]), noise(3, &[700, 16]));
        let [one, five] = [1, 5].map(|threads| {
            tch::set_num_threads(threads);
            products(&left, &right, &other, Some(&left))
        });
        assert_eq!(one, five);
    }

    #[test]
    fn an_input_that_does_not_fit_is_left_to_libtorch() {
        let (left, right, other) = (noise(1, &[40, 64]), noise(2, &[64, 16]), noise(3, &[40, 16]));
        let unsuited = [
            noise(4, &[41, 32]),
            noise(4, &[40, 33]),
            noise(4, &[32, 40]).tr(),
            noise(4, &[40, 8192]),
            noise(4, &[40, 32]).to_kind(Kind::Double),
        ];
        for input in unsuited {
            let found = products(&left, &right, &other, Some(&input));
            assert!(found.iter().all(|found| found.as_ref().is_some_and(|found| found.of_input.is_none())));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_libtorch() {
        let (left, right, other) = (noise(1, &[40, 64]), noise(2, &[64, 16]), noise(3, &[40, 16]));
        let refuses = |left: &Tensor, right: &Tensor, other: &Tensor| {
            products(left, right, other, None).iter().all(Option::is_none)
        };
        assert!(products(&left, &right, &other, None).iter().all(Option::is_some));
        assert!(refuses(&left.narrow(0, 0, 32), &right, &other.narrow(0, 0, 32)));
        assert!(refuses(&left, &right, &other.narrow(0, 1, 39)));
        assert!(refuses(&left.narrow(1, 0, 63), &right.narrow(0, 0, 63), &other));
        assert!(refuses(&left, &right.narrow(1, 0, 8), &other.narrow(1, 0, 8)));
        assert!(refuses(&left.to_kind(Kind::Double), &right, &other));
        assert!(refuses(&left, &right.tr().contiguous().tr(), &other));
        assert!(refuses(&noise(1, &[40, 1]).expand([40, 64], false), &right, &other));
    }
}
