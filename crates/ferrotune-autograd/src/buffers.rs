//! Large buffers of tensors, kept for the next tensor.

use crate::shim;
use std::sync::atomic::{AtomicBool, Ordering};

static REUSED: AtomicBool = AtomicBool::new(false);

/// Keeps the large buffers of freed CPU tensors for those that come, in the whole process from now on; `false` where that is not
/// possible (another system than Linux, or another allocator in libtorch's place for one).
///
/// A training step asks for the same sizes again and again. Returned to the system, their pages would be cleared each time; kept in the
/// C library's heap, small tensors would settle between them and leave holes. With this, the memory of a process is what its tensors
/// need at one time, and a little more: a free buffer of up to half more than its size serves the next tensor, and where more than 32 MiB lie free in other
/// sizes, one of these is stretched or cut by the system's page tables. Numbers do not change by it.
///
/// Call it before the first large tensor, from a program rather than a library: it is for the process to decide.
///
/// ```
/// use ferrotune_autograd::{reuse_buffers, tch::{Device, Kind, Tensor}};
/// if reuse_buffers() {
///     let address = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu)).data_ptr();
///     assert_eq!(Tensor::ones([1 << 20], (Kind::Float, Device::Cpu)).data_ptr(), address);
/// }
/// ```
pub fn reuse_buffers() -> bool {
    let reused = shim::reuse_buffers();
    REUSED.fetch_or(reused, Ordering::Relaxed);
    reused
}

/// Whether [`reuse_buffers`] has been called in this process, and could.
pub fn reuses_buffers() -> bool {
    REUSED.load(Ordering::Relaxed)
}

/// Returns all buffers that no tensor uses to the system.
pub fn release_buffers() {
    shim::release_buffers();
}

/// Bytes of the buffers that no tensor uses.
pub fn kept_buffer_bytes() -> usize {
    shim::kept_buffer_bytes()
}
