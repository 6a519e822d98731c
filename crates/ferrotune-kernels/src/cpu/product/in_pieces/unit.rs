//! The unit itself: eight registers that are tiles of 16 rows of 64 bytes.

use crate::cpu::product::{Level, cpuid, level};
use std::{arch::asm, marker::PhantomData};

/// Rows and columns of a block of a result: two tiles each.
pub(super) const BLOCK: usize = 32;
/// Numbers of bf16 along the depth that one instruction multiplies.
pub(super) const STEP: usize = 32;
/// Numbers of bf16 that a number of f32 is the sum of.
pub(super) const PIECES: usize = 3;
/// Numbers of bf16 in a tile.
pub(super) const TILE: usize = 16 * STEP;
/// Bytes of one step of a block of a factor, two tiles for each piece.
pub(super) const STEP_BYTES: usize = 2 * PIECES * TILE * 2;

/// Whether the processor has tiles, and products of bf16 in them.
pub(super) fn is_there() -> bool {
    const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
    // The copies for the unit are made with AVX-512.
    matches!(level(), Some(Level::Avx512))
        && cpuid(0).eax >= 7
        && cpuid(7).edx & TILES_AND_BF16 == TILES_AND_BF16
}

/// Asks the system for the registers' place in the state of this process's threads.
#[cfg(target_os = "linux")]
pub(super) fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a request that changes nothing in memory; a system that does not know it answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_permitted() -> bool {
    false
}

/// Factors of a block, as far as one part of the depth goes.
pub(super) struct Segment {
    /// For each step, for each piece, two tiles of 16 rows each: rows of the left factor.
    pub(super) left: *const u16,
    /// The same of the right factor, whose tiles are 16 columns each.
    pub(super) right: *const u16,
    pub(super) steps: usize,
    /// Pieces of the right factor that are there; the others are zero.
    pub(super) right_pieces: usize,
}

/// What the instruction that configures the unit reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE_TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Adds the products of all pieces of a segment's left factor with the first of the right one; and, of the other pieces of right that are
/// named, those that reach into the digits of a sum: of the third with the first of left, of the second with the first two.
///
/// The others begin with the first piece of left in its registers, where `third` leaves it and `second` does not.
macro_rules! add_products {
    ($segment:ident $(, $other:ident)*) => {
        asm!(
            "2:",
            "tileloadd tmm6, [{right} + {row}]",
            "tileloadd tmm7, [{right} + {row} + 1024]",
            "tileloadd tmm4, [{left} + {row} + 4096]",
            "tileloadd tmm5, [{left} + {row} + 5120]",
            multiply_tiles!(),
            "tileloadd tmm4, [{left} + {row} + 2048]",
            "tileloadd tmm5, [{left} + {row} + 3072]",
            multiply_tiles!(),
            "tileloadd tmm4, [{left} + {row}]",
            "tileloadd tmm5, [{left} + {row} + 1024]",
            multiply_tiles!(),
            $(add_products!(@ $other),)*
            "add {left}, {left_bytes}",
            "add {right}, {right_bytes}",
            "dec {steps}",
            "jnz 2b",
            left = inout(reg) $segment.left => _,
            right = inout(reg) $segment.right => _,
            steps = inout(reg) $segment.steps => _,
            left_bytes = const STEP_BYTES,
            right_bytes = in(reg) $segment.right_pieces * STEP_BYTES / PIECES,
            row = in(reg) 64usize,
            options(nostack, readonly),
        )
    };
    (@ third) => {
        concat!(
            "tileloadd tmm6, [{right} + {row} + 4096]\n",
            "tileloadd tmm7, [{right} + {row} + 5120]\n",
            multiply_tiles!(),
        )
    };
    (@ second) => {
        concat!(
            "tileloadd tmm6, [{right} + {row} + 2048]\n",
            "tileloadd tmm7, [{right} + {row} + 3072]\n",
            multiply_tiles!(), "\n",
            "tileloadd tmm4, [{left} + {row} + 2048]\n",
            "tileloadd tmm5, [{left} + {row} + 3072]\n",
            multiply_tiles!(),
        )
    };
}

/// Adds the products of two tiles of rows with two of columns.
macro_rules! multiply_tiles {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm1, tmm4, tmm7
        tdpbf16ps tmm2, tmm5, tmm6
        tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// The unit of this thread, configured for as long as this lives.
///
/// The compiler keeps nothing in the registers and no other code that does runs in between, so they hold their tiles from one block of
/// assembly to the next.
pub(super) struct Unit(PhantomData<*const ()>);

impl Unit {
    /// # Safety
    /// The unit is there, and permitted.
    pub(super) unsafe fn configured() -> Self {
        // SAFETY: as the caller says; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// Writes the sum of the segments' products to a block of `[rows, columns]`, or adds it.
    ///
    /// # Safety
    /// The segments hold as many steps as they say; rows and columns are at most [`BLOCK`], and those of the target, `stride` apart, may be
    /// written.
    pub(super) unsafe fn multiply(
        &self,
        segments: impl Iterator<Item = Segment>,
        target: *mut f32,
        stride: usize,
        [rows, columns]: [usize; 2],
        add: bool,
    ) {
        if rows == BLOCK && columns == BLOCK {
            // SAFETY: as the caller says; a whole block is in the target.
            unsafe { self.multiply_whole(segments, target, stride, add) };
            return;
        }
        let mut whole = [[0.0f32; BLOCK]; BLOCK];
        // SAFETY: `rows` and `columns` are those of the target, and at most those of the whole.
        unsafe {
            if add {
                for (row, numbers) in whole.iter_mut().enumerate().take(rows) {
                    target.add(row * stride).copy_to_nonoverlapping(numbers.as_mut_ptr(), columns);
                }
            }
            self.multiply_whole(segments, whole.as_mut_ptr().cast(), BLOCK, add);
            for (row, numbers) in whole.iter().enumerate().take(rows) {
                target.add(row * stride).copy_from_nonoverlapping(numbers.as_ptr(), columns);
            }
        }
    }

    /// # Safety
    /// As [`Unit::multiply`], for a whole block.
    unsafe fn multiply_whole(
        &self,
        segments: impl Iterator<Item = Segment>,
        target: *mut f32,
        stride: usize,
        add: bool,
    ) {
        let row_bytes = stride * size_of::<f32>();
        let lower = target.wrapping_add(16 * stride);
        // SAFETY: the unit is configured; the four tiles lie in the target.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{upper} + {stride}]",
                    "tileloadd tmm1, [{upper} + {stride} + 64]",
                    "tileloadd tmm2, [{lower} + {stride}]",
                    "tileloadd tmm3, [{lower} + {stride} + 64]",
                    upper = in(reg) target, lower = in(reg) lower, stride = in(reg) row_bytes,
                    options(nostack, readonly),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            for segment in segments {
                match segment.right_pieces {
                    1 => add_products!(segment),
                    2 => add_products!(segment, second),
                    _ => add_products!(segment, third, second),
                }
            }
            asm!(
                "tilestored [{upper} + {stride}], tmm0",
                "tilestored [{upper} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2",
                "tilestored [{lower} + {stride} + 64], tmm3",
                upper = in(reg) target, lower = in(reg) lower, stride = in(reg) row_bytes,
                options(nostack),
            );
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the unit is there, since it was configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
