//! How the numbers of a frozen weight are kept.

use crate::{
    cpu::{Compact, is_strided, reads_as_it_is, reads_bf16},
    error::{Error, Result, check_shape},
    filled_tensor::filled_tensor,
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tch::{Device, Kind, Tensor};

/// Weight `W` of a frozen linear map, `[out_features, in_features]`.
///
/// Every product with the base model goes through this type. It never has a gradient and keeps nothing for backward, so how its
/// numbers are kept is its own affair: as the tensor that was given, or in the fewest bits that hold them exactly, where they came from
/// bf16 or from blocks of 4 or 8 bits ([`FrozenWeight::in_fewest_bits`]). Beside a tensor of f32 that other form is kept from the first
/// product of few rows on (a step of generation): such a product takes the time to read the weight.
#[derive(Debug)]
pub struct FrozenWeight {
    pub(super) numbers: Numbers,
    out_features: i64,
    in_features: i64,
    /// In which products are computed.
    kind: Kind,
    device: Device,
    /// The same weight in the last other kind that was asked for.
    in_other_kind: Arc<Mutex<Option<Tensor>>>,
}

/// How the numbers of a weight are kept.
#[derive(Debug)]
pub(super) enum Numbers {
    /// In the kind of products, or in bf16; and in f32 for products of few rows in fewer bits, once there was one.
    Dense(Tensor, Arc<OnceLock<Option<Compact>>>),
    Compact(Arc<Compact>),
}

impl FrozenWeight {
    /// Freezes a weight of shape `[out_features, in_features]`; the tensor is shared, not copied.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) unless it has two dimensions.
    pub fn new(weight: &Tensor) -> Result<Self> {
        check_shape("FrozenWeight::new", "weight", weight, &[-1, -1])?;
        Ok(Self::of(weight.f_detach()?))
    }

    /// Several weights on the same input, stacked by rows into one, so that one product serves them all.
    ///
    /// Rows of one tensor that follow each other are stacked already, and are shared; others are copied.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if their `in_features` differ.
    pub fn stacked(weights: &[&Tensor]) -> Result<Self> {
        if let [only] = weights {
            return Self::new(only);
        }
        for weight in weights {
            let in_features = weights[0].size().get(1).copied().unwrap_or(-1);
            check_shape("FrozenWeight::stacked", "weight", weight, &[-1, in_features])?;
        }
        let stacked = match rows_of_one(weights) {
            Some(whole) => whole,
            None => Tensor::f_cat(weights, 0)?,
        };
        Ok(Self::of(stacked.f_detach()?))
    }

    /// Freezes a weight of shape `[out_features, in_features]` for products in `kind`, and keeps its numbers in the fewest bits.
    ///
    /// For products in f32 on the CPU a weight in bf16 stays as it is, and numbers of f32 that came from bf16 or from blocks of 4 or 8 bits
    /// are kept in as many: a half to a fifth of the memory. Each number of f32 can be had again from them, and results are those of the
    /// weight in f32, bit by bit. Any other weight is converted to `kind`, and so is one for which libtorch's products are the best that this
    /// machine has. A tensor that stays as it is, is shared.
    ///
    /// ```
    /// use ferrotune_kernels::{FrozenWeight, tch::{Device, Kind, Tensor}};
    /// let stored = Tensor::ones([4, 3], (Kind::BFloat16, Device::Cpu));
    /// let weight = FrozenWeight::in_fewest_bits(&stored, Kind::Float)?;
    /// let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    /// assert_eq!(weight.forward_product(&x)?, Tensor::ones([2, 4], (Kind::Float, Device::Cpu)) * 3);
    /// # Ok::<(), ferrotune_kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) unless it has two dimensions; [`Error::Torch`](crate::Error::Torch) if there is no memory.
    pub fn in_fewest_bits(weight: &Tensor, kind: Kind) -> Result<Self> {
        check_shape("FrozenWeight::in_fewest_bits", "weight", weight, &[-1, -1])?;
        let weight = weight.f_detach()?;
        let on_cpu = weight.device() == Device::Cpu;
        if kind != Kind::Float || !on_cpu {
            return Ok(Self::of(weight.f_to_kind(kind)?));
        }
        if weight.kind() == Kind::BFloat16 && Self::keeps_bf16() {
            return Ok(Self { kind, ..Self::of(weight) });
        }
        let weight = weight.f_to_kind(kind)?;
        let compact = if reads_bf16() { Compact::of(&weight) } else { None };
        Ok(match compact.filter(|compact| reads_as_it_is(&compact.factor())) {
            Some(compact) => Self::of_compact(compact, weight.size2()?),
            None => Self::of(weight),
        })
    }

    /// The same of a weight on the CPU whose f32 numbers come from elsewhere, from a file say: it never takes the memory of all of them,
    /// where fewer bits hold them.
    ///
    /// `fill` is handed the place of some numbers, as that of their first byte, and their memory, as for [`filled_tensor`]. It is called
    /// on libtorch's threads, and may be asked for the same numbers again.
    ///
    /// ```
    /// use ferrotune_kernels::{Error, FrozenWeight};
    /// let file = [1.0f32; 12].map(f32::to_ne_bytes).concat();
    /// let weight = FrozenWeight::filled([4, 3], |first, bytes| {
    ///     bytes.copy_from_slice(&file[first..first + bytes.len()]);
    ///     Ok::<(), Error>(())
    /// })?;
    /// assert_eq!(weight.out_features(), 4);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Shape`] for a negative size; [`Error::Torch`] if there is no memory.
    pub fn filled<E: From<Error> + Send>(
        shape: [i64; 2],
        fill: impl Fn(usize, &mut [u8]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Self, E> {
        let [rows, columns] = shape.map(usize::try_from);
        let (Ok(rows), Ok(columns)) = (rows, columns) else {
            let (function, what) = ("FrozenWeight::filled", "weight".to_owned());
            let expected = "two numbers that are not negative".to_owned();
            return Err(Error::Shape { function, what, found: shape.to_vec(), expected }.into());
        };
        // What the first row is, the others are. As columns it is more numbers to judge by than its first.
        let row = if reads_bf16() { Compact::filled([rows.min(1), columns], &fill)? } else { None };
        let compact = match row.is_some_and(|row| reads_as_it_is(&row.factor().turned())) {
            true => Compact::filled([rows, columns], &fill)?,
            false => None,
        };
        let compact = compact.filter(|compact| reads_as_it_is(&compact.factor()));
        match compact {
            Some(compact) => Ok(Self::of_compact(compact, (shape[0], shape[1]))),
            None => Ok(Self::of(filled_tensor(&shape, Kind::Float, fill)?)),
        }
    }

    fn of_compact(compact: Compact, (out_features, in_features): (i64, i64)) -> Self {
        Self {
            numbers: Numbers::Compact(Arc::new(compact)),
            out_features,
            in_features,
            kind: Kind::Float,
            device: Device::Cpu,
            in_other_kind: Arc::default(),
        }
    }

    /// Whether a weight in bf16 on the CPU stays so for products in f32 on this machine.
    pub fn keeps_bf16() -> bool {
        reads_bf16()
    }

    fn of(weight: Tensor) -> Self {
        Self {
            out_features: weight.size()[0],
            in_features: weight.size()[1],
            kind: weight.kind(),
            device: weight.device(),
            numbers: Numbers::Dense(weight, Arc::default()),
            in_other_kind: Arc::default(),
        }
    }

    /// Another handle on the same numbers.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let numbers = match &self.numbers {
            Numbers::Dense(weight, compact) => Numbers::Dense(weight.shallow_clone(), Arc::clone(compact)),
            Numbers::Compact(compact) => Numbers::Compact(Arc::clone(compact)),
        };
        Self { numbers, in_other_kind: Arc::clone(&self.in_other_kind), ..*self }
    }

    /// The weight rounded to `kind`, for products in that kind.
    ///
    /// Since it never changes it is rounded once, and kept beside the weight until another kind is asked for; in its own kind, and in
    /// that in which it is stored, it is the weight itself.
    ///
    /// ```
    /// use ferrotune_kernels::{FrozenWeight, tch::{Device, Kind, Tensor}};
    /// let weight = FrozenWeight::new(&Tensor::ones([4, 3], (Kind::Float, Device::Cpu)))?;
    /// let half = weight.in_kind(Kind::BFloat16)?;
    /// let x = Tensor::ones([2, 3], (Kind::BFloat16, Device::Cpu));
    /// assert_eq!(half.forward_product(&x)?.kind(), Kind::BFloat16);
    /// # Ok::<(), ferrotune_kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, out of memory included.
    pub fn in_kind(&self, kind: Kind) -> Result<Self> {
        if kind == self.kind {
            return Ok(self.shallow_clone());
        }
        if let Numbers::Dense(weight, _) = &self.numbers
            && weight.kind() == kind
        {
            return Ok(Self::of(weight.shallow_clone()));
        }
        let mut kept = self.in_other_kind.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = kept.as_ref().filter(|weight| weight.kind() == kind) {
            return Ok(Self::of(weight.shallow_clone()));
        }
        let weight = self.dense()?.f_to_kind(kind)?;
        *kept = Some(weight.shallow_clone());
        Ok(Self::of(weight))
    }

    /// Number of rows.
    pub fn out_features(&self) -> i64 {
        self.out_features
    }

    /// Number of columns.
    pub fn in_features(&self) -> i64 {
        self.in_features
    }

    /// Bytes that the form in fewer bits beside a dense weight will take once it is made; 0 if there is none, or it is there already.
    ///
    /// Judged by the first row: weights are of one kind throughout.
    pub fn compact_bytes(&self) -> usize {
        match &self.numbers {
            Numbers::Dense(weight, compact) if compact.get().is_none() && self.kind == Kind::Float => {
                let row = weight.f_narrow(0, 0, 1).ok();
                let compact = row.and_then(|row| Compact::of(&row));
                compact.map_or(0, |compact| compact.size()) * self.out_features as usize
            }
            _ => 0,
        }
    }

    /// Bytes that its numbers take, as they are kept, without a form beside them.
    pub fn stored_bytes(&self) -> usize {
        match &self.numbers {
            Numbers::Dense(weight, _) => weight.numel() * weight.kind().elt_size_in_bytes(),
            Numbers::Compact(compact) => compact.size(),
        }
    }

    /// Bytes that the weight rounded to `kind` will take beside these numbers; 0 if they are in that kind.
    pub fn rounded_bytes(&self, kind: Kind) -> usize {
        match &self.numbers {
            Numbers::Dense(weight, _) if kind == weight.kind() => 0,
            _ if kind == self.kind => 0,
            _ => (self.out_features * self.in_features) as usize * kind.elt_size_in_bytes(),
        }
    }

    /// The kind in which products are computed.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the numbers are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The dense weight of rows `start..start + rows`, in the kind of products.
    ///
    /// # Errors
    /// [`Error::RowOutOfRange`](crate::Error::RowOutOfRange) if the rows do not exist; [`Error::Torch`](crate::Error::Torch) if there is
    /// no memory.
    pub fn dense_rows(&self, start: i64, rows: i64) -> Result<Tensor> {
        let end = start.saturating_add(rows);
        if start < 0 || rows < 0 || end > self.out_features {
            let row = if start < 0 { start } else { end - 1 };
            return Err(Error::RowOutOfRange { row, rows: self.out_features });
        }
        match &self.numbers {
            Numbers::Dense(weight, _) => Ok(weight.f_narrow(0, start, rows)?.f_to_kind(self.kind)?),
            Numbers::Compact(compact) => compact.rows(&Vec::from_iter(start..end)),
        }
    }

    /// Some rows, in the kind of products: the embeddings of tokens, where the weight is their matrix.
    ///
    /// # Shapes
    /// - returns `[indices, in_features]`
    ///
    /// # Errors
    /// [`Error::RowOutOfRange`](crate::Error::RowOutOfRange) if a row does not exist; [`Error::Torch`](crate::Error::Torch) if there is
    /// no memory.
    pub fn select_rows(&self, indices: &[i64]) -> Result<Tensor> {
        if let Some(&row) = indices.iter().find(|row| !(0..self.out_features).contains(*row)) {
            return Err(Error::RowOutOfRange { row, rows: self.out_features });
        }
        match &self.numbers {
            Numbers::Dense(weight, _) => {
                let indices = Tensor::f_from_slice(indices)?.f_to_device(self.device)?;
                Ok(weight.f_index_select(0, &indices)?.f_to_kind(self.kind)?)
            }
            Numbers::Compact(compact) => compact.rows(indices),
        }
    }

    /// All of it, in the kind of products and in memory of its own.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if there is no memory.
    pub fn dense_copy(&self) -> Result<Tensor> {
        match &self.numbers {
            Numbers::Dense(weight, _) if weight.kind() == self.kind => Ok(weight.f_detach_copy()?),
            _ => self.dense(),
        }
    }

    /// All of it in the kind of products; a copy where the numbers are kept otherwise.
    pub(super) fn dense(&self) -> Result<Tensor> {
        match &self.numbers {
            Numbers::Dense(weight, _) => Ok(weight.f_to_kind(self.kind)?),
            Numbers::Compact(compact) => compact.rows(&Vec::from_iter(0..self.out_features)),
        }
    }
}

/// The whole of which these are the rows, one after the other, if there is one.
fn rows_of_one(weights: &[&Tensor]) -> Option<Tensor> {
    let first = weights.first().filter(|_| weights.iter().all(|weight| is_strided(weight)))?;
    let (mut next, mut rows) = (first.data_ptr().addr(), 0);
    for weight in weights {
        let alike = weight.kind() == first.kind() && weight.device() == first.device();
        if !alike || !weight.is_contiguous() || weight.data_ptr().addr() != next {
            return None;
        }
        next += weight.numel() * weight.kind().elt_size_in_bytes();
        rows += weight.size()[0];
    }
    let columns = first.size()[1];
    // Tensors that are neighbours by chance are refused by libtorch: the first one's memory ends before that of the others.
    first.f_as_strided([rows, columns], [columns, 1], None).ok()
}
