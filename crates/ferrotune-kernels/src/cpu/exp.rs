//! The exponential function, in arithmetic that vectorises.

use super::mul_add;

/// `exp(x)` with a relative error below `2e-7`; overflow gives infinity, underflow zero, and NaN stays NaN.
///
/// With `n = round(x / ln 2)` and `r = x - n ln 2`, `exp(x) = 2^n exp(r)`, and a polynomial gives `exp(r)` on `|r| <= ln 2 / 2`.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these the result is infinity or zero in any case. Written so that NaN passes.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, shifted) = reduced::<FMA>(x);
    // 2^n in two factors: each is a normal number, their product may be infinite or subnormal.
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
    let first = n >> 1;
    let power = |n: i32| f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23);
    p * power(first) * power(n.wrapping_sub(first))
}

/// `exp(x)` of a number that is not above zero by more than a rounding error, as those of a softmax are: with an error as that of [`exp`],
/// zero below -87, where it is hardly a normal number, and NaN stays NaN. It takes a third fewer operations.
#[inline(always)]
pub(crate) fn exp_of_negative<const FMA: bool>(x: f32) -> f32 {
    let (p, shifted) = reduced::<FMA>(x);
    // The rounder's own bits are shifted out.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// Adding it, `1.5 * 2^23`, rounds to a whole number, which then stands in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// `exp(r)`, and `n` with the rounder added.
#[inline(always)]
fn reduced<const FMA: bool>(x: f32) -> (f32, f32) {
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    // ln 2 in two parts; the first has 9 bits, so that its product with n is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let r = mul_add::<FMA>(n, -LN_2_LOW, mul_add::<FMA>(n, -LN_2_HIGH, x));
    // exp(r) = 1 + r + r^2 q(r); the best q of degree 4 leaves a relative error of 3.1e-9.
    let q = mul_add::<FMA>(1.381_454e-3, r, 8.368_745e-3);
    let q = mul_add::<FMA>(q, r, 4.166_839e-2);
    let q = mul_add::<FMA>(q, r, 0.166_665_21);
    let q = mul_add::<FMA>(q, r, 0.499_999_94);
    (mul_add::<FMA>(r * r, q, r) + 1.0, shifted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernel, dispatch_to_all};
    use std::cell::RefCell;

    struct Exp<'a> {
        inputs: &'a [f32],
        outputs: &'a RefCell<Vec<f32>>,
        of_negative: bool,
    }

    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<const FMA: bool>(self) {
            for (y, &x) in self.outputs.borrow_mut().iter_mut().zip(self.inputs) {
                *y = if self.of_negative { exp_of_negative::<FMA>(x) } else { exp::<FMA>(x) };
            }
        }
    }

    fn check(inputs: &[f32], check: impl Fn(f32, f32, &dyn Fn() -> String)) {
        check_one(false, inputs, check);
    }

    fn check_one(of_negative: bool, inputs: &[f32], check: impl Fn(f32, f32, &dyn Fn() -> String)) {
        let outputs = RefCell::new(vec![0.0; inputs.len()]);
        dispatch_to_all(
            || Exp { inputs, outputs: &outputs, of_negative },
            |level| {
                for (&x, &y) in inputs.iter().zip(&*outputs.borrow()) {
                    check(x, y, &|| format!("{level:?} exp({x:e}) = {y:e}"));
                }
            },
        );
    }

    #[test]
    fn error_is_below_2e_7_wherever_the_result_is_normal() {
        // Every 499th float of either sign, and a fine comb where the rounding to n turns.
        let all = (0..u32::MAX / 499).map(|i| f32::from_bits(i * 499));
        let comb = (-2000..2000).map(|i| (i as f32 + 0.5) * std::f32::consts::LN_2 / 16.0);
        let inputs: Vec<f32> = all.chain(comb).filter(|x| (-87.33..88.72).contains(x)).collect();
        assert!(inputs.len() > 4_000_000);
        check(&inputs, |x, y, what| {
            let expected = f64::from(x).exp();
            let error = (f64::from(y) / expected - 1.0).abs();
            assert!(error <= 2e-7, "{}, error {error:e}", what());
        });
    }

    #[test]
    fn ends_of_the_range_are_those_of_the_exponential() {
        let inputs =
            [f32::INFINITY, f32::MAX, 1e10, 88.723, f32::NEG_INFINITY, f32::MIN, -1e10, -104.0, 0.0, -0.0];
        let expected = [f32::INFINITY; 4].into_iter().chain([0.0; 4]).chain([1.0; 2]);
        let expected: Vec<f32> = expected.collect();
        check(&inputs, |x, y, what| {
            let place = inputs.iter().position(|input| input.to_bits() == x.to_bits()).unwrap();
            assert_eq!(y, expected[place], "{}", what());
        });
        check(&[f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)], |_, y, what| {
            assert!(y.is_nan(), "{}", what())
        });
        // Below the normal numbers the error is that of their spacing.
        let subnormal: Vec<f32> = (0..1700).map(|i| -87.4 - i as f32 / 100.0).collect();
        check(&subnormal, |x, y, what| {
            assert!((f64::from(y) - f64::from(x).exp()).abs() <= 1.5e-45, "{}", what());
        });
    }

    #[test]
    fn of_negative_numbers_it_is_as_exact_and_zero_where_the_other_is_hardly_more() {
        let all = (0..u32::MAX / 997).map(|i| f32::from_bits(i * 997));
        let inputs: Vec<f32> = all.filter(|x| (-87.0..0.5).contains(x)).collect();
        assert!(inputs.len() > 1_000_000);
        check_one(true, &inputs, |x, y, what| {
            let error = (f64::from(y) / f64::from(x).exp() - 1.0).abs();
            assert!(error <= 2e-7, "{}, error {error:e}", what());
        });
        check_one(true, &[-87.1, -104.0, -1e10, f32::MIN, f32::NEG_INFINITY], |_, y, what| {
            assert_eq!(y, 0.0, "{}", what());
        });
        check_one(true, &[f32::NAN, -f32::NAN], |_, y, what| assert!(y.is_nan(), "{}", what()));
    }
}
