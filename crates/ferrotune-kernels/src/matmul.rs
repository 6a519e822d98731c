//! A matrix product by itself.

use crate::{cpu::product, error::Result};
use tch::Tensor;

/// `left right`, by the loops of this crate where they are faster than libtorch's product, for factors that want no gradient.
///
/// ```
/// use ferrotune_kernels::matmul;
/// use tch::{Device, Kind, Tensor};
/// let ones = |rows, columns| Tensor::ones([rows, columns], (Kind::Float, Device::Cpu));
/// assert_eq!(matmul(&ones(2, 5), &ones(5, 3))?, ones(2, 3) * 5.0);
/// # Ok::<(), ferrotune_kernels::Error>(())
/// ```
///
/// # Shapes
/// - `left`: `[rows, depth]`; `right`: `[depth, columns]`; returns `[rows, columns]`
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) if the shapes do not fit each other.
pub fn matmul(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    match product(left, right)? {
        Some(result) => Ok(result),
        None => Ok(left.f_matmul(right)?),
    }
}
