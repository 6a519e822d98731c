//! Decoding of stored blocks to f32.

use half::{bf16, f16};

use super::ggml_type::GgmlType;
use super::k_quants::{q2_k, q3_k, q4_k, q5_k, q6_k};
use crate::error::{Error, Result};

/// Decodes `bytes`, whole blocks of one storage type, into `values`.
///
/// The results equal those of the reference implementation in Python (`gguf.quants.dequantize`) bit for bit: the same float
/// operations in the same order.
///
/// # Shapes
/// - `bytes`: `[blocks * block_bytes]`
/// - `values`: `[blocks * block_elements]`
///
/// # Errors
/// [`Error::GgufBlockLength`] if the two lengths do not fit together.
///
/// # Examples
/// ```
/// use ferrotune_models::gguf::{GgmlType, dequantize};
///
/// // One Q8_0 block: the scale 0.5 as f16, then 32 signed bytes.
/// let mut block = vec![0x00, 0x38];
/// block.extend((0..32).map(|i| (i - 16_i8).cast_unsigned()));
/// let mut values = [0.0; 32];
/// dequantize(GgmlType::Q8_0, &block, &mut values)?;
/// assert_eq!(values[0], -8.0);
/// assert_eq!(values[31], 7.5);
/// # Ok::<(), ferrotune_models::Error>(())
/// ```
pub fn dequantize(ggml_type: GgmlType, bytes: &[u8], values: &mut [f32]) -> Result<()> {
    let block_bytes = ggml_type.block_bytes();
    let expected_elements = bytes.len() / block_bytes * ggml_type.block_elements();
    if !bytes.len().is_multiple_of(block_bytes) || expected_elements != values.len() {
        return Err(Error::GgufBlockLength {
            ggml_type: ggml_type.name(),
            bytes: bytes.len(),
            block_bytes,
            expected_elements,
            elements: values.len(),
        });
    }
    dequantize_blocks(ggml_type, bytes, values);
    Ok(())
}

/// [`dequantize`] for lengths that are known to fit.
pub(crate) fn dequantize_blocks(ggml_type: GgmlType, bytes: &[u8], values: &mut [f32]) {
    let decode = match ggml_type {
        GgmlType::F32 => |block: &[u8], out: &mut [f32]| {
            out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]])
        },
        GgmlType::F16 => |block: &[u8], out: &mut [f32]| out[0] = scale(block, 0),
        GgmlType::BF16 => {
            |block: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32()
        }
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q2K => q2_k,
        GgmlType::Q3K => q3_k,
        GgmlType::Q4K => q4_k,
        GgmlType::Q5K => q5_k,
        GgmlType::Q6K => q6_k,
    };
    let blocks = bytes.chunks_exact(ggml_type.block_bytes());
    for (block, out) in blocks.zip(values.chunks_exact_mut(ggml_type.block_elements())) {
        decode(block, out);
    }
}

/// The f16 number at byte `at` of a block.
pub(super) fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d * (q - 8)`; byte `i` holds element `i` below and element `i + 16` above.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = d * f32::from((byte & 15) as i8 - 8);
        out[i + 16] = d * f32::from((byte >> 4) as i8 - 8);
    }
}

/// `d * q + m`.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// `d * (q - 16)`; the fifth bits of all 32 elements are one little-endian word before the nibbles.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, &byte) in block[6..].iter().enumerate() {
        out[i] = d * f32::from((byte & 15 | fifth_bit(high, i)) as i8 - 16);
        out[i + 16] = d * f32::from((byte >> 4 | fifth_bit(high, i + 16)) as i8 - 16);
    }
}

/// `d * q + m`, with fifth bits as in [`q5_0`].
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, &byte) in block[8..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15 | fifth_bit(high, i)) + m;
        out[i + 16] = d * f32::from(byte >> 4 | fifth_bit(high, i + 16)) + m;
    }
}

fn fifth_bit(high: u32, element: usize) -> u8 {
    ((high >> element & 1) << 4) as u8
}

/// `d * q` with signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut values = [0.0; 32];
        for bytes in [0, 33, 35, 68] {
            let error = dequantize(GgmlType::Q8_0, &vec![0; bytes], &mut values).unwrap_err();
            assert!(error.to_string().contains("Q8_0"), "{error}");
        }
        assert!(dequantize(GgmlType::Q8_0, &[0; 34], &mut values).is_ok());
    }
}
