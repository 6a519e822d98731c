//! New tensors whose numbers come from elsewhere, without a copy between.

use crate::error::Error;
use ferrotune_autograd::parallel_for;
use std::{
    slice,
    sync::{Mutex, PoisonError},
};
use tch::{Device, Kind, Tensor};

/// Bytes that a thread fills at a time.
pub(crate) const PART: usize = 8 << 20;

/// A new tensor of floating-point numbers on the CPU, whose memory `fill` writes: from a file, say, which would otherwise be read into
/// a buffer first.
///
/// `fill` is handed a part of the numbers at a time, with the place of its first byte: row by row, as bytes in the machine's order. What
/// it leaves as it is, is any number. Parts of a large tensor are filled on libtorch's threads.
///
/// ```
/// use ferrotune_kernels::{Error, filled_tensor, tch::Kind};
/// let file = [1.0f32, 2.0].map(f32::to_ne_bytes).concat();
/// let tensor = filled_tensor(&[2, 1], Kind::Float, |first, bytes| {
///     bytes.copy_from_slice(&file[first..first + bytes.len()]);
///     Ok::<(), Error>(())
/// })?;
/// assert_eq!(Vec::<f32>::try_from(tensor.reshape([-1]))?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of `fill`; [`Error::Kind`] if `kind` is not one of floating-point numbers; [`Error::Torch`] if there is no memory.
pub fn filled_tensor<E: From<Error> + Send>(
    shape: &[i64],
    kind: Kind,
    fill: impl Fn(usize, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<Tensor, E> {
    if !matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) {
        let expected = "one of floating-point numbers";
        return Err(Error::Kind { function: "filled_tensor", found: kind, expected }.into());
    }
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu)).map_err(Error::from)?;
    let bytes = tensor.numel() * kind.elt_size_in_bytes();
    if bytes > 0 {
        // SAFETY: the tensor is new and dense, so these are its bytes and nobody else has a handle on them; they come from an allocator
        // that Rust cannot look into, and any bits are a number.
        let bytes = unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), bytes) };
        in_parts(bytes, PART, |index, part| fill(index * PART, part))?;
    }
    Ok(tensor)
}

/// Runs `body` for each part of `all`, of `length` elements, on libtorch's threads, with the error of the first one that failed. A thread
/// whose part failed takes no other.
pub(crate) fn in_parts<T: Send, E: Send>(
    all: &mut [T],
    length: usize,
    body: impl Fn(usize, &mut [T]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let count = all.len().div_ceil(length);
    let parts = Mutex::new(all.chunks_mut(length).enumerate());
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    parallel_for(count, 1, |own| {
        for _ in own {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, part)) = next else { return };
            if let Err(error) = body(index, part) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                    *failed = Some((index, error));
                }
                return;
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_lie_row_by_row_and_errors_come_back() {
        let numbers: [f32; 6] = [0.5, -1.0, 2.0, 3.0, 4.0, 5.0];
        let bytes = numbers.map(f32::to_ne_bytes).concat();
        let fill = |_: usize, target: &mut [u8]| -> Result<(), Error> {
            target.copy_from_slice(&bytes);
            Ok(())
        };
        let fail = |_: usize, _: &mut [u8]| Err(Error::Dropout(2.0));
        let filled = filled_tensor(&[2, 3], Kind::Float, fill).unwrap();
        assert_eq!(filled, Tensor::from_slice(&numbers).reshape([2, 3]));
        assert_eq!(filled_tensor(&[0, 3], Kind::BFloat16, fail).unwrap().size(), [0, 3]);
        assert!(matches!(filled_tensor(&[1], Kind::Float, fail), Err(Error::Dropout(_))));
        let error = filled_tensor(&[1], Kind::Bool, fill).unwrap_err();
        assert!(error.to_string().contains("Bool"), "{error}");
    }

    #[test]
    fn a_large_tensor_is_filled_in_parts_and_the_first_error_counts() {
        let count = 2 * PART + 12;
        let place = |byte: usize| (byte / 4) as u32;
        let fill = |first: usize, bytes: &mut [u8]| -> Result<(), Error> {
            for (index, number) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *number = (place(first + 4 * index) as f32).to_ne_bytes();
            }
            Ok(())
        };
        let shape = [(count / 4) as i64];
        let expected = Tensor::arange(shape[0], (Kind::Float, Device::Cpu));
        assert_eq!(filled_tensor(&shape, Kind::Float, fill).unwrap(), expected);
        let fail =
            |first: usize, _: &mut [u8]| -> Result<(), Error> { Err(Error::Dropout(2.0 + first as f64)) };
        assert!(matches!(filled_tensor(&shape, Kind::Float, fail), Err(Error::Dropout(2.0))));
    }
}
