//! Changes that libtorch does not see.

use tch::Tensor;

/// Tells libtorch that the numbers of `tensor` were changed through its memory, by a kernel of one's own.
///
/// libtorch counts the changes that its own operators make, and refuses a backward pass whose saved tensors were changed since. A
/// kernel that writes to a tensor's memory must count by itself, or such a backward pass gives wrong gradients without a word.
///
/// ```
/// use ferrotune_autograd::{mark_changed, tch::{Kind, Tensor}};
/// let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
/// let mut factor = Tensor::from_slice(&[3.0f32, 4.0]);
/// let y = &x * &factor; // saves the factor
/// // ... a kernel writes to the factor's memory ...
/// mark_changed(&mut factor);
/// let error = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
/// assert!(error.contains("modified by an inplace operation"));
/// ```
pub fn mark_changed(tensor: &mut Tensor) {
    crate::shim::mark_changed(tensor);
}
