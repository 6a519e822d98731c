//! Matrices of a checkpoint that are kept as one.

use super::entry::{Entry, narrows};
use crate::error::Result;
use ferrotune_kernels::{FrozenWeight, filled_tensor};
use tch::{Kind, Tensor};

/// Matrices of one width, to be read as one.
pub(crate) struct Stack<'a> {
    pub(super) parts: Vec<(&'a str, (&'a Entry, Kind))>,
    pub(crate) shape: [i64; 2],
}

impl Stack<'_> {
    /// The kind in which all parts are stored, if it is one.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let mut kinds = self.parts.iter().map(|(_, (_, kind))| *kind);
        let first = kinds.next()?;
        kinds.all(|kind| kind == first).then_some(first)
    }

    /// Writes the numbers from byte `first` on, of parts in one kind.
    ///
    /// # Errors
    /// [`Error::TensorNotFinite`], and [`Error::Io`] if the file was cut since it was opened.
    pub(crate) fn read_numbers(&self, mut first: usize, mut bytes: &mut [u8]) -> Result<()> {
        for (name, (entry, _)) in &self.parts {
            let here = entry.bytes.saturating_sub(first).min(bytes.len());
            let (target, rest) = bytes.split_at_mut(here);
            entry.read_numbers(name, first, target)?;
            (first, bytes) = ((first + here).saturating_sub(entry.bytes), rest);
        }
        Ok(())
    }

    /// Whether a part is held in another kind for a while, if products are in f32 on the CPU.
    pub(crate) fn converts_to_f32(&self) -> bool {
        match self.kind() {
            Some(Kind::Float) => false,
            Some(Kind::BFloat16) => !FrozenWeight::keeps_bf16(),
            _ => true,
        }
    }

    /// Bytes of memory of a row for products in f32 on the CPU, in the fewest bits: judged by two rows of each part, since weights are
    /// of one kind throughout, and not by long ones as a whole.
    ///
    /// # Errors
    /// [`Error::TensorNotFinite`] and [`Error::Io`].
    pub(crate) fn fewest_row_bytes(&self) -> Result<u64> {
        const COLUMNS: usize = 4096;
        let columns = self.shape[1] as usize;
        let all = (columns as u64).saturating_mul(size_of::<f32>() as u64);
        match self.kind() {
            Some(Kind::BFloat16) if !self.converts_to_f32() => return Ok(all / 2),
            Some(Kind::Float) => {}
            _ => return Ok(all),
        }
        let judged = columns.min(COLUMNS);
        let mut found = None;
        for (name, (entry, _)) in self.parts.iter().filter(|(_, (entry, _))| entry.bytes > 0) {
            for row in [0, entry.shape[0] / 2] {
                let fill = |first: usize, bytes: &mut [u8]| {
                    entry.read_numbers(name, row * columns * size_of::<f32>() + first, bytes)
                };
                let bytes = FrozenWeight::filled([1, judged as i64], fill)?.stored_bytes() as u64;
                // What one form does not hold is dense.
                if *found.get_or_insert(bytes) != bytes {
                    return Ok(all);
                }
            }
        }
        Ok(found.map_or(all, |bytes| all.min(bytes.saturating_mul(columns as u64) / judged.max(1) as u64)))
    }

    /// All of it in `kind`.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn tensor(&self, kind: Kind) -> Result<Tensor> {
        let tensor = self.stored()?.f_to_kind(kind)?;
        let mut first = 0;
        for (name, (entry, stored)) in &self.parts {
            let rows = entry.shape[0] as i64;
            if narrows(*stored, kind) {
                entry.demand_finite(name, &tensor.f_narrow(0, first, rows)?)?;
            }
            first += rows;
        }
        Ok(tensor)
    }

    /// All of it, in the kind in which it is stored, or, if the parts differ, in one that holds all of them.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn stored(&self) -> Result<Tensor> {
        if let Some(kind) = self.kind() {
            return filled_tensor(&self.shape, kind, |first, bytes| self.read_numbers(first, bytes));
        }
        let parts = self.parts.iter().map(|(name, (entry, kind))| entry.tensor(name, *kind));
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{Checkpoint, tests::matrices},
        error::Error,
    };
    use safetensors::{Dtype, tensor::TensorView};
    use std::fs;

    #[test]
    fn matrices_are_stacked_in_order_whatever_their_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = |first: u8| Vec::from_iter((first..first + 6).map(f32::from));
        let full = |numbers: &[f32]| Vec::from_iter(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let brain = Vec::from_iter(numbers(6).iter().flat_map(|&n| half::bf16::from_f32(n).to_le_bytes()));
        let half = Vec::from_iter(numbers(12).iter().flat_map(|&n| half::f16::from_f32(n).to_le_bytes()));
        let mut spoiled = numbers(0);
        spoiled[5] = f32::NAN;
        let (first, spoiled) = (full(&numbers(0)), full(&spoiled));
        let view = |dtype, data| TensorView::new(dtype, vec![2, 3], data).unwrap();
        let tensors = [
            ("a", view(Dtype::F32, &first)),
            ("b", view(Dtype::BF16, &brain)),
            ("c", view(Dtype::F16, &half)),
            ("d", view(Dtype::F32, &spoiled)),
        ];
        let file = safetensors::serialize(tensors, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stacked = |names: &[&str]| {
            let parts = Vec::from_iter(names.iter().map(|name| ((*name).to_owned(), 2)));
            checkpoint.stack(&parts, 3)?.stored()
        };
        let counted = |count: i64| Tensor::arange(count, (Kind::Float, tch::Device::Cpu)).reshape([-1, 3]);
        assert_eq!(stacked(&["a", "a"]).unwrap().narrow(0, 2, 2), counted(6));
        assert_eq!(stacked(&["b"]).unwrap().kind(), Kind::BFloat16);
        assert_eq!(stacked(&["a", "b"]).unwrap(), counted(12));
        assert_eq!(stacked(&["a", "b", "c"]).unwrap(), counted(18));
        let error = stacked(&["a", "d"]).unwrap_err();
        assert!(matches!(error, Error::TensorNotFinite { tensor, .. } if tensor == "d"));
    }

    #[test]
    fn the_bytes_of_a_row_are_those_that_its_stack_will_take() {
        let nibbles = Vec::from_iter((0..192u16).map(|number| f32::from(number * 7 % 16) * 0.5 - 3.0));
        let bytes = Vec::from_iter((0..192u8).map(|number| f32::from(number) * 0.25));
        let noise = Vec::from_iter((0..192u16).map(|number| f32::from(number).sin()));
        let padded = [&[0.0; 64][..], &noise[64..]].concat();
        let (_folder, checkpoint) = matrices(&[
            ("nibbles", Dtype::F32, &nibbles),
            ("bytes", Dtype::F32, &bytes),
            ("noise", Dtype::F32, &noise),
            ("padded", Dtype::F32, &padded),
            ("brain", Dtype::BF16, &bytes),
        ]);
        for (names, fewest) in [
            (&["nibbles", "nibbles"][..], 48),
            (&["bytes"], 72),
            (&["nibbles", "bytes"], 256),
            (&["noise"], 256),
            (&["padded"], 256),
            (&["brain", "brain"], 128),
            (&["brain", "bytes"], 256),
        ] {
            let parts = Vec::from_iter(names.iter().map(|name| ((*name).to_owned(), 3)));
            let stack = checkpoint.stack(&parts, 64).unwrap();
            let found = stack.fewest_row_bytes().unwrap();
            let dense = !FrozenWeight::keeps_bf16();
            // Where libtorch's products are the best, forms of fewer bits may be dense, too.
            assert!(found == fewest || found == 256 && (dense || names == ["bytes"]), "{names:?} {found}");
            assert_eq!(
                stack.converts_to_f32(),
                names.contains(&"brain") && (dense || names.len() == 2 && names[0] != names[1])
            );
        }
    }
}
