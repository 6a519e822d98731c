//! What is done to all gradients of a model at once.

use crate::{
    cpu::{Change, Kernel, LANES, Rows, change_all, dispatch, padded, update},
    error::{Result, check_shape},
};
use ferrotune_autograd::parallel_for;
use std::sync::atomic::{AtomicU64, Ordering};
use tch::{Kind, Tensor};

/// Elements summed in one go: sums of these parts are added in order, so that the number of threads changes no bit.
const PART: usize = 1 << 13;

/// The sum of the squares of the elements of each tensor.
///
/// The root of all of them together is the norm by which gradients are clipped. f32 tensors on the CPU are read once, in one
/// parallel region, and summed in f64: the sum is finite exactly if all elements are. If one
/// tensor is something else, libtorch takes the norms of all of them, each in its own kind.
///
/// ```
/// use ferrotune_kernels::{squared_norms, tch::Tensor};
/// let gradients = [Tensor::from_slice(&[3.0f32, 4.0]), Tensor::from_slice(&[12.0f32])];
/// let squares = squared_norms(&gradients.each_ref())?;
/// assert_eq!(squares, [25.0, 144.0]);
/// assert_eq!(squares.iter().sum::<f64>().sqrt(), 13.0);
/// # Ok::<(), ferrotune_kernels::Error>(())
/// ```
///
/// # Errors
/// Those of libtorch.
pub fn squared_norms(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let _no_grad = tch::no_grad_guard();
    match fused_squared_norms(tensors)? {
        Some(sums) => Ok(sums),
        None => torch_squared_norms(tensors),
    }
}

/// Adds to each sum its addend, all in one pass.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where the two have different shapes; then nothing has changed.
pub fn add_all(sums: &mut [&mut Tensor], addends: &[&Tensor]) -> Result<()> {
    for (sum, addend) in sums.iter().zip(addends) {
        check_shape("add_all", "an addend", addend, &sum.size())?;
    }
    let _no_grad = tch::no_grad_guard();
    let mut changes: Vec<Change<1, 1>> =
        sums.iter_mut().zip(addends).map(|(sum, addend)| Change { changed: [sum], read: [addend] }).collect();
    if change_all(&mut changes, |_, [sum], [addend]| dispatch(Add { sum, addend })) {
        return Ok(());
    }
    for (sum, addend) in sums.iter_mut().zip(addends) {
        let _ = sum.f_add_(addend)?;
    }
    Ok(())
}

struct Add<'a> {
    sum: &'a mut [f32],
    addend: &'a [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        update([self.addend], [self.sum], |[addend], [sum]| [sum + addend]);
    }
}

/// The sums in libtorch's operators, with one copy to the host.
fn torch_squared_norms(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let norms: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.f_norm()?.f_to_kind(Kind::Double)?.f_to_device(first.device()))
        .collect::<std::result::Result<_, _>>()?;
    Ok(Vec::try_from(Tensor::f_stack(&norms, 0)?.f_square()?)?)
}

/// [`torch_squared_norms`] in one pass.
fn fused_squared_norms(tensors: &[&Tensor]) -> Result<Option<Vec<f64>>> {
    // A copy of those that do not lie side by side, and of no others.
    let dense: Vec<Tensor> =
        tensors.iter().map(|tensor| Ok(tensor.f_contiguous()?)).collect::<Result<_>>()?;
    let mut parts: Vec<(usize, &[f32])> = Vec::new();
    for (index, tensor) in dense.iter().enumerate() {
        if tensor.numel() == 0 {
            continue;
        }
        let Some(rows) = Rows::of(tensor, tensor.dim()) else { return Ok(None) };
        parts.extend(rows.row(0).chunks(PART).map(|part| (index, part)));
    }
    let sums: Vec<AtomicU64> = parts.iter().map(|_| AtomicU64::new(0)).collect();
    parallel_for(parts.len(), 4, |range| {
        for ((_, part), result) in parts[range.clone()].iter().zip(&sums[range]) {
            let mut sum = 0.0;
            dispatch(SumOfSquares { part, sum: &mut sum });
            result.store(sum.to_bits(), Ordering::Relaxed);
        }
    });
    let mut result = vec![0.0; tensors.len()];
    for ((index, _), sum) in parts.iter().zip(sums) {
        result[*index] += f64::from_bits(sum.into_inner());
    }
    Ok(Some(result))
}

struct SumOfSquares<'a> {
    part: &'a [f32],
    sum: &'a mut f64,
}

impl Kernel for SumOfSquares<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (blocks, rest) = self.part.as_chunks::<LANES>();
        let add = |mut sums: [f64; LANES], block: &[f32; LANES]| {
            for lane in 0..LANES {
                // The square of an f32 is exact in f64, so that a fused product and sum would give the same.
                sums[lane] += f64::from(block[lane]) * f64::from(block[lane]);
            }
            sums
        };
        let mut sums = [0.0f64; LANES];
        for block in blocks {
            sums = add(sums, block);
        }
        sums = add(sums, &padded(rest));
        *self.sum = sums.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;

    fn tensors() -> Vec<Tensor> {
        vec![
            noise(1, &[70_001]),
            noise(2, &[0, 3]),
            noise(3, &[33, 5]).tr(),
            noise(4, &[1]).expand([7, 9], false),
            noise(5, &[]),
            noise(6, &[4, 20]).narrow(1, 3, 9),
        ]
    }

    #[test]
    fn both_paths_give_the_same_sums() {
        let tensors = tensors();
        let of: Vec<&Tensor> = tensors.iter().collect();
        let found = fused_squared_norms(&of).unwrap().unwrap();
        for (index, (tensor, found)) in tensors.iter().zip(&found).enumerate() {
            let expected = tensor.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
            assert!((found - expected).abs() <= 1e-13 * expected, "{index}: {found} {expected}");
        }
        for (plain, found) in torch_squared_norms(&of).unwrap().iter().zip(&found) {
            assert!((plain - found).abs() <= 1e-6 * found);
        }
        assert!(squared_norms(&[]).unwrap().is_empty());
        let double = noise(1, &[5]).to_kind(Kind::Double);
        assert!(fused_squared_norms(&[&double]).unwrap().is_none());
        assert_eq!(squared_norms(&[&double]).unwrap().len(), 1);
    }

    #[test]
    fn sums_are_finite_exactly_if_all_elements_are() {
        let large = Tensor::from_slice(&[f32::MAX, f32::MIN_POSITIVE]);
        assert!(squared_norms(&[&large]).unwrap()[0].is_finite());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 31, 40, 69] {
                let mut numbers = vec![0.0; 70];
                numbers[place] = bad;
                assert!(!squared_norms(&[&Tensor::from_slice(&numbers)]).unwrap()[0].is_finite());
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let tensors = tensors();
        let of = |threads| {
            tch::set_num_threads(threads);
            squared_norms(&tensors.iter().collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn each_sum_takes_its_own_addend() {
        let (mut a, mut b) = (noise(1, &[40]), noise(2, &[2, 3]));
        let (x, y) = (noise(3, &[40]), noise(4, &[3, 2]).tr());
        for (x, y) in [(&x, &y.contiguous()), (&x, &y), (&noise(5, &[1]).expand([40], false), &y)] {
            let expected = [&a + x, &b + y];
            add_all(&mut [&mut a, &mut b], &[x, y]).unwrap();
            assert_eq!([a.copy(), b.copy()], expected);
        }
        let error = add_all(&mut [&mut a], &[&y]).unwrap_err().to_string();
        assert!(error.contains("[3, 2]") || error.contains("[2, 3]"), "{error}");
    }
}
