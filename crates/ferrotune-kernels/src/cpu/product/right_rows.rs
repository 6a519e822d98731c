//! Rows of a right factor, which lie dense along the sums of a product.

use super::{
    blocks::{BLOCK, Block},
    number::Number,
    tile::GROUP,
    vector::{Vector, prefetch},
};

/// Rows of numbers that lie side by side, in whatever form, as registers take them.
pub(crate) trait RightRows: Copy {
    /// The numbers of a row from column `column` on, which in rows of blocks is a multiple of the register's lanes.
    ///
    /// # Safety
    /// They exist; the machine has the instructions of `V`.
    unsafe fn load<V: Vector>(self, row: usize, column: usize) -> V;

    /// One of the numbers.
    ///
    /// # Safety
    /// It exists.
    unsafe fn number(self, row: usize, column: usize) -> f32;

    /// The products of the rows of left and the rows of this from `first` on, as sums that are still to be added along the register.
    ///
    /// # Safety
    /// The rows exist, and have `depth` numbers; the machine has the instructions of `V`.
    unsafe fn dots<V: Vector, const LEFT: usize, const RIGHT: usize>(
        self,
        left: [*const f32; LEFT],
        first: usize,
        depth: usize,
    ) -> [[V; RIGHT]; LEFT];
}

/// Rows of numbers that lie side by side.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct DenseRows<T> {
    pub(in crate::cpu) start: *const T,
    pub(in crate::cpu) stride: usize,
}

impl<T: Number> RightRows for DenseRows<T> {
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, column: usize) -> V {
        // SAFETY: as the caller says.
        unsafe { T::load(self.start.add(row * self.stride + column)) }
    }

    #[inline(always)]
    unsafe fn number(self, row: usize, column: usize) -> f32 {
        // SAFETY: as the caller says.
        unsafe { self.start.add(row * self.stride + column).read() }.single()
    }

    #[inline(always)]
    unsafe fn dots<V: Vector, const LEFT: usize, const RIGHT: usize>(
        self,
        left: [*const f32; LEFT],
        first: usize,
        depth: usize,
    ) -> [[V; RIGHT]; LEFT] {
        // SAFETY: each address is that of a number that the caller vouches for; the last numbers of a depth that is no multiple of the
        // register are copied out first.
        unsafe {
            let right: [*const T; RIGHT] =
                std::array::from_fn(|index| self.start.add((first + index) * self.stride));
            let mut sums = [[V::zero(); RIGHT]; LEFT];
            let whole = depth / V::LANES * V::LANES;
            // The first rows of left meet a right factor that is in no cache, and its rows are too short to be foreseen.
            let ahead = RIGHT * self.stride;
            for depth in (0..whole).step_by(V::LANES) {
                for right in right {
                    prefetch(right.wrapping_add(depth + ahead).cast());
                }
                let factors = std::array::from_fn(|index| T::load(right[index].add(depth)));
                add_products(&mut sums, left.map(|left| V::load(left.add(depth))), factors);
            }
            let rest = depth - whole;
            if rest > 0 {
                let factors = std::array::from_fn(|index| partial(right[index].add(whole), rest));
                add_products(&mut sums, left.map(|left| partial(left.add(whole), rest)), factors);
            }
            sums
        }
    }
}

/// Rows of blocks.
#[derive(Clone, Copy)]
pub(super) struct BlockRows<B> {
    pub(super) start: *const B,
    pub(super) blocks_in_a_row: usize,
}

impl<B> BlockRows<B> {
    /// Those from row `first` on.
    pub(super) fn from(self, first: usize) -> Self {
        Self { start: self.start.wrapping_add(first * self.blocks_in_a_row), ..self }
    }

    /// The block that a number is in.
    fn block(self, row: usize, column: usize) -> *const B {
        self.start.wrapping_add(row * self.blocks_in_a_row + column / BLOCK)
    }
}

impl<B: Block> RightRows for BlockRows<B> {
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, column: usize) -> V {
        debug_assert!(column.is_multiple_of(V::LANES));
        // SAFETY: as the caller says; lanes divide a block.
        unsafe { (*self.block(row, column)).part(column % BLOCK / V::LANES) }
    }

    #[inline(always)]
    unsafe fn number(self, row: usize, column: usize) -> f32 {
        // SAFETY: as the caller says.
        unsafe { (*self.block(row, column)).number(column % BLOCK) }
    }

    #[inline(always)]
    unsafe fn dots<V: Vector, const LEFT: usize, const RIGHT: usize>(
        self,
        left: [*const f32; LEFT],
        first: usize,
        _: usize,
    ) -> [[V; RIGHT]; LEFT] {
        // SAFETY: rows that the caller vouches for, in whole blocks, which hold as many numbers as rows of left have.
        unsafe {
            let right: [*const B; RIGHT] =
                std::array::from_fn(|index| self.start.add((first + index) * self.blocks_in_a_row));
            let mut sums = [[V::zero(); RIGHT]; LEFT];
            let ahead = RIGHT * self.blocks_in_a_row;
            for index in 0..self.blocks_in_a_row {
                for right in right {
                    prefetch(right.wrapping_add(index + ahead).cast());
                }
                for part in 0..BLOCK / V::LANES {
                    let factors = std::array::from_fn(|row| (*right[row].add(index)).part(part));
                    let depth = index * BLOCK + part * V::LANES;
                    add_products(&mut sums, left.map(|left| V::load(left.add(depth))), factors);
                }
            }
            sums
        }
    }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn add_products<V: Vector, const LEFT: usize, const RIGHT: usize>(
    sums: &mut [[V; RIGHT]; LEFT],
    left: [V; LEFT],
    right: [V; RIGHT],
) {
    for (sums, left) in sums.iter_mut().zip(left) {
        for (sum, right) in sums.iter_mut().zip(right) {
            // SAFETY: as the caller says.
            *sum = unsafe { left.mul_add(right, *sum) };
        }
    }
}

/// A register of `count` numbers and zeros.
///
/// # Safety
/// `count` is less than the register's lanes, and `from` leads to as many numbers.
#[inline(always)]
unsafe fn partial<T: Number, V: Vector>(from: *const T, count: usize) -> V {
    let mut numbers = [0.0f32; GROUP];
    // SAFETY: numbers of the register, as the caller says; no register here has more than GROUP lanes.
    unsafe {
        for (place, number) in numbers.iter_mut().enumerate().take(count) {
            *number = from.add(place).read().single();
        }
        V::load(numbers.as_ptr())
    }
}
