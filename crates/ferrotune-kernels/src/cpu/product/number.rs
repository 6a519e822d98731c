//! A number as memory holds it, where products are of f32.

use super::vector::Vector;
use half::bf16;
use tch::Kind;

/// A kind of number of which each is a number of f32.
pub(crate) trait Number: Copy {
    /// The kind of tensors that hold it.
    const KIND: Kind;

    /// The number in f32.
    fn single(self) -> f32;

    /// A register of numbers in f32.
    ///
    /// # Safety
    /// As the methods of [`Vector`]: the machine has the register's instructions, and `from` leads to as many numbers as it has lanes.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Number for f32 {
    const KIND: Kind = Kind::Float;

    #[inline(always)]
    fn single(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as the caller says.
        unsafe { V::load(from) }
    }
}

impl Number for bf16 {
    const KIND: Kind = Kind::BFloat16;

    #[inline(always)]
    fn single(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as the caller says; a bf16 is its 16 bits.
        unsafe { V::halves(from.cast()) }
    }
}
