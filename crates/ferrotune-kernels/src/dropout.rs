//! Dropout whose mask is a function of its place.

use crate::{
    cpu::{Kernel, LANES, Rows, dispatch, fill_rows, map},
    error::Result,
    random::RandomKey,
};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Zeroes elements with a probability and scales the rest by `1 / (1 - probability)`.
///
/// Element `i` is zeroed if number `i` of the key's uniform stream is below the probability. The mask is never kept: where it is
/// wanted again, as in backward, it is drawn again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout {
    key: RandomKey,
    probability: f64,
}

impl Dropout {
    pub(crate) fn new(key: RandomKey, probability: f64) -> Self {
        Self { key, probability }
    }

    /// `x * mask`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self.fused(x)? {
            Some(y) => Ok(y),
            None => self.torch(x),
        }
    }

    /// The product in libtorch's operators, with a mask that is drawn on the CPU.
    fn torch(&self, x: &Tensor) -> Result<Tensor> {
        let ones = Tensor::f_ones(x.size(), (Kind::Float, Device::Cpu))?;
        let mask = self.fused(&ones)?.unwrap_or(ones);
        Ok(x.f_mul(&mask.f_to_device(x.device())?.f_to_kind(x.kind())?)?)
    }

    /// The product in one pass.
    fn fused(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(rows) = Rows::of(x, 1) else { return Ok(None) };
        // A uniform number is a multiple of 2^-24, so it can be compared before it is made one.
        let first_kept = (f64::from(self.probability as f32) * f64::from(1 << 24)).ceil() as u64;
        let factor = (1.0 / (1.0 - self.probability)) as f32;
        let [y] = fill_rows(rows.count(), [&x.size()], |range, [y]| {
            dispatch(Masking { x: rows, key: self.key, first_kept, factor, range, y });
        })?;
        Ok(Some(y))
    }
}

struct Masking<'a> {
    x: Rows<'a>,
    key: RandomKey,
    first_kept: u64,
    factor: f32,
    range: Range<usize>,
    y: &'a mut [f32],
}

impl Kernel for Masking<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.x.width();
        for (index, y) in self.range.zip(self.y.chunks_exact_mut(width)) {
            let mut counter = index as u64 * width as u64;
            for (x, y) in self.x.row(index).chunks(LANES).zip(y.chunks_mut(LANES)) {
                let mut mask = [0.0f32; LANES];
                for (lane, mask) in mask.iter_mut().enumerate() {
                    let number = self.key.bits(counter + lane as u64) >> 40;
                    *mask = if number < self.first_kept { 0.0 } else { self.factor };
                }
                map([x, &mask[..x.len()]], [y], |[x, mask]| [x * mask]);
                counter += LANES as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;

    #[test]
    fn the_mask_is_that_of_the_uniform_stream_on_either_path() {
        // A number of the stream as the probability itself, and as the next number below it.
        let number = RandomKey::from_seed(7).uniform(200).into_iter().find(|u| (0.125..0.25).contains(u));
        let number = f64::from(number.unwrap());
        for (shape, probability) in [
            ([301, 200], 0.3),
            ([5, 33], 0.05),
            ([1, 1], 0.5),
            ([64, 64], 0.0),
            ([16, 64], 0.999),
            ([2, 100], number),
            ([2, 100], number + 0.25 / f64::from(1 << 24)),
        ] {
            let dropout = Dropout::new(RandomKey::from_seed(7), probability);
            let x = noise(1, &shape);
            let keep = (1.0 / (1.0 - probability)) as f32;
            let uniform = dropout.key.uniform(x.numel());
            let mask: Vec<f32> =
                uniform.into_iter().map(|u| if u < probability as f32 { 0.0 } else { keep }).collect();
            let expected = &x * Tensor::from_slice(&mask).reshape(shape);
            assert_eq!(dropout.fused(&x).unwrap().unwrap(), expected);
            assert_eq!(dropout.torch(&x).unwrap(), expected);
            let columns = x.tr().contiguous().tr();
            assert_eq!(dropout.apply(&columns).unwrap(), expected, "a mask knows no memory layout");
            let half = dropout.apply(&x.to_kind(Kind::BFloat16)).unwrap();
            assert_eq!(half.kind(), Kind::BFloat16);
            assert_eq!(half.eq(0.0), expected.eq(0.0));
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (dropout, x) = (Dropout::new(RandomKey::from_seed(7), 0.1), noise(1, &[301, 200]));
        let of = |threads| {
            tch::set_num_threads(threads);
            dropout.apply(&x).unwrap()
        };
        assert_eq!(of(1), of(3));
    }
}
