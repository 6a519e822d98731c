//! Columns of a right factor, copied into the order in which a tile reads them.

use super::{Matrix, Term, vector::Vector};
use std::{arch::x86_64::__m256, cell::RefCell, ops::Range};

/// Columns that a panel holds side by side.
pub(in crate::cpu) const WIDTH: usize = 48;
/// Rows of a panel at the most: with its columns they fill a fifth of a megabyte, which stays in a core's second cache.
pub(in crate::cpu) const DEPTH: usize = 1024;

/// 64 bytes that begin at a multiple of 64: no load of a register crosses a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _numbers: [f32; 16],
}

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with this thread's own panel, `DEPTH` rows of `WIDTH` numbers.
pub(super) fn with_panel(body: impl FnOnce(&mut [f32])) {
    with_scratch(DEPTH * WIDTH, body);
}

/// Runs `body` with `count` numbers of this thread's own, kept from call to call, whatever was left in them.
pub(in crate::cpu) fn with_scratch(count: usize, body: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|lines| {
        let needed = count.div_ceil(16);
        if lines.len() < needed {
            lines.resize(needed, Line { _numbers: [0.0; 16] });
        }
        // SAFETY: a line is 16 f32 without padding, so the vector holds at least `count` f32 side by side; the borrow is exclusive.
        let numbers = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count) };
        body(numbers);
    });
}

/// The depths at which a factor of `depth` rows is cut, in parts of nearly one size that have `most` rows at the most.
pub(super) fn depth_blocks(depth: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let block = depth.div_ceil(depth.div_ceil(most).max(1)).max(1);
    (0..depth).step_by(block).map(move |start| start..(start + block).min(depth))
}

/// Copies `scale * right[depth, columns]` into the panel, row by row; `columns` are those of the target from `first` on, and those
/// that the term does not reach become zero.
///
/// # Safety
/// `depth` lies within the term's right factor; the machine has the instructions of `V`.
#[inline(always)]
pub(in crate::cpu) unsafe fn pack<V: Vector>(
    term: &Term,
    depth: std::ops::Range<usize>,
    first: usize,
    panel: &mut [f32],
) {
    // The part of the panel's columns that the factor has.
    let reached = term.columns_among(first..first + WIDTH);
    let rows = panel[..depth.len() * WIDTH].as_chunks_mut::<WIDTH>().0;
    if reached.len() < WIDTH {
        rows.fill([0.0; WIDTH]);
    }
    if reached.is_empty() {
        return;
    }
    let (place, width) = (reached.start - first, reached.len());
    let from = reached.start - term.first_column;
    // SAFETY: `from..from + width` are columns of the factor, and `depth` its rows.
    unsafe {
        if term.right.column_stride == 1 {
            copy_rows(&term.right, depth.start, from, width, place, rows);
        } else {
            copy_columns::<V>(&term.right, depth.start, from, width, place, rows);
        }
    }
    if term.scale != 1.0 {
        for number in rows.as_flattened_mut() {
            *number *= term.scale;
        }
    }
}

/// Rows of the factor lie dense.
///
/// # Safety
/// The factor has `width` columns from `from` on, and `rows.len()` rows from `first_row` on.
#[inline(always)]
unsafe fn copy_rows(
    right: &Matrix,
    first_row: usize,
    from: usize,
    width: usize,
    place: usize,
    rows: &mut [[f32; WIDTH]],
) {
    for (index, row) in rows.iter_mut().enumerate() {
        // SAFETY: by the function's own demand these are numbers of the factor.
        unsafe {
            let source = right.start.as_ptr().add((first_row + index) * right.row_stride + from);
            if width == WIDTH {
                *row = source.cast::<[f32; WIDTH]>().read_unaligned();
            } else {
                std::ptr::copy_nonoverlapping(source, row[place..place + width].as_mut_ptr(), width);
            }
        }
    }
}

/// Columns of the factor lie dense, or nothing does: squares as wide as a register are turned.
///
/// # Safety
/// As [`copy_rows`]; the machine has the instructions of `V`.
#[inline(always)]
unsafe fn copy_columns<V: Vector>(
    right: &Matrix,
    first_row: usize,
    from: usize,
    width: usize,
    place: usize,
    rows: &mut [[f32; WIDTH]],
) {
    let at = |row: usize, column: usize| {
        // SAFETY: called for numbers of the factor alone.
        unsafe {
            right
                .start
                .as_ptr()
                .add((first_row + row) * right.row_stride + (from + column) * right.column_stride)
        }
    };
    let (mut whole_rows, mut whole_columns) = (0, 0);
    if right.row_stride == 1 {
        let wide = [rows.len(), width].map(|count| count / V::LANES * V::LANES);
        [whole_rows, whole_columns] = [rows.len(), width].map(|count| count / 8 * 8);
        // SAFETY: numbers of a column lie side by side, `row_stride` being 1, and the ranges are some of the factor and of the panel.
        // Machines with wider registers have those of 8, which take what the wide ones leave: all there is of an adapter of rank 8.
        unsafe {
            turn_squares::<V>(at, right.column_stride, 0..wide[0], 0..wide[1], place, rows);
            turn_squares::<__m256>(at, right.column_stride, 0..wide[0], wide[1]..whole_columns, place, rows);
            turn_squares::<__m256>(
                at,
                right.column_stride,
                wide[0]..whole_rows,
                0..whole_columns,
                place,
                rows,
            );
        }
    }
    for (row, target) in rows.iter_mut().enumerate() {
        let done = if row < whole_rows { whole_columns } else { 0 };
        for column in done..width {
            // SAFETY: a number of the factor.
            target[place + column] = unsafe { at(row, column).read() };
        }
    }
}

/// Turns squares as wide as a register, which fill the ranges; `at` leads to a number of the factor by its row and column.
///
/// # Safety
/// The numbers exist in the factor, those of a column side by side, and their places in the panel; the machine has the instructions of `V`.
#[inline(always)]
unsafe fn turn_squares<V: Vector>(
    at: impl Fn(usize, usize) -> *mut f32,
    column_stride: usize,
    depth: Range<usize>,
    columns: Range<usize>,
    place: usize,
    rows: &mut [[f32; WIDTH]],
) {
    // Along the columns, which are read as streams.
    for column in columns.step_by(V::LANES) {
        for row in depth.clone().step_by(V::LANES) {
            let target = rows[row..row + V::LANES].as_flattened_mut()[place + column..].as_mut_ptr();
            // SAFETY: as the caller says.
            unsafe { V::turn(at(row, column), column_stride, target, WIDTH) };
        }
    }
}
