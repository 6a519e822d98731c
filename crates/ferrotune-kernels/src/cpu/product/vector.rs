//! A register of f32 numbers, as wide as the machine has it.

use super::right_rows::RightRows;
use std::arch::x86_64::*;

/// Asks for the cache line of a number that will be read soon, wherever the pointer leads.
#[inline(always)]
pub(super) fn prefetch(of: *const f32) {
    // SAFETY: a prefetch of any address is harmless, and every x86-64 processor has the instruction.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(of.cast()) }
}

/// What a product asks of a register.
///
/// # Safety
/// Every method demands a machine that has the register's instructions, and code that is compiled with them: the callers are inlined
/// into functions that enable them. Pointers must lead to `LANES` numbers, at any alignment.
pub(crate) trait Vector: Copy {
    /// Numbers in the register.
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn splat(number: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * factor + term`, rounded once.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The sums of the lanes of each register: halves are added until one number is left.
    unsafe fn sums(registers: [Self; 16]) -> [f32; 16];
    /// `step * code + base`, rounded once, of the codes in the low or the high halves of bytes; of a whole 16 bytes, or their halves.
    unsafe fn nibbles(codes: *const u8, high: bool, step: f32, base: f32) -> Self;
    /// `step * code`.
    unsafe fn bytes(codes: *const i8, step: f32) -> Self;
    /// Numbers whose upper halves these are.
    unsafe fn halves(codes: *const u16) -> Self;
    /// Writes a square of `LANES` rows, from a row and column on, with rows and columns exchanged; the stride is that of the rows written.
    unsafe fn turn(from: impl RightRows, row: usize, column: usize, to: *mut f32, to_stride: usize);
}

// SAFETY, for the blocks below: each is one instruction or a few, under exactly the demands of the trait.

impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(number: f32) -> Self {
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, factor, term) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sums(registers: [Self; 16]) -> [f32; 16] {
        unsafe {
            // What is left of two registers is put into one, so that few additions do for all.
            let (mut eights, mut fours, mut pairs) =
                ([_mm512_setzero_ps(); 8], [_mm512_setzero_ps(); 4], [_mm512_setzero_ps(); 2]);
            for (place, eight) in eights.iter_mut().enumerate() {
                let row = place / 4 * 8 + place % 4;
                let (a, b) = (registers[row], registers[row + 4]);
                let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                *eight = _mm512_add_ps(low, high);
            }
            for place in 0..4 {
                let (a, b) = (eights[place], eights[place + 4]);
                let (low, high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                fours[place] = _mm512_add_ps(low, high);
            }
            for place in 0..2 {
                let (a, b) = (_mm512_castps_pd(fours[2 * place]), _mm512_castps_pd(fours[2 * place + 1]));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                pairs[place] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            }
            let [a, b] = pairs;
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
            let mut numbers = [0.0; 16];
            _mm512_storeu_ps(numbers.as_mut_ptr(), sums);
            numbers
        }
    }

    #[inline(always)]
    unsafe fn nibbles(codes: *const u8, high: bool, step: f32, base: f32) -> Self {
        unsafe {
            // The few numbers that there are, of which each code takes its own.
            let all = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            let all = _mm512_fmadd_ps(_mm512_set1_ps(step), all, _mm512_set1_ps(base));
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
            // The instruction looks at the lowest four bits.
            _mm512_permutexvar_ps(if high { _mm512_srli_epi32::<4>(codes) } else { codes }, all)
        }
    }

    #[inline(always)]
    unsafe fn bytes(codes: *const i8, step: f32) -> Self {
        unsafe {
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.cast())));
            _mm512_mul_ps(codes, _mm512_set1_ps(step))
        }
    }

    #[inline(always)]
    unsafe fn halves(codes: *const u16) -> Self {
        unsafe {
            let codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(codes.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(codes))
        }
    }

    #[inline(always)]
    unsafe fn turn(from: impl RightRows, row: usize, column: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            // A closure would not be compiled for this instruction set.
            let mut rows = [_mm512_setzero_ps(); 16];
            for (index, numbers) in rows.iter_mut().enumerate() {
                *numbers = from.load(row + index, column);
            }
            // Squares of 4, a row of them from four rows: first their pairs side by side, then their fours.
            let mut fours = [_mm512_setzero_ps(); 16];
            for place in (0..16).step_by(4) {
                let pairs = [0, 2].map(|row| (rows[place + row], rows[place + row + 1]));
                let [low, low_2] = pairs.map(|(a, b)| _mm512_castps_pd(_mm512_unpacklo_ps(a, b)));
                let [high, high_2] = pairs.map(|(a, b)| _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
                fours[place] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low_2));
                fours[place + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low_2));
                fours[place + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high_2));
                fours[place + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high_2));
            }
            // Then the squares themselves: part `p` of register `4 q + i` is part `q` of row `4 p + i`.
            for row in 0..4 {
                let [a, b, c, d] = [0, 4, 8, 12].map(|place| fours[place + row]);
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even_2, odd_2) =
                    (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                for (part, turned) in [
                    _mm512_shuffle_f32x4::<0x88>(even, even_2),
                    _mm512_shuffle_f32x4::<0x88>(odd, odd_2),
                    _mm512_shuffle_f32x4::<0xdd>(even, even_2),
                    _mm512_shuffle_f32x4::<0xdd>(odd, odd_2),
                ]
                .into_iter()
                .enumerate()
                {
                    _mm512_storeu_ps(to.add((4 * part + row) * to_stride), turned);
                }
            }
        }
    }
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(number: f32) -> Self {
        unsafe { _mm256_set1_ps(number) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, factor, term) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sums(registers: [Self; 16]) -> [f32; 16] {
        let mut numbers = [0.0; 16];
        for (first, numbers) in [0, 8].into_iter().zip(numbers.as_chunks_mut::<8>().0) {
            unsafe {
                // As above.
                let (mut fours, mut pairs) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 2]);
                for place in 0..4 {
                    let (a, b) = (registers[first + place], registers[first + place + 4]);
                    let (low, high) =
                        (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                    fours[place] = _mm256_add_ps(low, high);
                }
                for place in 0..2 {
                    let (a, b) = (_mm256_castps_pd(fours[2 * place]), _mm256_castps_pd(fours[2 * place + 1]));
                    let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
                    pairs[place] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
                }
                let [a, b] = pairs;
                let sums = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
                _mm256_storeu_ps(numbers.as_mut_ptr(), sums);
            }
        }
        numbers
    }

    #[inline(always)]
    unsafe fn nibbles(codes: *const u8, high: bool, step: f32, base: f32) -> Self {
        unsafe {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.cast()));
            let codes = if high {
                _mm256_srli_epi32::<4>(codes)
            } else {
                _mm256_and_si256(codes, _mm256_set1_epi32(15))
            };
            _mm256_fmadd_ps(_mm256_set1_ps(step), _mm256_cvtepi32_ps(codes), _mm256_set1_ps(base))
        }
    }

    #[inline(always)]
    unsafe fn bytes(codes: *const i8, step: f32) -> Self {
        unsafe {
            let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(codes.cast())));
            _mm256_mul_ps(codes, _mm256_set1_ps(step))
        }
    }

    #[inline(always)]
    unsafe fn halves(codes: *const u16) -> Self {
        unsafe {
            let codes = _mm256_cvtepu16_epi32(_mm_loadu_si128(codes.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(codes))
        }
    }

    #[inline(always)]
    unsafe fn turn(from: impl RightRows, row: usize, column: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            // A closure would not be compiled for this instruction set.
            let mut rows = [_mm256_setzero_ps(); 8];
            for (index, numbers) in rows.iter_mut().enumerate() {
                *numbers = from.load(row + index, column);
            }
            let mut fours = [_mm256_setzero_ps(); 8];
            for place in [0, 4] {
                let pairs = [0, 2].map(|row| (rows[place + row], rows[place + row + 1]));
                let [low, low_2] = pairs.map(|(a, b)| _mm256_castps_pd(_mm256_unpacklo_ps(a, b)));
                let [high, high_2] = pairs.map(|(a, b)| _mm256_castps_pd(_mm256_unpackhi_ps(a, b)));
                fours[place] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low_2));
                fours[place + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low_2));
                fours[place + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high_2));
                fours[place + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high_2));
            }
            for row in 0..4 {
                let (a, b) = (fours[row], fours[row + 4]);
                _mm256_storeu_ps(to.add(row * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((row + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::product::Level;

    unsafe fn sums<V: Vector>(numbers: &[f32]) -> [f32; 16] {
        unsafe { V::sums(std::array::from_fn(|row| V::load(numbers[row * V::LANES..].as_ptr()))) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    unsafe fn sums_avx512(numbers: &[f32]) -> [f32; 16] {
        unsafe { sums::<__m512>(numbers) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn sums_avx2(numbers: &[f32]) -> [f32; 16] {
        unsafe { sums::<__m256>(numbers) }
    }

    #[test]
    fn each_register_has_its_own_sum_at_every_level() {
        // Whole numbers: every order of additions gives the same.
        let numbers: Vec<f32> = (0..256u32).map(|place| (place * place % 1009) as f32).collect();
        for level in Level::available() {
            // SAFETY: the level's instructions are there, and numbers for 16 registers.
            let (found, lanes) = match level {
                Level::Avx512 => (unsafe { sums_avx512(&numbers) }, 16),
                Level::Avx2 => (unsafe { sums_avx2(&numbers) }, 8),
            };
            let expected = numbers.chunks(lanes).map(|register| register.iter().sum::<f32>());
            assert!(found.into_iter().eq(expected.take(16)), "{level:?} {found:?}");
        }
    }
}
