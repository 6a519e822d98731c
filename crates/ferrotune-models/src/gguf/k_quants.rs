//! Decoding of the "K" types: super-blocks of 256 elements whose sub-blocks have scales that are quantised themselves.

use super::dequantize::scale;

/// 16 sub-blocks of 16: `(d * scale) * q - (dmin * min)`, `q` of 2 bits.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (quants, rest) = rest.split_at(64);
    let (d, dmin) = (scale(rest, 0), scale(rest, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let q = two_bits(quants, i);
        let packed = scales[i / 16];
        let (dl, ml) = (d * f32::from(packed & 15), dmin * f32::from(packed >> 4));
        *out = dl * f32::from(q) - ml;
    }
}

/// 16 sub-blocks of 16: `(d * (scale - 32)) * q`, `q` of 2 bits, less 4 where the bit of the mask is not set.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, rest) = block.split_at(32);
    let (quants, rest) = rest.split_at(64);
    let (packed, rest) = rest.split_at(12);
    let d = scale(rest, 0);
    for (i, out) in out.iter_mut().enumerate() {
        let j = i / 16;
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        let offset = if mask[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        *out = dl * f32::from(two_bits(quants, i) as i8 - offset);
    }
}

/// 8 sub-blocks of 32: `(d * scale) * q - (dmin * min)`, `q` of 4 bits.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (packed, quants) = block[4..].split_at(12);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (sub_scale, sub_min) = scale_and_min(packed, j);
        let (dl, ml) = (d * f32::from(sub_scale), dmin * f32::from(sub_min));
        for (i, out) in out.iter_mut().enumerate() {
            *out = dl * f32::from(nibble(quants, j, i)) - ml;
        }
    }
}

/// As [`q4_k`], `q` of 5 bits: bit `j` of byte `i` of the mask belongs to element `i` of sub-block `j`.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (packed, rest) = block[4..].split_at(12);
    let (mask, quants) = rest.split_at(32);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (sub_scale, sub_min) = scale_and_min(packed, j);
        let (dl, ml) = (d * f32::from(sub_scale), dmin * f32::from(sub_min));
        for (i, out) in out.iter_mut().enumerate() {
            let q = nibble(quants, j, i) | (mask[i] >> j & 1) << 4;
            *out = dl * f32::from(q) - ml;
        }
    }
}

/// 16 sub-blocks of 16: `(d * scale) * (q - 32)`, `q` of 6 bits, scales signed bytes.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, rest) = rest.split_at(16);
    let d = scale(rest, 0);
    for (i, out) in out.iter_mut().enumerate() {
        // Halves of 128 elements: 64 bytes of nibbles (lower ones first) and 32 bytes of bit pairs.
        let (half, within) = (i / 128, i % 128);
        let nibble = low[half * 64 + within % 64] >> (4 * (within / 64)) & 15;
        let q = (nibble | two_bits(high, i) << 4) as i8 - 32;
        *out = d * f32::from(scales[i / 16].cast_signed()) * f32::from(q);
    }
}

/// Bit pair of element `i`: each 32 bytes hold 128 elements, 32 in each pair of bits.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// Nibble of element `i` of sub-block `j`: each 32 bytes hold two sub-blocks, the first in the lower halves.
fn nibble(bytes: &[u8], j: usize, i: usize) -> u8 {
    bytes[j / 2 * 32 + i] >> (4 * (j % 2)) & 15
}

/// The 6-bit scale and minimum of sub-block `j`, out of 12 bytes that hold eight of each.
fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        // Four bits beside each other in the last bytes, the upper two on top of the first eight bytes.
        let both = packed[j + 4];
        (both & 15 | (packed[j - 4] >> 6) << 4, both >> 4 | (packed[j] >> 6) << 4)
    }
}
