//! On processors that no loops are written for, libtorch multiplies.

use crate::{cpu::NarrowProducts, error::Result};
use std::{convert::Infallible, marker::PhantomData};
use tch::Tensor;

/// No product has few.
pub(crate) const FEW_ROWS: usize = 0;

/// No tensor is one here.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a>(Infallible, PhantomData<&'a Tensor>);

impl Matrix<'_> {
    pub(crate) fn of(_: &Tensor) -> Option<Self> {
        None
    }

    pub(crate) fn rows(&self) -> usize {
        0
    }

    pub(crate) fn turned(self) -> Self {
        self
    }
}

/// Nor is a weight one.
pub(crate) type Factor<'a> = Matrix<'a>;

/// libtorch's products want all factors in one kind.
pub(crate) fn reads_as_it_is(_: &Factor) -> bool {
    false
}

/// As above.
pub(crate) fn reads_bf16() -> bool {
    false
}

/// No weight has one here.
#[derive(Debug)]
pub(crate) struct Compact(Infallible);

impl Compact {
    pub(crate) fn of(_: &Tensor) -> Option<Self> {
        None
    }

    pub(crate) fn filled<E: Send>(
        _: [usize; 2],
        _: impl Fn(usize, &mut [u8]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Option<Self>, E> {
        Ok(None)
    }

    pub(crate) fn factor(&self) -> Factor<'_> {
        match self.0 {}
    }

    pub(crate) fn rows(&self, _: &[i64]) -> Result<Tensor> {
        match self.0 {}
    }

    pub(crate) fn size(&self) -> usize {
        match self.0 {}
    }
}

/// No product has any here.
#[expect(dead_code, reason = "written as for loops, of which there are none")]
pub(crate) struct Term<'a> {
    pub(crate) first_column: usize,
    pub(crate) scale: f32,
    pub(crate) never: Matrix<'a>,
}

impl<'a> Term<'a> {
    pub(crate) fn new(left: Matrix<'a>, _: Matrix<'a>) -> Self {
        Self { first_column: 0, scale: 1.0, never: left }
    }
}

pub(crate) fn product(_: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn sum_of_products(_: &[Term]) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn products_beside(_: Matrix, _: &[(Matrix, f32)]) -> Result<Option<Tensor>> {
    Ok(None)
}

pub(crate) fn add_products(_: &mut Tensor, _: &[Term]) -> bool {
    false
}

pub(crate) fn narrow_products(
    _: &Tensor,
    _: &Tensor,
    _: f64,
    _: &Tensor,
    _: Option<&Tensor>,
) -> Result<Option<NarrowProducts>> {
    Ok(None)
}
