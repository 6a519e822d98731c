//! The products with a frozen weight.

use super::weight::{FrozenWeight, Numbers};
use crate::{
    cpu::{Compact, FEW_ROWS, Factor, Matrix, Term, add_products, sum_of_products},
    error::Result,
    filled_rows::{filled_up, first_rows},
};
use tch::{Kind, Tensor};

impl FrozenWeight {
    /// Both factors of a product with `left`; `None` if it is not in f32 on the CPU.
    fn as_factor_of<'a>(&'a self, left: &'a Tensor) -> Option<(Matrix<'a>, Factor<'a>)> {
        let left = Matrix::of(left).filter(|_| self.kind() == Kind::Float)?;
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

    /// `x W^T`: `[tokens, in_features]` to `[tokens, out_features]`, for an `x` that wants no gradient.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails.
    pub fn forward_product(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_product_with(x, &[])
    }

    /// `grad W`: `[tokens, out_features]` to `[tokens, in_features]`, the gradient of the input, for a `grad` that wants none.
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
