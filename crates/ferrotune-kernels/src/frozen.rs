//! A weight that never changes.

use crate::{
    cpu::{Compact, FEW_ROWS, Matrix, Term, add_products, sum_of_products},
    error::{Result, check_shape},
    filled_rows::{filled_up, first_rows},
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tch::{Kind, Tensor};

/// Weight `W` of a frozen linear map, `[out_features, in_features]`.
///
/// Every product with the base model goes through this type. It never has a gradient and keeps nothing for backward, so how its
/// numbers are stored is its own affair. That is a dense tensor, and, from the first product of few rows on (a step of generation),
/// beside it the same f32 numbers in the fewest bits that hold them exactly, where the weight came from bf16 or from blocks of 4 or 8
/// bits: such a product takes the time to read the weight.
#[derive(Debug)]
pub struct FrozenWeight {
    weight: Tensor,
    compact: Arc<OnceLock<Option<Compact>>>,
    /// The same weight in the last other kind that was asked for.
    in_other_kind: Arc<Mutex<Option<Tensor>>>,
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

    fn of(weight: Tensor) -> Self {
        Self { weight, compact: Arc::default(), in_other_kind: Arc::default() }
    }

    /// Another handle on the same numbers.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            compact: Arc::clone(&self.compact),
            in_other_kind: Arc::clone(&self.in_other_kind),
        }
    }

    /// The weight rounded to `kind`, for products in that kind.
    ///
    /// Since it never changes it is rounded once, and kept beside the weight until another kind is asked for; in its own kind it is
    /// the weight itself.
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
        if kind == self.kind() {
            return Ok(self.shallow_clone());
        }
        let mut kept = self.in_other_kind.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = kept.as_ref().filter(|weight| weight.kind() == kind) {
            return Ok(Self::of(weight.shallow_clone()));
        }
        let weight = self.weight.f_to_kind(kind)?;
        *kept = Some(weight.shallow_clone());
        Ok(Self::of(weight))
    }

    /// Number of rows.
    pub fn out_features(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Number of columns.
    pub fn in_features(&self) -> i64 {
        self.weight.size()[1]
    }

    /// Bytes that the compact form beside the dense weight will take once it is made; 0 if there is none, or it is there already.
    ///
    /// Judged by the first row: weights are of one kind throughout.
    pub fn compact_bytes(&self) -> usize {
        let first = || self.weight.f_narrow(0, 0, 1).ok();
        match self.compact.get() {
            Some(_) => 0,
            None => {
                first().and_then(|row| Some(Compact::of(&Matrix::of(&row)?)?.size())).unwrap_or(0)
                    * self.out_features() as usize
            }
        }
    }

    /// The kind in which products are computed.
    pub fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// Where the numbers lie.
    pub fn device(&self) -> tch::Device {
        self.weight.device()
    }

    /// The dense weight of rows `start..start + rows`.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if the rows do not exist.
    pub fn dense_rows(&self, start: i64, rows: i64) -> Result<Tensor> {
        Ok(self.weight.f_narrow(0, start, rows)?)
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
        let base = Matrix::of(x).zip(Matrix::of(&self.weight)).map(|(x, weight)| {
            let few = x.rows() <= FEW_ROWS;
            let compact = few.then(|| self.compact.get_or_init(|| Compact::of(&weight)).as_ref()).flatten();
            Term { compact, ..Term::new(x, weight.turned()) }
        });
        if let Some(y) = sum(base, updates.iter().map(of))? {
            return Ok(y);
        }
        let rows = x.size()[0];
        let mut y = first_rows(filled_up(x)?.f_matmul(&self.weight.f_tr()?)?, rows)?;
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
        let base =
            Matrix::of(grad).zip(Matrix::of(&self.weight)).map(|(grad, weight)| Term::new(grad, weight));
        if let Some(grad_x) = sum(base, updates.iter().map(of))? {
            return Ok(grad_x);
        }
        let rows = grad.size()[0];
        let mut grad_x = first_rows(filled_up(grad)?.f_matmul(&self.weight)?, rows)?;
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
    use tch::Device;

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
}
