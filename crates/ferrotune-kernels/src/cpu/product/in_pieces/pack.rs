//! Copies of factors, cut into pieces and in the order of tiles.

use super::unit::{BLOCK, PIECES, STEP, TILE};
use crate::cpu::product::{Matrix, Term};
use std::{arch::x86_64::*, ops::Range};

/// Columns of a tile of the right factor, and rows of one of the left.
const SIDE: usize = 16;

/// Copies rows `first_row..` of a block of the left factor: a row of a tile is [`STEP`] numbers along the depth.
///
/// # Safety
/// `depth` lies within the columns of `left`; `to` has room for the steps of the depth. The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn left(left: &Matrix, first_row: usize, depth: Range<usize>, mut to: *mut u16) {
    let rows = left.rows.saturating_sub(first_row).min(BLOCK);
    let mut copy = [[0.0f32; STEP]; BLOCK];
    for start in depth.clone().step_by(STEP) {
        let count = (depth.end - start).min(STEP);
        // SAFETY: rows and depth are those of the factor.
        unsafe {
            let from = left.start.as_ptr().add(first_row * left.row_stride + start * left.column_stride);
            let (mut from, mut stride) = (from.cast_const(), left.row_stride);
            if left.column_stride != 1 {
                for column in 0..count {
                    for (row, numbers) in copy.iter_mut().enumerate().take(rows) {
                        numbers[column] = *from.add(row * left.row_stride + column * left.column_stride);
                    }
                }
                (from, stride) = (copy.as_ptr().cast(), STEP);
            }
            let masks = masks(count);
            for row in 0..BLOCK {
                let two = match row < rows {
                    true => load_two(from.add(row * stride), masks),
                    false => [_mm512_setzero_ps(); 2],
                }
                .map(|numbers| split(numbers));
                for piece in 0..PIECES {
                    let numbers = upper_halves(two[0][piece], two[1][piece]);
                    _mm512_storeu_si512(to.add(piece * 2 * TILE + row * STEP).cast(), numbers);
                }
            }
            to = to.add(2 * PIECES * TILE);
        }
    }
}

/// Copies columns `first_column..` of the target of a block of the right factor, times the term's scale: a row of a tile is [`SIDE`]
/// pairs along the depth, one for each column. Columns that the term does not reach become zero.
///
/// Says whether the numbers are all of bf16: then the later pieces are zero, and are left out.
///
/// # Safety
/// `depth` lies within the rows of the right factor; `to` has room for the steps of the depth. The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn right(term: &Term, first_column: usize, depth: Range<usize>, to: *mut u16) -> bool {
    // SAFETY: as the caller says.
    unsafe {
        if pack_right::<1>(term, first_column, depth.clone(), to) {
            return true;
        }
        pack_right::<PIECES>(term, first_column, depth, to);
        false
    }
}

/// `false` as soon as a number has more than `PIECES` pieces.
///
/// # Safety
/// As [`right`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_right<const PIECES: usize>(
    term: &Term,
    first_column: usize,
    depth: Range<usize>,
    mut to: *mut u16,
) -> bool {
    let Term { right, scale, .. } = term;
    let scale = _mm512_set1_ps(*scale);
    for start in depth.clone().step_by(STEP) {
        let count = (depth.end - start).min(STEP);
        for half in 0..2 {
            // The columns of the tile that the factor has, counted from the tile's first.
            let first = first_column + half * SIDE;
            let begin = term.first_column.saturating_sub(first).min(SIDE);
            let end = (term.first_column + right.columns).saturating_sub(first).min(SIDE);
            let mut columns = Columns { begin, end: end.max(begin), numbers: std::ptr::null(), row_stride: 0, column_stride: 0 };
            if begin < end {
                let from = first + begin - term.first_column;
                let offset = start * right.row_stride + from * right.column_stride;
                // SAFETY: `start` is a row of the factor, and `from` a column.
                columns.numbers = unsafe { right.start.as_ptr().add(offset) };
                (columns.row_stride, columns.column_stride) = (right.row_stride, right.column_stride);
            }
            // SAFETY: the columns exist, and `count` rows of them; there is room for the step.
            unsafe {
                let (pieces, more) = columns.pieces::<PIECES>(count, scale);
                if PIECES == 1 && more {
                    return false;
                }
                for (piece, rows) in pieces.into_iter().enumerate() {
                    for (row, pairs) in rows.into_iter().enumerate() {
                        _mm512_storeu_si512(to.add((piece * 2 + half) * TILE + row * STEP).cast(), pairs);
                    }
                }
            }
        }
        // SAFETY: there is room for each step.
        to = unsafe { to.add(2 * PIECES * TILE) };
    }
    true
}

/// Columns of a right factor that meet a tile.
struct Columns {
    begin: usize,
    end: usize,
    /// The first number of column `begin`.
    numbers: *const f32,
    row_stride: usize,
    column_stride: usize,
}

impl Columns {
    /// The first pieces of `scale` times the numbers: for each two rows of each column of the tile a pair, zeros where there are none. And
    /// whether there are other pieces than the first.
    ///
    /// # Safety
    /// The columns have `count` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn pieces<const PIECES: usize>(
        &self,
        count: usize,
        scale: __m512,
    ) -> ([[__m512i; SIDE]; PIECES], bool) {
        let zero = _mm512_setzero_si512();
        let (mut pieces, mut more) = ([[zero; SIDE]; PIECES], zero);
        let mut split_two = |two: [__m512; 2]| {
            let two = two.map(|numbers| split(_mm512_mul_ps(numbers, scale)));
            more = _mm512_or_si512(more, _mm512_or_si512(two[0][1], two[1][1]));
            two
        };
        // SAFETY: numbers of the columns alone are read; masked ones are not.
        unsafe {
            if self.row_stride == 1 {
                let masks = masks(count);
                for column in self.begin..self.end {
                    let from = self.numbers.add((column - self.begin) * self.column_stride);
                    let two = split_two(load_two(from, masks));
                    for (piece, columns) in pieces.iter_mut().enumerate() {
                        columns[column] = upper_halves(two[0][piece], two[1][piece]);
                    }
                }
                for columns in &mut pieces {
                    *columns = turned(*columns);
                }
            } else {
                let mut copy = [[0.0f32; SIDE]; STEP];
                if self.column_stride != 1 {
                    for (row, numbers) in copy.iter_mut().enumerate().take(count) {
                        for column in self.begin..self.end {
                            let offset = row * self.row_stride + (column - self.begin) * self.column_stride;
                            numbers[column] = *self.numbers.add(offset);
                        }
                    }
                }
                let mask = ((1u32 << self.end) - (1u32 << self.begin)) as __mmask16;
                // An address before the first number may be formed here, and no number there is read.
                let start = self.numbers.wrapping_sub(self.begin);
                for pair in 0..SIDE {
                    let two = split_two([2 * pair, 2 * pair + 1].map(|row| match self.column_stride {
                        1 if row < count => {
                            _mm512_maskz_loadu_ps(mask, start.wrapping_add(row * self.row_stride))
                        }
                        1 => _mm512_setzero_ps(),
                        _ => _mm512_loadu_ps(copy[row].as_ptr()),
                    }));
                    for (piece, rows) in pieces.iter_mut().enumerate() {
                        rows[pair] = side_by_side(two[0][piece], two[1][piece]);
                    }
                }
            }
        }
        (pieces, _mm512_test_epi32_mask(more, more) != 0)
    }
}

/// Which of [`STEP`] numbers there are, for each of two registers.
fn masks(count: usize) -> [__mmask16; 2] {
    let mask = ((1u64 << count) - 1) as u32;
    [mask as u16, (mask >> 16) as u16]
}

/// # Safety
/// The numbers of the masks exist.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_two(from: *const f32, masks: [__mmask16; 2]) -> [__m512; 2] {
    // SAFETY: as the caller says; a masked number is not read.
    unsafe { [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(SIDE))] }
}

/// The upper halves of what this returns are the pieces of `x`; the lower halves of the first two are zero, and of the third but for
/// numbers at the end of the exponents' range.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(x: __m512) -> [__m512i; PIECES] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let bits = _mm512_castps_si512;
    let first = _mm512_and_si512(bits(x), upper);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    // Nothing is left of a number that is infinite; the difference is none.
    let rest = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(rest, rest), rest);
    let second = _mm512_and_si512(bits(rest), upper);
    let third = bits(_mm512_sub_ps(rest, _mm512_castsi512_ps(second)));
    [first, second, third]
}

/// The upper halves of numbers, each beside that of the other register.
#[inline]
#[target_feature(enable = "avx512f")]
fn side_by_side(first: __m512i, second: __m512i) -> __m512i {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    _mm512_or_si512(_mm512_srli_epi32::<16>(first), _mm512_and_si512(second, upper))
}

/// The upper halves of numbers, those of the second register after those of the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn upper_halves(first: __m512i, second: __m512i) -> __m512i {
    const PLACES: [u16; 32] = {
        let mut places = [0; 32];
        let mut index = 0;
        while index < 32 {
            places[index] = 2 * index as u16 + 1;
            index += 1;
        }
        places
    };
    // SAFETY: 64 bytes are read.
    let places = unsafe { _mm512_loadu_si512(PLACES.as_ptr().cast()) };
    _mm512_permutex2var_epi16(first, places, second)
}

/// A square of pairs, turned.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let pairs: [__m512i; SIDE] = std::array::from_fn(|index| {
        let (a, b) = (rows[index / 2 * 2], rows[index / 2 * 2 + 1]);
        if index % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    // Register 4 i + j holds column 4 l + j of rows 4 i to 4 i + 3 in its quarter l.
    let fours: [__m512i; SIDE] = std::array::from_fn(|index| {
        let (i, j) = (index / 4, index % 4);
        let (a, b) = (pairs[4 * i + j / 2], pairs[4 * i + 2 + j / 2]);
        if j % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    std::array::from_fn(|column| {
        let (l, j) = (column / 4, column % 4);
        // Quarter l of the four registers that hold column 4 l + j.
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| fours[4 * i + j]);
        let [low, high] = [(a, b), (c, d)].map(|(a, b)| match l / 2 {
            0 => _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b),
            _ => _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b),
        });
        match l % 2 {
            0 => _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high),
            _ => _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high),
        }
    })
}
