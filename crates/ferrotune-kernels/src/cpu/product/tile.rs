//! The innermost loops: sums that stay in registers.

use super::{Rows, level::Few, panel::WIDTH, right_rows::RightRows, vector::Vector};

/// Columns of a panel that one instruction set computes together at the least.
pub(super) const GROUP: usize = 16;

/// `target (+)= left panel` for all rows of a block.
///
/// # Safety
/// The pointers of `block` lead to as many numbers as its counts and strides say; the machine has the instructions of `V`.
#[inline(always)]
pub(in crate::cpu) unsafe fn rows<V: Vector, const ROWS: usize, const VECTORS: usize>(block: &Rows) {
    let step = VECTORS * V::LANES;
    let mut column = 0;
    while column < block.columns {
        let mut row = 0;
        // SAFETY: rows and columns of the block, as the caller promises.
        unsafe {
            while row + ROWS <= block.rows {
                tile::<V, ROWS, VECTORS>(block, row, column);
                row += ROWS;
            }
            if row + 8 <= block.rows && ROWS > 8 {
                tile::<V, 8, VECTORS>(block, row, column);
                row += 8;
            }
            if row + 4 <= block.rows && ROWS > 4 {
                tile::<V, 4, VECTORS>(block, row, column);
                row += 4;
            }
            if row + 2 <= block.rows {
                tile::<V, 2, VECTORS>(block, row, column);
                row += 2;
            }
            if row < block.rows {
                tile::<V, 1, VECTORS>(block, row, column);
            }
        }
        column += step;
    }
}

/// `ROWS` rows and `VECTORS` registers of columns of the target.
///
/// # Safety
/// As [`rows`], for the rows from `row` and the columns from `column` on, of which the panel has enough for whole registers.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize>(block: &Rows, row: usize, column: usize) {
    // SAFETY: each address is that of a number of left, panel or target that the caller vouches for; a target narrower than the
    // registers is written number by number.
    unsafe {
        let left: [*const f32; ROWS] =
            std::array::from_fn(|index| block.left.add((row + index) * block.left_row_stride));
        let mut panel = block.panel.add(column);
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        for depth in 0..block.depth {
            let right: [V; VECTORS] = std::array::from_fn(|index| V::load(panel.add(index * V::LANES)));
            for (sums, left) in sums.iter_mut().zip(left) {
                let factor = V::splat(*left.add(depth * block.left_depth_stride));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = factor.mul_add(right, *sum);
                }
            }
            // After the last row there may be nothing.
            panel = panel.wrapping_add(block.panel_stride);
        }
        let width = block.columns - column;
        for (index, sums) in sums.iter().enumerate() {
            let target = block.target.add((row + index) * block.target_row_stride + column);
            if width >= VECTORS * V::LANES {
                for (place, &sum) in sums.iter().enumerate() {
                    let target = target.add(place * V::LANES);
                    let sum = if block.add { sum.add(V::load(target)) } else { sum };
                    sum.store(target);
                }
            } else {
                let mut numbers = [0.0; WIDTH];
                for (place, sum) in sums.iter().enumerate() {
                    sum.store(numbers[place * V::LANES..].as_mut_ptr());
                }
                for (place, number) in numbers.iter().enumerate().take(width) {
                    let target = target.add(place);
                    *target = if block.add { *target + number } else { *number };
                }
            }
        }
    }
}

/// Few rows of `left` with many of `right`, both dense along the depth: sums along the registers, and nothing is copied.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
pub(in crate::cpu) unsafe fn few<V: Vector>(block: &Few, right: impl RightRows) {
    // Of 32 registers 24 hold sums, and of 16 eight.
    // SAFETY: as the caller says.
    unsafe {
        match V::LANES {
            16 => few_in_tiles::<V, 8, 3>(block, right),
            _ => few_in_tiles::<V, 4, 2>(block, right),
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn few_in_tiles<V: Vector, const LEFT: usize, const RIGHT: usize>(block: &Few, right: impl RightRows) {
    let mut row = 0;
    // SAFETY: rows of left and right within the block's counts.
    unsafe {
        while row + LEFT <= block.rows {
            few_rows::<V, LEFT, RIGHT>(block, right, row);
            row += LEFT;
        }
        if row + 4 <= block.rows && LEFT > 4 {
            few_rows::<V, 4, RIGHT>(block, right, row);
            row += 4;
        }
        if row + 2 <= block.rows {
            few_rows::<V, 2, RIGHT>(block, right, row);
            row += 2;
        }
        if row < block.rows {
            few_rows::<V, 1, RIGHT>(block, right, row);
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn few_rows<V: Vector, const LEFT: usize, const RIGHT: usize>(
    block: &Few,
    right: impl RightRows,
    row: usize,
) {
    let mut column = 0;
    // SAFETY: columns of the target are rows of right, within the block's counts.
    unsafe {
        while column + RIGHT <= block.columns {
            dots::<V, LEFT, RIGHT>(block, right, row, column);
            column += RIGHT;
        }
        while column < block.columns {
            dots::<V, LEFT, 1>(block, right, row, column);
            column += 1;
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn dots<V: Vector, const LEFT: usize, const RIGHT: usize>(
    block: &Few,
    right: impl RightRows,
    row: usize,
    column: usize,
) {
    // SAFETY: each address is that of a number of left, right or target that the caller vouches for.
    unsafe {
        let left: [*const f32; LEFT] =
            std::array::from_fn(|index| block.left.add((row + index) * block.left_row_stride));
        let sums: [[V; RIGHT]; LEFT] = right.dots(left, column, block.depth);
        // By hand: of a loop over the sums the compiler would make one over memory.
        write_sums::<V, LEFT, RIGHT, 0>(block, &sums, row, column);
        if LEFT * RIGHT > GROUP {
            write_sums::<V, LEFT, RIGHT, GROUP>(block, &sums, row, column);
        }
    }
}

/// Writes some sums that are still to be added along the register, those from `FIRST` on.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn write_sums<V: Vector, const LEFT: usize, const RIGHT: usize, const FIRST: usize>(
    block: &Few,
    sums: &[[V; RIGHT]; LEFT],
    row: usize,
    column: usize,
) {
    // SAFETY: each address is that of a number of the target that the caller vouches for.
    unsafe {
        let zero = V::zero();
        let registers = std::array::from_fn(|place| {
            let place = FIRST + place;
            if place < LEFT * RIGHT { sums[place / RIGHT][place % RIGHT] } else { zero }
        });
        let numbers = V::sums(registers);
        for place in FIRST..(FIRST + GROUP).min(LEFT * RIGHT) {
            let (index, offset) = (place / RIGHT, place % RIGHT);
            let target = block.target.add((row + index) * block.target_row_stride + column + offset);
            let sum = numbers[place - FIRST] * block.scale;
            *target = if block.add { *target + sum } else { sum };
        }
    }
}
