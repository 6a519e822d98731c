//! Copies of factors, cut into pieces and in the order of tiles.

use super::{
    numbers::{Along, Masked, Numbers},
    unit::{BLOCK, PIECES, STEP, TILE},
};
use crate::cpu::product::{
    Factor, Matrix, Term,
    blocks::{self, Block, BlockMatrix},
    right_rows::DenseRows,
};
use std::{arch::x86_64::*, ops::Range};

/// Columns of a tile of the right factor, and rows of one of the left.
pub(super) const SIDE: usize = 16;

// Tiles begin where halves of a weight's blocks do, and steps where whole ones do.
const _: () = assert!(STEP == blocks::BLOCK && 2 * SIDE == blocks::BLOCK);

/// Copies rows `first_row..` of a block of the left factor: a row of a tile is [`STEP`] numbers along the depth.
///
/// # Safety
/// The first row exists and `depth` lies within the columns of `left`; `to` has room for the steps of the depth. The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn left(left: &Matrix, first_row: usize, depth: Range<usize>, mut to: *mut u16) {
    let rows = (left.rows - first_row).min(BLOCK);
    let mut copy;
    for start in depth.clone().step_by(STEP) {
        let count = (depth.end - start).min(STEP);
        // SAFETY: rows and depth are those of the factor.
        unsafe {
            let from = left.start.as_ptr().add(first_row * left.row_stride + start * left.column_stride);
            let (mut from, mut stride) = (from.cast_const(), left.row_stride);
            if left.column_stride != 1 {
                copy = [[0.0f32; STEP]; BLOCK];
                for column in 0..count {
                    for (row, numbers) in copy.iter_mut().enumerate().take(rows) {
                        numbers[column] = *from.add(row * left.row_stride + column * left.column_stride);
                    }
                }
                (from, stride) = (copy.as_ptr().cast(), STEP);
            }
            let masks = masks(count);
            for row in 0..BLOCK {
                let [first, second] = match row < rows {
                    true => load_two(from.add(row * stride), masks),
                    false => [_mm512_setzero_ps(); 2],
                };
                for (piece, (first, second)) in split(first).into_iter().zip(split(second)).enumerate() {
                    let numbers = upper_halves(first, second);
                    _mm512_storeu_si512(to.add(piece * 2 * TILE + row * STEP).cast(), numbers);
                }
            }
            to = to.add(2 * PIECES * TILE);
        }
    }
}

/// Whether the first numbers of a diagonal need no third piece.
pub(super) fn has_two_pieces_at_most(right: &Factor) -> bool {
    const LAST_PIECE: u32 = 0xff;
    let [rows, columns] = right.shape();
    (0..rows.min(2 * STEP)).all(|row| right.number(row, row % columns).to_bits() & LAST_PIECE == 0)
}

/// Copies columns `first_column..` of the target of a block of the right factor, times the term's scale: a row of a tile is [`SIDE`]
/// pairs along the depth, one for each column. Columns that the term does not reach become zero.
///
/// Returns the number of pieces that all numbers have: later ones are zero, and are left out.
///
/// # Safety
/// `depth` lies within the rows of the right factor; `to` has room for the steps of the depth. The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn right(term: &Term, first_column: usize, depth: Range<usize>, to: *mut u16) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        match &term.right {
            Factor::Singles(right) => right_of_matrix(term, right, first_column, depth, to),
            Factor::Halves(right) => right_of_matrix(term, right, first_column, depth, to),
            Factor::Bytes(right) => right_of_blocks(term, right, first_column, depth, to),
            Factor::Nibbles(right) => right_of_blocks(term, right, first_column, depth, to),
        }
    }
}

/// # Safety
/// As [`right`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn right_of_matrix<T: Masked>(
    term: &Term,
    right: &Matrix<T>,
    first_column: usize,
    depth: Range<usize>,
    to: *mut u16,
) -> usize {
    let start = right.start.as_ptr().cast_const();
    // SAFETY: as the caller says.
    unsafe {
        match (right.row_stride, right.column_stride) {
            (1, stride) => {
                pack_all(term, &Along::<_, true>(DenseRows { start, stride }), first_column, depth, to)
            }
            (stride, 1) => {
                pack_all(term, &Along::<_, false>(DenseRows { start, stride }), first_column, depth, to)
            }
            _ => pack_all(term, right, first_column, depth, to),
        }
    }
}

/// # Safety
/// As [`right`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn right_of_blocks<B: Block>(
    term: &Term,
    right: &BlockMatrix<B>,
    first_column: usize,
    depth: Range<usize>,
    to: *mut u16,
) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        match right.turned {
            true => pack_all(term, &Along::<_, true>(right.rows()), first_column, depth, to),
            false => pack_all(term, &Along::<_, false>(right.rows()), first_column, depth, to),
        }
    }
}

/// # Safety
/// As [`right`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_all(
    term: &Term,
    right: &impl Numbers,
    first_column: usize,
    depth: Range<usize>,
    to: *mut u16,
) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        if pack_right::<_, 1>(term, right, first_column, depth.clone(), to) {
            return 1;
        }
        if pack_right::<_, 2>(term, right, first_column, depth.clone(), to) {
            return 2;
        }
        pack_right::<_, PIECES>(term, right, first_column, depth, to);
        PIECES
    }
}

/// `false` as soon as a number has more than `KEPT` pieces.
///
/// # Safety
/// As [`right`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_right<N: Numbers, const KEPT: usize>(
    term: &Term,
    right: &N,
    first_column: usize,
    depth: Range<usize>,
    mut to: *mut u16,
) -> bool {
    let scale = _mm512_set1_ps(term.scale);
    for start in depth.clone().step_by(STEP) {
        let count = (depth.end - start).min(STEP);
        for half in 0..2 {
            let first = first_column + half * SIDE;
            let reached = term.columns_among(first..first + SIDE);
            let columns = Columns {
                begin: reached.start - first,
                end: reached.end - first,
                right,
                first_row: start,
                // Of no column if none is reached; then none is read.
                first_column: reached.start.wrapping_sub(term.first_column),
            };
            // SAFETY: the columns exist, and `count` rows of them; there is room for the step.
            unsafe {
                let to = to.add(half * TILE);
                let more = match N::ALONG_COLUMNS {
                    true => columns.write_turned::<KEPT>(count, scale, to),
                    false => columns.write::<KEPT>(count, scale, to),
                };
                if more {
                    return false;
                }
            }
        }
        // SAFETY: there is room for each step.
        to = unsafe { to.add(2 * KEPT * TILE) };
    }
    true
}

/// Columns of a right factor that meet a tile.
struct Columns<'a, N> {
    begin: usize,
    end: usize,
    right: &'a N,
    first_row: usize,
    /// The column of the factor that is column `begin`.
    first_column: usize,
}

impl<N: Numbers> Columns<'_, N> {
    /// Writes the first pieces of `scale` times the numbers: for each two rows of each column of the tile a pair, zeros where there are
    /// none. Says whether there are more pieces than these.
    ///
    /// # Safety
    /// The columns have `count` rows; `to` has room for the pieces' tiles. The machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write<const KEPT: usize>(&self, count: usize, scale: __m512, to: *mut u16) -> bool {
        let mut more = _mm512_setzero_si512();
        let mask = ((1u32 << self.end) - (1u32 << self.begin)) as __mmask16;
        // The column that would be the tile's first: no number of one before the factor's first is read.
        let first_column = self.first_column.wrapping_sub(self.begin);
        // SAFETY: numbers of the columns alone are read; masked ones are not.
        unsafe {
            for pair in 0..SIDE {
                let row = |row| match row < count {
                    true => self.right.load(self.first_row + row, first_column, mask),
                    false => _mm512_setzero_ps(),
                };
                let first = split(_mm512_mul_ps(row(2 * pair), scale));
                let second = split(_mm512_mul_ps(row(2 * pair + 1), scale));
                if KEPT < PIECES {
                    more = _mm512_or_si512(more, _mm512_or_si512(first[KEPT], second[KEPT]));
                }
                for piece in 0..KEPT {
                    let place = to.add(piece * 2 * TILE + pair * STEP);
                    _mm512_storeu_si512(place.cast(), side_by_side(first[piece], second[piece]));
                }
            }
        }
        _mm512_test_epi32_mask(more, more) != 0
    }

    /// The same of columns whose numbers lie side by side.
    ///
    /// # Safety
    /// As [`Columns::write`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn write_turned<const KEPT: usize>(&self, count: usize, scale: __m512, to: *mut u16) -> bool {
        let zero = _mm512_setzero_si512();
        let (mut pieces, mut more) = ([[zero; SIDE]; KEPT], zero);
        let masks = masks(count);
        // SAFETY: numbers of the columns alone are read; masked ones are not.
        unsafe {
            for index in 0..self.end - self.begin {
                let (row, column) = (self.first_row, self.first_column + index);
                let first = self.right.load(row, column, masks[0]);
                let second = self.right.load(row + SIDE, column, masks[1]);
                let first = split(_mm512_mul_ps(first, scale));
                let second = split(_mm512_mul_ps(second, scale));
                if KEPT < PIECES {
                    more = _mm512_or_si512(more, _mm512_or_si512(first[KEPT], second[KEPT]));
                }
                for piece in 0..KEPT {
                    pieces[piece][self.begin + index] = upper_halves(first[piece], second[piece]);
                }
            }
            for (piece, columns) in pieces.iter_mut().enumerate() {
                turn(columns);
                for (pair, numbers) in columns.iter().enumerate() {
                    _mm512_storeu_si512(to.add(piece * 2 * TILE + pair * STEP).cast(), *numbers);
                }
            }
        }
        _mm512_test_epi32_mask(more, more) != 0
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
    unsafe {
        [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(SIDE))]
    }
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

/// Turns a square of pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(square: &mut [__m512i; SIDE]) {
    for pair in square.as_chunks_mut::<2>().0 {
        let [a, b] = *pair;
        *pair = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
    }
    // Of four rows, register j holds column 4 l + j in its quarter l.
    for four in square.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        *four = [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ];
    }
    for j in 0..4 {
        let (a, b, c, d) = (square[j], square[4 + j], square[8 + j], square[12 + j]);
        let ab = _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b);
        let cd = _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d);
        square[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd);
        square[4 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd);
        let ab = _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b);
        let cd = _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d);
        square[8 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd);
        square[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd);
    }
}
