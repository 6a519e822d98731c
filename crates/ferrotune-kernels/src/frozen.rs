//! A weight that never changes.

use crate::{
    cpu::{
        Compact, FEW_ROWS, Factor, Matrix, Term, add_products, reads_as_it_is, reads_bf16, sum_of_products,
    },
    error::{Error, Result, check_shape},
    filled_rows::{filled_up, first_rows},
    filled_tensor::filled_tensor,
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
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
    numbers: Numbers,
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
enum Numbers {
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
    fn dense(&self) -> Result<Tensor> {
        match &self.numbers {
            Numbers::Dense(weight, _) => Ok(weight.f_to_kind(self.kind)?),
            Numbers::Compact(compact) => compact.rows(&Vec::from_iter(0..self.out_features)),
        }
    }

    /// Both factors of a product with `left`; `None` if it is not in f32 on the CPU.
    fn as_factor_of<'a>(&'a self, left: &'a Tensor) -> Option<(Matrix<'a>, Factor<'a>)> {
        let left = Matrix::of(left).filter(|_| self.kind == Kind::Float)?;
        let factor = match &self.numbers {
            Numbers::Compact(compact) => compact.factor(),
            Numbers::Dense(weight, compact) => {
                let few = left.rows() <= FEW_ROWS && weight.kind() == Kind::Float;
                let compact = few.then(|| compact.get_or_init(|| Compact::of(weight)).as_ref()).flatten();
                compact.map(Compact::factor).or_else(|| Factor::of(weight))?
            }
        };
        Some((left, factor))
    }

    /// `x W^T`: `[tokens, in_features]` to `[tokens, out_features]`, outside the graph.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails.
    pub fn forward_product(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_product_with(x, &[])
    }

    /// `grad W`: `[tokens, out_features]` to `[tokens, in_features]`, the gradient of the input, outside the graph.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails.
    pub fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        self.input_gradient_with(grad, &[])
    }

    /// `x W^T`, with `projected_i B_i^T` added to the columns of each update, in one pass over the result.
    pub(crate) fn forward_product_with(&self, x: &Tensor, updates: &[Update]) -> Result<Tensor> {
        fn of<'a>(update: &Update<'a>) -> Option<Term<'a>> {
            let (left, right) = (Matrix::of(update.projected)?, Matrix::of(update.factor)?.turned());
            Some(Term { first_column: usize::try_from(update.first_column).ok()?, ..Term::new(left, right) })
        }
        let base = self.as_factor_of(x).map(|(x, weight)| Term::new(x, weight.turned()));
        if let Some(y) = sum(base, updates.iter().map(of))? {
            return Ok(y);
        }
        let rows = x.size()[0];
        let mut y = first_rows(filled_up(x)?.f_matmul(&self.dense()?.f_tr()?)?, rows)?;
        if add_all(&mut y, updates.iter().map(of)) {
            return Ok(y);
        }
        for update in updates {
            let mut columns = y.f_narrow(1, update.first_column, update.factor.size()[0])?;
            add_product(&mut columns, update.projected, &update.factor.f_tr()?)?;
        }
        Ok(y)
    }

    /// `grad W`, with `projected_i A_i` added for each update (its first column is of no meaning), in one pass over the result.
    pub(crate) fn input_gradient_with(&self, grad: &Tensor, updates: &[Update]) -> Result<Tensor> {
        fn of<'a>(update: &Update<'a>) -> Option<Term<'a>> {
            Some(Term::new(Matrix::of(update.projected)?, Matrix::of(update.factor)?))
        }
        let base = self.as_factor_of(grad).map(|(grad, weight)| Term::new(grad, weight));
        if let Some(grad_x) = sum(base, updates.iter().map(of))? {
            return Ok(grad_x);
        }
        let rows = grad.size()[0];
        let mut grad_x = first_rows(filled_up(grad)?.f_matmul(&self.dense()?)?, rows)?;
        if add_all(&mut grad_x, updates.iter().map(of)) {
            return Ok(grad_x);
        }
        for update in updates {
            add_product(&mut grad_x, update.projected, update.factor)?;
        }
        Ok(grad_x)
    }
}

/// The whole of which these are the rows, one after the other, if there is one.
fn rows_of_one(weights: &[&Tensor]) -> Option<Tensor> {
    let first = weights.first()?;
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

fn sum<'a>(
    base: Option<Term<'a>>,
    updates: impl Iterator<Item = Option<Term<'a>>>,
) -> Result<Option<Tensor>> {
    match std::iter::once(base).chain(updates).collect::<Option<Vec<_>>>() {
        Some(terms) => sum_of_products(&terms),
        None => Ok(None),
    }
}

/// Adds all terms to a new tensor in one pass, or none of them.
fn add_all<'a>(result: &mut Tensor, updates: impl Iterator<Item = Option<Term<'a>>>) -> bool {
    updates.collect::<Option<Vec<_>>>().is_some_and(|terms| add_products(result, &terms))
}

/// A product of few columns that is added to that with the frozen weight.
pub(crate) struct Update<'a> {
    /// `[tokens, rank]`
    pub(crate) projected: &'a Tensor,
    /// `B_i`, `[out_features_i, rank]`, in forward; `A_i`, `[rank, in_features]`, in backward.
    pub(crate) factor: &'a Tensor,
    /// First of the columns of the result that a forward update acts on.
    pub(crate) first_column: i64,
}

/// `target += left right`, formed in the kind of `left` and rounded once where the kinds differ.
fn add_product(target: &mut Tensor, left: &Tensor, right: &Tensor) -> Result<()> {
    if target.kind() == left.kind() {
        let _ = target.f_addmm_(left, right)?;
    } else {
        let sum = target.f_to_kind(left.kind())?.f_addmm_(left, right)?;
        target.f_copy_(&sum)?;
    }
    Ok(())
}

/// `y = x W^T + bias`, differentiable in `x` alone.
///
/// # Shapes
/// - `x`: `[..., in_features]`; `bias`: `[out_features]`; returns `[..., out_features]`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `x` or `bias` do not fit the weight.
pub fn frozen_linear(x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let (flat, shape) = flatten_rows("frozen_linear", x, weight.in_features(), weight.out_features())?;
    let bias = bias.map(|bias| bias.f_detach()).transpose()?;
    if let Some(bias) = &bias {
        check_shape("frozen_linear", "bias", bias, &[weight.out_features()])?;
    }
    let y = apply_one(FrozenLinear { weight: weight.shallow_clone(), bias, rows: 0 }, &[Some(&flat)])?;
    in_shape(first_rows(y, flat.size()[0])?, &shape)
}

/// The result of a layer in its shape. A view of the same shape would be one more node for backward, and could not be changed in place
/// without another.
pub(crate) fn in_shape(y: Tensor, shape: &[i64]) -> Result<Tensor> {
    if y.size() == shape { Ok(y) } else { Ok(y.f_view(shape)?) }
}

/// `x` as `[rows, columns]`, and the shape of a result with `out_features`.
pub(crate) fn flatten_rows(
    function: &'static str,
    x: &Tensor,
    columns: i64,
    out_features: i64,
) -> Result<(Tensor, Vec<i64>)> {
    let mut shape = x.size();
    let rows: i64 = shape.iter().rev().skip(1).product();
    if shape.last() != Some(&columns) {
        return Err(crate::Error::Shape {
            function,
            what: "x".to_owned(),
            found: shape,
            expected: format!("[..., in_features = {columns}]"),
        });
    }
    let flat = if shape.len() == 2 { x.shallow_clone() } else { x.f_reshape([rows, columns])? };
    if let Some(last) = shape.last_mut() {
        *last = out_features;
    }
    Ok((flat, shape))
}

struct FrozenLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
    /// Of its input.
    rows: i64,
}

impl Function for FrozenLinear {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        _: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let x = inputs[0].ok_or("x is required")?;
        // Rows that are filled up stay: a view made here could not be changed in place by who gets it.
        let mut y = self.weight.forward_product(&filled_up(x)?)?;
        if let Some(bias) = self.bias.take() {
            y = y.f_add_(&bias)?;
        }
        self.rows = x.size()[0];
        Ok(vec![y])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        _: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let of = |grad| first_rows(self.weight.input_gradient(grad)?, self.rows);
        Ok(vec![grads[0].as_ref().map(of).transpose()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_tensor_are_shared_and_others_are_copied() {
        let whole = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([8, 3]);
        let stacked = |parts: &[&Tensor]| FrozenWeight::stacked(parts).unwrap().dense_rows(0, 5).unwrap();
        let rows = |start, count| whole.narrow(0, start, count);
        let shared = stacked(&[&rows(2, 3), &rows(5, 2)]);
        assert_eq!(shared, rows(2, 5));
        assert_eq!(shared.data_ptr(), rows(2, 5).data_ptr());
        // A gap, another order, another tensor, columns that lie apart.
        let elsewhere = rows(5, 2).copy();
        for (first, second) in [(rows(1, 3), rows(5, 2)), (rows(5, 3), rows(3, 2)), (rows(2, 3), elsewhere)] {
            let copied = stacked(&[&first, &second]);
            assert_eq!(copied, Tensor::cat(&[&first, &second], 0));
            assert_ne!(copied.data_ptr(), first.data_ptr());
        }
        let turned = whole.tr();
        assert_eq!(stacked(&[&turned, &turned]), Tensor::cat(&[&turned, &turned], 0).narrow(0, 0, 5));
    }

    /// Weights whose numbers need few bits, and in how many they are kept; the last needs all.
    fn weights() -> [(Tensor, usize); 4] {
        let codes = |low, high| Tensor::randint_low(low, high, [70, 64], (Kind::Float, Device::Cpu));
        let noise = crate::cpu::noise(3, &[70, 64]);
        let whole = 70 * 64;
        [
            (codes(0, 16) * 0.375 - 1.5, whole / 32 * 24),
            (codes(-127, 128) * 0.0625, whole / 32 * 36),
            (noise.to_kind(Kind::BFloat16).to_kind(Kind::Float), whole * 2),
            (noise, whole * 4),
        ]
    }

    /// The weight as it is read from somewhere, with the error that reading gives.
    fn filled(weight: &Tensor, error: Option<usize>) -> Result<FrozenWeight> {
        let numbers: Vec<f32> = weight.reshape([-1]).try_into().unwrap();
        let bytes = Vec::from_iter(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        FrozenWeight::filled([70, 64], |first, target| {
            target.copy_from_slice(&bytes[first..first + target.len()]);
            let fails = error.is_some_and(|place| (first..first + target.len()).contains(&place));
            if fails { Err(Error::Dropout(2.0)) } else { Ok(()) }
        })
    }

    #[test]
    fn a_weight_in_few_bits_gives_the_numbers_and_the_products_of_one_in_f32() {
        for (weight, bytes) in weights() {
            let dense = FrozenWeight::new(&weight).unwrap();
            let brain = weight.to_kind(Kind::BFloat16);
            let mut kept = vec![
                FrozenWeight::in_fewest_bits(&weight, Kind::Float).unwrap(),
                filled(&weight, None).unwrap(),
            ];
            // Where libtorch's products are the best, all bits are kept.
            let few = Compact::of(&weight).is_some_and(|compact| reads_as_it_is(&compact.factor()));
            for kept in &kept {
                assert_eq!(kept.stored_bytes(), if few { bytes } else { 70 * 64 * 4 });
                assert_eq!(kept.rounded_bytes(Kind::BFloat16), 70 * 64 * 2);
                assert!(!few || kept.compact_bytes() == 0);
            }
            if brain.to_kind(Kind::Float) == weight {
                kept.push(FrozenWeight::in_fewest_bits(&brain, Kind::Float).unwrap());
                if FrozenWeight::keeps_bf16() {
                    assert_eq!(kept[2].rounded_bytes(Kind::BFloat16), 0);
                    assert_eq!(
                        kept[2].in_kind(Kind::BFloat16).unwrap().dense().unwrap().data_ptr(),
                        brain.data_ptr()
                    );
                }
            }
            for kept in kept {
                assert_eq!(kept.kind(), Kind::Float);
                assert_eq!(kept.dense().unwrap(), weight);
                assert_eq!(kept.dense_rows(3, 5).unwrap(), weight.narrow(0, 3, 5));
                assert_eq!(
                    kept.select_rows(&[69, 0, 69]).unwrap(),
                    weight.index_select(0, &Tensor::from_slice(&[69i64, 0, 69]))
                );
                assert_eq!(kept.in_kind(Kind::Half).unwrap().dense().unwrap(), weight.to_kind(Kind::Half));
                // Few rows, which copy nothing, and many.
                for rows in [0, 1, 31, 50, 200] {
                    let (x, grad) = (crate::cpu::noise(5, &[rows, 64]), crate::cpu::noise(6, &[rows, 70]));
                    assert_eq!(
                        kept.forward_product(&x).unwrap(),
                        dense.forward_product(&x).unwrap(),
                        "{rows}"
                    );
                    assert_eq!(
                        kept.input_gradient(&grad).unwrap(),
                        dense.input_gradient(&grad).unwrap(),
                        "{rows}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_number_that_is_none_is_kept() {
        for (weight, _) in weights() {
            for place in [0, 5, 31] {
                let weight = weight.copy();
                let _ = weight.get(0).get(place).fill_(f64::NAN);
                for kept in [
                    FrozenWeight::in_fewest_bits(&weight, Kind::Float).unwrap(),
                    filled(&weight, None).unwrap(),
                ] {
                    let found: Vec<bool> = kept.dense().unwrap().isnan().reshape([-1]).try_into().unwrap();
                    assert_eq!(found.iter().position(|is_nan| *is_nan), Some(place as usize));
                }
            }
        }
    }

    #[test]
    fn errors_of_reading_come_back_and_a_late_number_of_all_bits_is_not_lost() {
        for (weight, _) in weights() {
            for place in [0, 4, 69 * 256 + 252] {
                assert!(matches!(filled(&weight, Some(place)), Err(Error::Dropout(_))), "{place}");
            }
            let _ = weight.get(69).get(63).fill_(0.123_456_79);
            let kept = filled(&weight, None).unwrap();
            assert_eq!(kept.dense().unwrap(), weight);
            assert_eq!((kept.dense_copy().unwrap(), kept.stored_bytes()), (weight, 70 * 64 * 4));
        }
    }
}
