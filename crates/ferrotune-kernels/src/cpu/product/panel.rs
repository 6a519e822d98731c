//! Columns of a right factor, copied into the order in which a tile reads them.

use super::{
    Factor, Matrix, Term,
    blocks::{BLOCK, Block, BlockMatrix},
    number::Number,
    right_rows::{DenseRows, RightRows},
    tile::GROUP,
    vector::Vector,
};
use std::{arch::x86_64::__m256, cell::RefCell, ops::Range};

/// Columns that a panel holds side by side.
pub(in crate::cpu) const WIDTH: usize = 48;
/// Rows of a panel at the most: with its columns they fill a fifth of a megabyte, which stays in a core's second cache.
pub(in crate::cpu) const DEPTH: usize = 1024;

// Registers of a weight's blocks begin where halves of them do, across panels and along the depth.
const _: () = assert!(WIDTH.is_multiple_of(BLOCK / 2) && DEPTH.is_multiple_of(BLOCK));

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

/// The depths of the panels for a factor of `depth` rows; each but the last ends where a block of a weight does.
pub(super) fn depths(depth: usize) -> impl Iterator<Item = Range<usize>> {
    depth_blocks(depth.div_ceil(BLOCK), DEPTH / BLOCK)
        .map(move |blocks| blocks.start * BLOCK..(blocks.end * BLOCK).min(depth))
}

/// Copies `scale * right[depth, columns]` of terms that lie side by side into the panel, row by row; `columns` are some of the target,
/// [`WIDTH`] at the most. Those that no term reaches become zero, in whole groups.
///
/// # Safety
/// `depth` lies within the terms' right factors; the machine has the instructions of `V`.
#[inline(always)]
pub(in crate::cpu) unsafe fn pack<V: Vector>(
    terms: &[Term],
    depth: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    let rows = panel[..depth.len() * WIDTH].as_chunks_mut::<WIDTH>().0;
    let whole = columns.len().next_multiple_of(GROUP);
    if terms.iter().map(|term| term.columns_among(columns.clone()).len()).sum::<usize>() < whole {
        rows.iter_mut().for_each(|row| row[..whole].fill(0.0));
    }
    for term in terms {
        let reached = term.columns_among(columns.clone());
        if reached.is_empty() {
            continue;
        }
        let (place, width) = (reached.start - columns.start, reached.len());
        let from = reached.start - term.first_column;
        let place = Place { first_row: depth.start, from, width, place };
        // SAFETY: `from..from + width` are columns of the factor, and `depth` its rows.
        unsafe {
            match &term.right {
                Factor::Singles(right) => copy_matrix::<V, _>(right, place, rows),
                Factor::Halves(right) => copy_matrix::<V, _>(right, place, rows),
                Factor::Nibbles(right) => copy_blocks::<V, _>(right, place, rows),
                Factor::Bytes(right) => copy_blocks::<V, _>(right, place, rows),
            }
        }
        if term.scale != 1.0 {
            for row in rows.iter_mut() {
                for number in &mut row[place.place..place.place + width] {
                    *number *= term.scale;
                }
            }
        }
    }
}

/// The numbers of a factor that go into a panel.
#[derive(Clone, Copy)]
struct Place {
    /// Row of the factor that becomes the panel's first.
    first_row: usize,
    /// First column of the factor.
    from: usize,
    /// Number of columns.
    width: usize,
    /// Column of the panel where the first one goes.
    place: usize,
}

/// # Safety
/// The factor has the columns, and as many rows from the first one on as the panel; the machine has the instructions of `V`.
#[inline(always)]
unsafe fn copy_matrix<V: Vector, T: Number>(right: &Matrix<T>, place: Place, rows: &mut [[f32; WIDTH]]) {
    let Matrix { row_stride, column_stride, .. } = *right;
    let start = right.start.as_ptr().cast_const();
    // SAFETY: as the caller says.
    unsafe {
        match (row_stride, column_stride) {
            (stride, 1) => copy_rows::<V>(DenseRows { start, stride }, place, rows),
            (1, stride) => copy_columns::<V>(DenseRows { start, stride }, place, rows),
            _ => copy_numbers(|row, column| right.number(row, column), place, 0..rows.len(), 0, rows),
        }
    }
}

/// # Safety
/// As [`copy_matrix`].
#[inline(always)]
unsafe fn copy_blocks<V: Vector, B: Block>(right: &BlockMatrix<B>, place: Place, rows: &mut [[f32; WIDTH]]) {
    // SAFETY: as the caller says.
    unsafe {
        match right.turned {
            false => copy_rows::<V>(right.rows(), place, rows),
            true => copy_columns::<V>(right.rows(), place, rows),
        }
    }
}

/// Copies a factor of rows that lie dense.
///
/// # Safety
/// As [`copy_matrix`].
#[inline(always)]
unsafe fn copy_rows<V: Vector>(right: impl RightRows, place: Place, rows: &mut [[f32; WIDTH]]) {
    let whole = place.width / V::LANES * V::LANES;
    // SAFETY: numbers of the factor, as the caller says.
    unsafe {
        for (index, row) in rows.iter_mut().enumerate() {
            let target = &mut row[place.place..place.place + place.width];
            for (column, target) in target[..whole].chunks_exact_mut(V::LANES).enumerate() {
                let column = place.from + column * V::LANES;
                right.load::<V>(place.first_row + index, column).store(target.as_mut_ptr());
            }
        }
        copy_numbers(|row, column| right.number(row, column), place, 0..rows.len(), whole, rows);
    }
}

/// Copies a factor of columns that lie dense: squares as wide as a register are turned. `right` are its columns.
///
/// # Safety
/// As [`copy_matrix`].
#[inline(always)]
unsafe fn copy_columns<V: Vector>(right: impl RightRows, place: Place, rows: &mut [[f32; WIDTH]]) {
    let counts = [rows.len(), place.width];
    let (whole, wide) = (counts.map(|count| count / 8 * 8), counts.map(|count| count / V::LANES * V::LANES));
    // SAFETY: the ranges are some of the factor and of the panel. Machines with wider registers have those of 8, which take what the wide
    // ones leave: all there is of an adapter of rank 8.
    unsafe {
        turn_squares::<V>(right, place, 0..wide[0], 0..wide[1], rows);
        turn_squares::<__m256>(right, place, 0..wide[0], wide[1]..whole[1], rows);
        turn_squares::<__m256>(right, place, wide[0]..whole[0], 0..whole[1], rows);
        let number = |row, column| right.number(column, row);
        copy_numbers(number, place, 0..whole[0], whole[1], rows);
        copy_numbers(number, place, whole[0]..rows.len(), 0, rows);
    }
}

/// Copies numbers one by one: of the panel's rows in `which`, and of the columns from the `first` of the place on.
#[inline(always)]
fn copy_numbers(
    number: impl Fn(usize, usize) -> f32,
    place: Place,
    which: Range<usize>,
    first: usize,
    rows: &mut [[f32; WIDTH]],
) {
    for index in which {
        let target = &mut rows[index][place.place..place.place + place.width];
        for (column, target) in target.iter_mut().enumerate().skip(first) {
            *target = number(place.first_row + index, place.from + column);
        }
    }
}

/// Turns squares as wide as a register, which fill the ranges, counted from the place.
///
/// # Safety
/// As [`copy_matrix`], for the columns and rows of the ranges.
#[inline(always)]
unsafe fn turn_squares<V: Vector>(
    right: impl RightRows,
    place: Place,
    depth: Range<usize>,
    columns: Range<usize>,
    rows: &mut [[f32; WIDTH]],
) {
    // Along the columns, which are read as streams.
    for column in columns.step_by(V::LANES) {
        for row in depth.clone().step_by(V::LANES) {
            let target = rows[row..row + V::LANES].as_flattened_mut()[place.place + column..].as_mut_ptr();
            // SAFETY: as the caller says.
            unsafe { V::turn(right, place.from + column, place.first_row + row, target, WIDTH) };
        }
    }
}
