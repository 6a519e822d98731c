//! One loop, compiled for several instruction sets, of which the best that the machine has is chosen at run time.
//!
//! The loops are plain Rust that the compiler vectorises. It may not reorder a sum of floats, so sums are kept in [`LANES`] parts.

/// Work that is compiled for each instruction set.
///
/// `run` and all that it calls must be `#[inline(always)]`: only then are they compiled with the caller's instructions.
pub(crate) trait Kernel {
    /// Does the work. With `FMA` the machine multiplies and adds in one instruction.
    fn run<const FMA: bool>(self);
}

/// Parts of a sum, and elements of a step: two registers of AVX-512, four of AVX2.
pub(crate) const LANES: usize = 32;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What every machine of the target has.
    Baseline,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with its extensions for 64-bit numbers and short vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All that this machine has, best first.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            Self::Baseline,
        ]
        .into_iter()
        .filter(|level| level.is_available())
    }

    fn is_available(self) -> bool {
        match self {
            Self::Baseline => true,
            // The answers are kept by the standard library.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
        }
    }
}

/// Runs a kernel with the best instructions that this machine has.
pub(crate) fn dispatch(kernel: impl Kernel) {
    if let Some(level) = Level::available().next() {
        run_at(level, kernel);
    }
}

fn run_at(level: Level, kernel: impl Kernel) {
    match level {
        // Where a fused product and sum is no instruction it is a slow library call; 64-bit ARM always has it.
        Level::Baseline => kernel.run::<{ cfg!(any(target_feature = "fma", target_arch = "aarch64")) }>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the levels come from `available`, which asked the machine.
        Level::Avx2 => unsafe { with_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { with_avx512(kernel) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(kernel: impl Kernel) {
    kernel.run::<true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn with_avx512(kernel: impl Kernel) {
    kernel.run::<true>();
}

/// `a * b + c`, rounded once with `FMA` and twice without.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `sum_i a_i b_i`, in parts that are added pairwise at the end.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let add = |mut sums: [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]| {
        for lane in 0..LANES {
            sums[lane] = mul_add::<FMA>(a[lane], b[lane], sums[lane]);
        }
        sums
    };
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        sums = add(sums, a, b);
    }
    if !a_rest.is_empty() {
        // Whole arrays stay in registers; a loop over part of the sums would send all of them through memory.
        sums = add(sums, &padded(a_rest), &padded(b_rest));
    }
    sum_of_lanes(sums)
}

/// The sum of the parts of a sum, added pairwise.
#[inline(always)]
pub(crate) fn sum_of_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The largest number; NaN counts as none, and where there is no number it is minus infinity.
#[inline(always)]
pub(crate) fn largest(numbers: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], block[lane]);
        }
    }
    for (lane, &number) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, number);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The last elements of a slice, followed by zeros.
#[inline(always)]
pub(crate) fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut block = [0.0; LANES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// Sets element `i` of each output to the formula's results for element `i` of the inputs; all slices have one length.
///
/// The elements of a step go through arrays of fixed size, where the compiler sees that outputs do not overlap inputs.
#[inline(always)]
pub(crate) fn map<const INPUTS: usize, const OUTPUTS: usize>(
    inputs: [&[f32]; INPUTS],
    mut outputs: [&mut [f32]; OUTPUTS],
    formula: impl Fn([f32; INPUTS]) -> [f32; OUTPUTS],
) {
    let length = outputs.first().map_or(0, |output| output.len());
    let mut start = 0;
    let step = |inputs: &[[f32; LANES]; INPUTS]| {
        let mut results = [[0.0; LANES]; OUTPUTS];
        for lane in 0..LANES {
            let mut arguments = [0.0; INPUTS];
            for (argument, input) in arguments.iter_mut().zip(inputs) {
                *argument = input[lane];
            }
            for (result, value) in results.iter_mut().zip(formula(arguments)) {
                result[lane] = value;
            }
        }
        results
    };
    while start + LANES <= length {
        let mut block = [[0.0; LANES]; INPUTS];
        for (block, input) in block.iter_mut().zip(&inputs) {
            block.copy_from_slice(&input[start..start + LANES]);
        }
        for (output, result) in outputs.iter_mut().zip(step(&block)) {
            output[start..start + LANES].copy_from_slice(&result);
        }
        start += LANES;
    }
    let rest = length - start;
    if rest > 0 {
        let mut block = [[0.0; LANES]; INPUTS];
        for (block, input) in block.iter_mut().zip(&inputs) {
            *block = padded(&input[start..length]);
        }
        for (output, result) in outputs.iter_mut().zip(step(&block)) {
            output[start..].copy_from_slice(&result[..rest]);
        }
    }
}

/// Replaces element `i` of each state by the formula's results for element `i` of inputs and states; all slices have one length.
#[inline(always)]
pub(crate) fn update<const INPUTS: usize, const STATES: usize>(
    inputs: [&[f32]; INPUTS],
    mut states: [&mut [f32]; STATES],
    formula: impl Fn([f32; INPUTS], [f32; STATES]) -> [f32; STATES],
) {
    let length = states.first().map_or(0, |state| state.len());
    let step = |inputs: &[[f32; LANES]; INPUTS], states: &mut [[f32; LANES]; STATES]| {
        for lane in 0..LANES {
            let input = std::array::from_fn(|place| inputs[place][lane]);
            let results = formula(input, std::array::from_fn(|place| states[place][lane]));
            for (state, result) in states.iter_mut().zip(results) {
                state[lane] = result;
            }
        }
    };
    let mut start = 0;
    while start + LANES <= length {
        let (mut read, mut changed) = ([[0.0; LANES]; INPUTS], [[0.0; LANES]; STATES]);
        for (block, input) in read.iter_mut().zip(&inputs) {
            block.copy_from_slice(&input[start..start + LANES]);
        }
        for (block, state) in changed.iter_mut().zip(&states) {
            block.copy_from_slice(&state[start..start + LANES]);
        }
        step(&read, &mut changed);
        for (block, state) in changed.iter().zip(&mut states) {
            state[start..start + LANES].copy_from_slice(block);
        }
        start += LANES;
    }
    if start < length {
        let read = inputs.map(|input| padded(&input[start..length]));
        let mut changed = states.each_ref().map(|state| padded(&state[start..]));
        step(&read, &mut changed);
        for (block, state) in changed.iter().zip(&mut states) {
            state[start..].copy_from_slice(&block[..length - start]);
        }
    }
}

/// Runs a kernel once at every level that this machine has.
#[cfg(test)]
pub(crate) fn dispatch_to_all<K: Kernel>(mut kernel: impl FnMut() -> K, mut check: impl FnMut(Level)) {
    for level in Level::available() {
        run_at(level, kernel());
        check(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Dot<'a>(&'a [f32], &'a [f32], &'a Cell<f32>);

    impl Kernel for Dot<'_> {
        #[inline(always)]
        fn run<const FMA: bool>(self) {
            self.2.set(dot::<FMA>(self.0, self.1));
        }
    }

    #[test]
    fn dot_products_of_all_lengths_at_every_level() {
        let numbers: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin()).collect();
        for length in 0..=100 {
            let (a, b) = (&numbers[..length], &numbers[100..100 + length]);
            let expected: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let result = Cell::new(f32::NAN);
            dispatch_to_all(
                || Dot(a, b, &result),
                |level| {
                    let error = (f64::from(result.get()) - expected).abs();
                    assert!(error < 1e-6 * (length as f64).sqrt().max(1.0), "{level:?} {length}: {error}");
                },
            );
        }
    }
}
