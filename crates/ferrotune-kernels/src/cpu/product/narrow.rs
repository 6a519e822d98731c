//! Products with a factor of few columns, as those of an adapter are: many numbers are read, and few come out.
//!
//! How fast they are is decided by how often the large factor is read from memory. Here a task takes some rows of it, and while they are in
//! its core's second cache computes all that is to be computed of them; of the small factor nothing is copied.

use super::{
    FEW_ROWS, Level, Matrix, Rows, Target, in_parallel, level,
    panel::{self, depth_blocks},
    right_rows::DenseRows,
    tile::GROUP,
    vector::Vector,
};
use crate::{cpu::fill_rows_beside, error::Result};
use std::{
    arch::x86_64::{__m256, __m512},
    ops::Range,
    ptr::NonNull,
};
use tch::Tensor;

/// Numbers of the small factor at the most, which is a task's sum as well: beside rows of the large one they stay in a second cache.
const SMALL: usize = 1 << 16;
/// Numbers of the rows of the large factor that are read twice.
const LARGE: usize = 1 << 17;
/// Rows of a task at the least. It has a sum of its own over its rows.
const TASK_ROWS: usize = 64;
/// Numbers of the sums of all tasks, at the most.
const SUMS: usize = 1 << 22;

/// `scale * left right` and `left^T other`, of `[rows, depth]`, `[depth, columns]` and `[rows, columns]`; `None` where these loops do not
/// suit the tensors.
///
/// In backward of an adapter, whose left factor is the gradient of its output, they are the gradient of what `B` multiplies, and that of `B`.
pub(crate) fn narrow_products(
    left: &Tensor,
    right: &Tensor,
    scale: f64,
    other: &Tensor,
) -> Result<Option<[Tensor; 2]>> {
    match level() {
        Some(level) => at_level(level, left, right, scale, other),
        None => Ok(None),
    }
}

fn at_level(
    level: Level,
    left: &Tensor,
    right: &Tensor,
    scale: f64,
    other: &Tensor,
) -> Result<Option<[Tensor; 2]>> {
    let (Some(left), Some(right), Some(other)) = (Matrix::of(left), Matrix::of(right), Matrix::of(other))
    else {
        return Ok(None);
    };
    let [rows, depth, columns] = [left.rows, left.columns, right.columns];
    let small = depth * columns;
    let fits = right.rows == depth && [other.rows, other.columns] == [rows, columns];
    let is_narrow = rows > FEW_ROWS && small <= SMALL;
    let fills_registers = columns.is_multiple_of(GROUP) && depth.is_multiple_of(GROUP);
    if !fits || !is_narrow || !fills_registers || left.column_stride != 1 || right.column_stride != 1 {
        return Ok(None);
    }
    // By the shapes alone: the number of threads changes no sum.
    let task_rows = rows.div_ceil(SUMS / small).max(TASK_ROWS);
    let tasks = rows.div_ceil(task_rows);
    let (Some((product, target)), Some((_kept, sums))) =
        (Target::new(rows, columns)?, Target::new(tasks * columns, depth)?)
    else {
        return Ok(None);
    };
    let (product_start, sums_start) = (target.start, sums.start);
    let job = NarrowProducts { level, left, right, scale: scale as f32, other, product_start, sums_start };
    in_parallel(tasks, 2 * rows * small, |task| {
        let start = task * task_rows;
        // SAFETY: the rows exist; each task writes those of its own, and its own sums.
        unsafe { job.run(start..(start + task_rows).min(rows), task) };
    });
    // SAFETY: the tasks wrote all of the tensor, and nobody writes it any more; it lives as long as what reads the slice.
    let numbers = unsafe { std::slice::from_raw_parts(sums_start.as_ptr(), tasks * small) };
    let [turned] = fill_rows_beside(
        tasks * columns * GROUP,
        depth / GROUP,
        [&[depth as i64, columns as i64]],
        |groups, [rows]| {
            for (group, rows) in groups.zip(rows.chunks_exact_mut(GROUP * columns)) {
                let sums = numbers[group * GROUP..].as_ptr();
                let sums = Sums { start: sums, matrices: tasks, columns, depth };
                // SAFETY: the levels come from the machine; the group is one of each matrix's, and of the rows.
                unsafe {
                    match level {
                        Level::Avx512 => turned_sum_avx512(&sums, rows),
                        Level::Avx2 => turned_sum_avx2(&sums, rows),
                    }
                }
            }
        },
    )?;
    Ok(Some([product, turned]))
}

/// [`GROUP`] columns of matrices `[columns, depth]` that lie one after the other.
struct Sums {
    start: *const f32,
    matrices: usize,
    columns: usize,
    depth: usize,
}

/// Writes the transpose of the sum of the matrices, `[GROUP, columns]`.
///
/// # Safety
/// The numbers exist, rows have as many, and the machine has the instructions of `V`.
#[inline(always)]
unsafe fn turned_sum<V: Vector>(sums: &Sums, rows: &mut [f32]) {
    let Sums { start, matrices, columns, depth } = *sums;
    for first in (0..columns).step_by(V::LANES) {
        for place in (0..GROUP).step_by(V::LANES) {
            let mut square = [0.0; GROUP * GROUP];
            // SAFETY: columns are a multiple of the group, and so of the register.
            unsafe {
                for (column, row) in square.chunks_exact_mut(V::LANES).take(V::LANES).enumerate() {
                    let numbers = start.add((first + column) * depth + place);
                    let mut sum = V::load(numbers);
                    for matrix in 1..matrices {
                        sum = sum.add(V::load(numbers.add(matrix * columns * depth)));
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

struct NarrowProducts<'a> {
    level: Level,
    left: Matrix<'a>,
    right: Matrix<'a>,
    scale: f32,
    other: Matrix<'a>,
    /// `scale * left right`, dense.
    product_start: NonNull<f32>,
    /// For each task `other^T left` over its rows, `[columns, depth]`.
    sums_start: NonNull<f32>,
}

// SAFETY: the factors are only read; tasks write rows and sums of their own.
unsafe impl Sync for NarrowProducts<'_> {}

impl NarrowProducts<'_> {
    /// # Safety
    /// The rows exist, and no other task writes them or the sums of this one.
    unsafe fn run(&self, rows: Range<usize>, task: usize) {
        let block = (LARGE / self.left.columns).clamp(8, TASK_ROWS);
        for first in rows.clone().step_by(block) {
            let block = first..(first + block).min(rows.end);
            let add = first > rows.start;
            // SAFETY: as the caller says.
            unsafe {
                self.multiply(block.clone());
                self.multiply_turned(block, task, add);
            }
        }
    }

    /// Writes rows of `scale * left right`.
    ///
    /// # Safety
    /// As [`NarrowProducts::run`].
    unsafe fn multiply(&self, rows: Range<usize>) {
        let Self { left, right, .. } = self;
        // SAFETY: `rows` and `depth` are those of the factors; the product has the columns of right.
        unsafe {
            let target = self.product_start.as_ptr().add(rows.start * right.columns);
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

    /// Writes the sums of a task over some rows, or adds to them.
    ///
    /// # Safety
    /// As [`NarrowProducts::run`].
    unsafe fn multiply_turned(&self, rows: Range<usize>, task: usize, add: bool) {
        let Self { left, other, .. } = self;
        // SAFETY: `rows` are those of the factors; sums have `columns * depth` numbers for each task.
        unsafe {
            self.level.rows(&Rows {
                rows: other.columns,
                columns: left.columns,
                depth: rows.len(),
                left: other.start.as_ptr().add(rows.start * other.row_stride),
                left_row_stride: other.column_stride,
                left_depth_stride: other.row_stride,
                panel: left.start.as_ptr().add(rows.start * left.row_stride),
                panel_stride: left.row_stride,
                target: self.sums_start.as_ptr().add(task * other.columns * left.columns),
                target_row_stride: left.columns,
                add,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::Kind;

    /// At every level that this machine has.
    fn products(left: &Tensor, right: &Tensor, other: &Tensor) -> Vec<Option<[Tensor; 2]>> {
        Level::available().map(|level| at_level(level, left, right, 0.5, other).unwrap()).collect()
    }

    #[test]
    fn both_are_the_products_of_the_formula() {
        let double = |x: &Tensor| x.to_kind(Kind::Double);
        // Several tasks and blocks of rows, depths of several panels, registers that a row fills and others.
        for [rows, depth, columns] in
            [[33, 16, 16], [300, 592, 16], [129, 1040, 48], [4100, 4096, 16], [70, 1536, 32]]
        {
            // Columns of wider tensors, as those of a stack of layers.
            let left = noise(1, &[rows, depth + 5]).narrow(1, 3, depth);
            let right = noise(2, &[depth, columns]);
            let other = noise(3, &[rows, 2 * columns]).narrow(1, columns, columns);
            for found in products(&left, &right, &other) {
                let [product, turned] = found.unwrap();
                assert_close(&double(&product), &(double(&left).matmul(&double(&right)) * 0.5), 1e-6);
                assert_close(&double(&turned), &double(&left).tr().matmul(&double(&other)), 1e-6);
                assert!(turned.is_contiguous());
            }
        }
    }

    #[test]
    fn no_number_of_threads_changes_a_bit() {
        let (left, right, other) = (noise(1, &[700, 320]), noise(2, &[320, 16]), noise(3, &[700, 16]));
        let [one, five] = [1, 5].map(|threads| {
            tch::set_num_threads(threads);
            products(&left, &right, &other)
        });
        assert_eq!(one, five);
    }

    #[test]
    fn what_does_not_fit_is_left_to_libtorch() {
        let (left, right, other) = (noise(1, &[40, 64]), noise(2, &[64, 16]), noise(3, &[40, 16]));
        let refuses = |left: &Tensor, right: &Tensor, other: &Tensor| {
            products(left, right, other).iter().all(Option::is_none)
        };
        assert!(products(&left, &right, &other).iter().all(Option::is_some));
        assert!(refuses(&left.narrow(0, 0, 32), &right, &other.narrow(0, 0, 32)));
        assert!(refuses(&left, &right, &other.narrow(0, 1, 39)));
        assert!(refuses(&left.narrow(1, 0, 63), &right.narrow(0, 0, 63), &other));
        assert!(refuses(&left, &right.narrow(1, 0, 8), &other.narrow(1, 0, 8)));
        assert!(refuses(&left.to_kind(Kind::Double), &right, &other));
        assert!(refuses(&left, &right.tr().contiguous().tr(), &other));
        assert!(refuses(&noise(1, &[40, 1]).expand([40, 64], false), &right, &other));
    }
}
