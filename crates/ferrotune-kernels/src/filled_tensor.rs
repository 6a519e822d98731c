//! New tensors whose numbers come from elsewhere, without a copy between.

use crate::error::Error;
use std::slice;
use tch::{Device, Kind, Tensor};

/// A new tensor in f32 on the CPU, whose memory `fill` writes: from a file, say, which would otherwise be read into a buffer first.
///
/// `fill` is handed all numbers, row by row, as bytes in the machine's order; what it leaves as it is, is any number.
///
/// ```
/// use ferrotune_kernels::{Error, filled_tensor};
/// let file = [1.0f32, 2.0].map(f32::to_ne_bytes).concat();
/// let tensor = filled_tensor(&[2, 1], |bytes| {
///     bytes.copy_from_slice(&file);
///     Ok::<(), Error>(())
/// })?;
/// assert_eq!(Vec::<f32>::try_from(tensor.reshape([-1]))?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of `fill`, and [`Error::Torch`] if there is no memory.
pub fn filled_tensor<E: From<Error>>(
    shape: &[i64],
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Tensor, E> {
    let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu)).map_err(Error::from)?;
    let bytes = tensor.numel() * size_of::<f32>();
    if bytes > 0 {
        // SAFETY: the tensor is new and dense, so these are its bytes and nobody else has a handle on them; they come from an allocator
        // that Rust cannot look into, and any bits are a number.
        fill(unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), bytes) })?;
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_lie_row_by_row_and_errors_come_back() {
        let numbers: [f32; 6] = [0.5, -1.0, 2.0, 3.0, 4.0, 5.0];
        let bytes = numbers.map(f32::to_ne_bytes).concat();
        let fill = |target: &mut [u8]| -> Result<(), Error> {
            target.copy_from_slice(&bytes);
            Ok(())
        };
        assert_eq!(filled_tensor(&[2, 3], fill).unwrap(), Tensor::from_slice(&numbers).reshape([2, 3]));
        assert_eq!(filled_tensor(&[0, 3], |_| Err(Error::Dropout(2.0))).unwrap().size(), [0, 3]);
        let error = filled_tensor(&[1], |_| Err(Error::Dropout(2.0))).unwrap_err();
        assert!(matches!(error, Error::Dropout(_)));
    }
}
