//! The path of f32 tensors on the CPU: one pass over the numbers instead of one for each libtorch operator.
//!
//! A fused function asks [`Rows::of`] for its tensors as rows. Where that is refused (another device, another kind, numbers that do
//! not lie side by side) the function takes its libtorch path. The work is a [`Kernel`], compiled for several instruction sets and
//! run on ranges of rows by libtorch's threads; a row is computed by one thread alone, so the number of threads changes no result.

#[cfg(all(target_arch = "x86_64", not(ferrotune_elsewhere)))]
#[allow(unsafe_code)] // numbers of tensors by address
pub(crate) mod attention;
#[cfg(any(not(target_arch = "x86_64"), ferrotune_elsewhere))]
#[path = "cpu/attention/elsewhere.rs"]
pub(crate) mod attention;
mod exp;
#[allow(unsafe_code)] // numbers of tensors as slices that change
mod in_place;
#[cfg(all(target_arch = "x86_64", not(ferrotune_elsewhere)))]
#[allow(unsafe_code)] // numbers of tensors by address
mod product;
#[cfg(any(not(target_arch = "x86_64"), ferrotune_elsewhere))]
#[path = "cpu/product/elsewhere.rs"]
mod product;
#[allow(unsafe_code)] // numbers of tensors as slices
mod rows;
#[allow(unsafe_code)] // calls of functions compiled for an instruction set
mod simd;

pub(crate) use exp::{exp, exp_of_negative};
pub(crate) use in_place::{Change, RowsMut, change_all, change_rows};
pub(crate) use product::{
    Compact, FEW_ROWS, Factor, Matrix, Term, add_products, narrow_products, product, products_beside,
    reads_as_it_is, reads_bf16, sum_of_products,
};
pub(crate) use rows::{Rows, fill_rows, fill_rows_beside, is_strided};
pub(crate) use simd::{Kernel, LANES, dispatch, dot, largest, map, mul_add, padded, update};

/// What [`narrow_products`] computes.
#[derive(Debug, PartialEq)]
pub(crate) struct NarrowProducts {
    /// `scale * left right`, `[rows, columns]`
    pub(crate) product: tch::Tensor,
    /// `left^T other`, `[depth, columns]`
    pub(crate) of_other: tch::Tensor,
    /// `product^T input`, `[columns, width]`, where an input was given that suits the loops
    pub(crate) of_input: Option<tch::Tensor>,
}

/// A tensor of reproducible noise in `[-1, 1)`.
#[cfg(test)]
pub(crate) fn noise(seed: u64, shape: &[i64]) -> tch::Tensor {
    let numbers = crate::RandomKey::from_seed(seed).uniform(shape.iter().product::<i64>() as usize);
    (tch::Tensor::from_slice(&numbers) * 2.0 - 1.0).reshape(shape)
}

/// Demands the same shape and a distance below `tolerance` relative to the size of the whole.
#[cfg(test)]
pub(crate) fn assert_close(found: &tch::Tensor, expected: &tch::Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let error = ((found - expected).norm() / expected.norm()).double_value(&[]);
    assert!(error < tolerance, "relative error {error:e}");
}
