//! A tensor of a safetensors file, and how its numbers are read.

use crate::{
    error::{Error, Result},
    regular_file::SharedFile,
};
use ferrotune_kernels::filled_tensor;
use safetensors::Dtype;
use std::{path::PathBuf, sync::Arc};
use tch::{Kind, Tensor};

/// Bytes that are read at a time.
pub(super) const BUFFER: usize = 256 << 10;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) file: Arc<SharedFile>,
    pub(super) start: u64,
    pub(super) bytes: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Its shape, as libtorch has it.
    pub(super) fn size(&self) -> Vec<i64> {
        self.shape.iter().map(|&size| size as i64).collect()
    }

    /// All of it, in the kind in which it is stored.
    pub(super) fn tensor(&self, name: &str, stored: Kind) -> Result<Tensor> {
        filled_tensor(&self.size(), stored, |first, bytes| self.read_numbers(name, first, bytes))
    }

    pub(super) fn demand_finite(&self, name: &str, tensor: &Tensor) -> Result<()> {
        // Either NaN or infinity spoils the sum, which is far cheaper than a look at each number.
        let sum = tensor.f_sum(Kind::Float)?.f_double_value(&[])?;
        if sum.is_finite() || tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(());
        }
        Err(self.not_finite(name))
    }

    fn not_finite(&self, name: &str) -> Error {
        Error::TensorNotFinite { path: self.path.clone(), tensor: name.to_owned() }
    }

    /// Writes its numbers from byte `first` on in the machine's order, if all of them are finite.
    ///
    /// Many numbers go through a buffer that stays in a core's cache: into memory that nobody has touched yet the system reads slowly.
    pub(super) fn read_numbers(&self, name: &str, first: usize, numbers: &mut [u8]) -> Result<()> {
        let read = |place: usize, bytes: &mut [u8]| {
            let place = self.start + place as u64;
            self.file.read_at(place, bytes).map_err(Error::io("read", &self.path))?;
            let are_finite = match self.dtype {
                Dtype::BF16 => are_finite_halves(bytes, 0x7f80),
                Dtype::F16 => are_finite_halves(bytes, 0x7c00),
                _ => are_finite(bytes),
            };
            if are_finite { Ok(()) } else { Err(self.not_finite(name)) }
        };
        if numbers.len() <= BUFFER {
            return read(first, numbers);
        }
        let mut buffer = vec![0; BUFFER];
        for (index, part) in numbers.chunks_mut(BUFFER).enumerate() {
            let buffer = &mut buffer[..part.len()];
            read(first + index * BUFFER, buffer)?;
            part.copy_from_slice(buffer);
        }
        Ok(())
    }
}

/// Whether there are finite numbers of `stored` that are infinite in `kind`.
pub(super) fn narrows(stored: Kind, kind: Kind) -> bool {
    match kind {
        Kind::Half => stored != Kind::Half,
        Kind::BFloat16 => stored == Kind::Float,
        _ => false,
    }
}

/// Puts numbers of f32 into the machine's order; whether there is neither NaN nor infinity among them, whose exponents are all ones.
fn are_finite(numbers: &mut [u8]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut found = 0;
    for number in numbers.as_chunks_mut::<4>().0 {
        let bits = u32::from_le_bytes(*number);
        found |= u32::from(bits & EXPONENT == EXPONENT);
        *number = bits.to_ne_bytes();
    }
    found == 0
}

/// The same of numbers of 16 bits, of which those of `exponent` are the exponent.
fn are_finite_halves(numbers: &mut [u8], exponent: u16) -> bool {
    let mut found = 0;
    for number in numbers.as_chunks_mut::<2>().0 {
        let bits = u16::from_le_bytes(*number);
        found |= u16::from(bits & exponent == exponent);
        *number = bits.to_ne_bytes();
    }
    found == 0
}
