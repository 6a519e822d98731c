//! Rust closures on libtorch's own thread pool.

use std::ops::Range;

/// Runs `body` on disjoint ranges that together cover `0..count`, on the very threads that run libtorch's matrix products.
///
/// The number of threads is libtorch's (`tch::set_num_threads`); a second pool beside it would compete with threads that libtorch
/// keeps spinning after each of its own parallel regions. `grain_size` is the smallest amount of work worth a thread: at most
/// `count / grain_size` (rounded up) threads take part.
///
/// A panic in `body` is passed on to the caller after every range has ended.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// ferrotune_autograd::parallel_for(1000, 10, |range| {
///     sum.fetch_add(range.sum::<usize>(), Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 999 * 1000 / 2);
/// ```
pub fn parallel_for(count: usize, grain_size: usize, body: impl Fn(Range<usize>) + Sync) {
    crate::shim::parallel_for(count, grain_size, &body);
}
