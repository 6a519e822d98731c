//! Output head and cross-entropy in one function that never keeps the logits.

use crate::{
    cpu::{Kernel, LANES, RowsMut, change_rows, dispatch, exp_of_negative, largest},
    error::{Error, Result, check_shape},
    frozen::FrozenWeight,
    kind::wide_kind,
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use tch::{Device, Tensor};

/// The most logits that exist at one time in [`linear_cross_entropy`], unless one row has more: 16 MiB in f32.
pub const CHUNK_LOGITS: i64 = 4 << 20;

const NAME: &str = "linear_cross_entropy";

/// What the loss is beside the negative log-likelihood.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropyOptions {
    /// The id of rows that have no target: their loss is zero, and they are not computed.
    pub ignore_index: i64,
    /// `epsilon`: the share of the target's probability that is spread over the whole vocabulary, in `[0, 1]`.
    pub label_smoothing: f64,
    /// `c`: the factor of `logsumexp^2`, which keeps logits from drifting, at least 0.
    pub z_loss: f64,
}

impl Default for CrossEntropyOptions {
    /// The negative log-likelihood alone; -100 marks rows without a target, as in PyTorch.
    fn default() -> Self {
        Self { ignore_index: -100, label_smoothing: 0.0, z_loss: 0.0 }
    }
}

/// [`linear_cross_entropy_with`] the options' defaults: the negative log-likelihood of each target under a frozen output head.
///
/// # Errors
/// As [`linear_cross_entropy_with`].
pub fn linear_cross_entropy(hidden: &Tensor, weight: &FrozenWeight, ids: &Tensor) -> Result<Tensor> {
    linear_cross_entropy_with(hidden, weight, ids, CrossEntropyOptions::default())
}

/// Cross-entropy of each target under a frozen output head.
///
/// With the logits `z = W h_t`, `l = logsumexp(z)` and the options' `epsilon` and `c`,
///
/// ```text
/// loss_t = l - (1 - epsilon) z[id_t] - epsilon mean(z) + c l^2
/// ```
///
/// in f32 (in f64 if the logits are). The logits of a chunk of rows exist only while that chunk is computed; since the head is
/// frozen, the gradient with respect to `h` is formed on the way, in the memory of the logits, and nothing else is kept.
///
/// # Shapes
/// - `hidden`: `[targets, hidden_size]`, the rows that predict a target; `weight`: `[vocab_size, hidden_size]`
/// - `ids`: `[targets]`, int64, on the same device
/// - returns `[targets]`
///
/// # Errors
/// [`Error::Shape`] where two things do not fit; [`Error::TargetOutOfRange`] for an id that the vocabulary does not have;
/// [`Error::InvalidOption`].
///
/// # Examples
/// ```
/// use ferrotune_kernels::{CrossEntropyOptions, FrozenWeight, linear_cross_entropy_with, tch::{Device, Kind, Tensor}};
/// let head = FrozenWeight::new(&Tensor::randn([50, 8], (Kind::Float, Device::Cpu)))?;
/// let hidden = Tensor::randn([3, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let ids = Tensor::from_slice(&[7i64, -100, 49]);
/// let options = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 1e-4, ..Default::default() };
/// let loss = linear_cross_entropy_with(&hidden, &head, &ids, options)?;
/// assert_eq!(loss.double_value(&[1]), 0.0);
/// loss.sum(Kind::Float).f_backward()?;
/// assert_eq!(hidden.grad().get(1).abs().max().double_value(&[]), 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
/// `torch.nn.functional.cross_entropy` for `ignore_index` and `label_smoothing`, whose mean over the vocabulary includes the target;
/// Chowdhery et al. 2022, arXiv:2204.02311, section 5, for the z-loss.
pub fn linear_cross_entropy_with(
    hidden: &Tensor,
    weight: &FrozenWeight,
    ids: &Tensor,
    options: CrossEntropyOptions,
) -> Result<Tensor> {
    check_shape(NAME, "hidden", hidden, &[-1, weight.in_features()])?;
    let targets = hidden.size()[0];
    check_shape(NAME, "ids", ids, &[targets])?;
    check_option("label_smoothing", options.label_smoothing, 1.0, "a number from 0 to 1")?;
    check_option("z_loss", options.z_loss, f64::MAX, "a number of at least 0")?;
    let host_ids = Vec::<i64>::try_from(ids.f_to_device(Device::Cpu)?)?;
    let mut rows = Vec::with_capacity(host_ids.len());
    for (row, &id) in host_ids.iter().enumerate() {
        if id == options.ignore_index {
            continue;
        }
        if !(0..weight.out_features()).contains(&id) {
            return Err(Error::TargetOutOfRange { id, vocabulary: weight.out_features() });
        }
        rows.push(row as i64);
    }
    let function = LinearCrossEntropy { weight: weight.shallow_clone(), options };
    if rows.len() == host_ids.len() {
        return Ok(apply_one(function, &[Some(hidden), Some(ids)])?);
    }
    // Rows without a target do not reach the head.
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(hidden.device())?;
    let (hidden, ids) = (hidden.f_index_select(0, &rows)?, ids.f_index_select(0, &rows)?);
    let losses = apply_one(function, &[Some(&hidden), Some(&ids)])?;
    Ok(Tensor::f_zeros([targets], (losses.kind(), losses.device()))?.f_index_copy(0, &rows, &losses)?)
}

fn check_option(option: &'static str, found: f64, most: f64, expected: &'static str) -> Result<()> {
    match (0.0..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error::InvalidOption { function: NAME, option, found, expected }),
    }
}

struct LinearCrossEntropy {
    weight: FrozenWeight,
    options: CrossEntropyOptions,
}

impl Function for LinearCrossEntropy {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let (hidden, ids) = (inputs[0].ok_or("hidden is required")?, inputs[1].ok_or("ids are required")?);
        let targets = hidden.size()[0];
        let rows_per_chunk = (CHUNK_LOGITS / self.weight.out_features().max(1)).max(1);
        let kind = wide_kind(hidden.kind());
        let losses = Tensor::f_empty([targets], (kind, hidden.device()))?;
        let grad = match context.needs_input_grad(0) {
            true => Some(Tensor::f_empty(hidden.size(), (hidden.kind(), hidden.device()))?),
            false => None,
        };
        let mut start = 0;
        while start < targets {
            let rows = rows_per_chunk.min(targets - start);
            let of = |tensor: &Tensor| tensor.f_narrow(0, start, rows);
            let mut logits = self.weight.forward_product(&of(hidden)?)?.f_to_kind(kind)?;
            of(&losses)?.f_copy_(&to_gradient(&mut logits, &of(ids)?, self.options)?)?;
            if let Some(grad) = &grad {
                of(grad)?.f_copy_(&self.weight.input_gradient(&logits.f_to_kind(hidden.kind())?)?)?;
            }
            start += rows;
        }
        context.save(&grad.iter().collect::<Vec<_>>());
        Ok(vec![losses])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        let grad = match (&grads[0], context.saved().first()) {
            (Some(grad), Some(by_row)) => {
                Some(by_row.f_mul(&grad.f_unsqueeze(1)?.f_to_kind(by_row.kind())?)?)
            }
            _ => None,
        };
        Ok(vec![grad, None])
    }
}

/// The losses of rows of logits, which become the losses' gradients: `softmax (1 + 2 c l) - epsilon / V - (1 - epsilon) one_hot`.
fn to_gradient(logits: &mut Tensor, ids: &Tensor, options: CrossEntropyOptions) -> Result<Tensor> {
    match fused(logits, ids, options)? {
        Some(losses) => Ok(losses),
        None => torch(logits, ids, options),
    }
}

/// [`to_gradient`] in libtorch's operators.
fn torch(logits: &mut Tensor, ids: &Tensor, options: CrossEntropyOptions) -> Result<Tensor> {
    let CrossEntropyOptions { label_smoothing, z_loss, .. } = options;
    let vocabulary = logits.size()[1];
    let ids = ids.f_unsqueeze(1)?;
    let of_target = logits.f_gather(1, &ids, false)?;
    // Not `z - logsumexp(z)`, which loses digits where both are large.
    let mut log_probabilities = logits.f_log_softmax(-1, logits.kind())?;
    let log_probability = log_probabilities.f_gather(1, &ids, false)?;
    let log_sum = of_target.f_sub(&log_probability)?;
    let mut losses = log_probability.f_mul_scalar(label_smoothing - 1.0)?;
    if label_smoothing != 0.0 {
        let mean = log_probabilities.f_mean_dim([1i64].as_slice(), true, logits.kind())?;
        let _ = losses.f_sub_(&mean.f_mul_scalar(label_smoothing)?)?;
    }
    logits.f_copy_(&log_probabilities.f_exp_()?)?;
    let mut gradient = logits.shallow_clone();
    if z_loss != 0.0 {
        let _ = losses.f_add_(&log_sum.f_square()?.f_mul_scalar(z_loss)?)?;
        let _ = gradient.f_mul_(&log_sum.f_mul_scalar(2.0 * z_loss)?.f_add_scalar(1.0)?)?;
    }
    if label_smoothing != 0.0 {
        let _ = gradient.f_sub_scalar_(label_smoothing / vocabulary as f64)?;
    }
    let target = Tensor::f_full(ids.size(), label_smoothing - 1.0, (gradient.kind(), ids.device()))?;
    let _ = gradient.f_scatter_add_(1, &ids, &target)?;
    Ok(losses.f_squeeze_dim(1)?)
}

/// [`to_gradient`] while a row lies in the cache.
fn fused(logits: &mut Tensor, ids: &Tensor, options: CrossEntropyOptions) -> Result<Option<Tensor>> {
    if logits.device() != Device::Cpu {
        return Ok(None);
    }
    let ids = Vec::<i64>::try_from(ids)?;
    let results = change_rows(logits, 1, [&[ids.len() as i64]], |logits, [losses]| {
        dispatch(ToGradient { logits, ids: &ids, options, losses });
    })?;
    Ok(results.map(|[losses]| losses))
}

struct ToGradient<'a> {
    logits: RowsMut<'a>,
    ids: &'a [i64],
    options: CrossEntropyOptions,
    losses: &'a mut [f32],
}

impl Kernel for ToGradient<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(mut self) {
        let CrossEntropyOptions { label_smoothing, z_loss, .. } = self.options;
        for (index, loss) in self.logits.range().zip(self.losses) {
            let id = self.ids[index] as usize;
            let z = self.logits.row(index);
            let vocabulary = z.len() as f64;
            let target = f64::from(z[id]);
            let mean = if label_smoothing == 0.0 { 0.0 } else { sum(z) / vocabulary };
            let largest = largest(z);
            // The target apart from the others: where its probability is near one, the gradient is the others' share, which a
            // difference of the two would leave few digits of.
            let of_target = f64::from(exp_of_negative::<FMA>(z[id] - largest));
            z[id] = f32::NEG_INFINITY;
            let of_others = exponentials::<FMA>(z, largest);
            let total = of_target + of_others;
            let log_sum = f64::from(largest) + total.ln();
            let smooth = (1.0 - label_smoothing) * target + label_smoothing * mean;
            *loss = (log_sum - smooth + z_loss * log_sum * log_sum) as f32;
            let along = 2.0 * z_loss * log_sum;
            let (factor, share) = (((1.0 + along) / total) as f32, label_smoothing / vocabulary);
            for x in &mut *z {
                *x = *x * factor - share as f32;
            }
            z[id] = (along * of_target / total - of_others / total + label_smoothing - share) as f32;
        }
    }
}

/// Numbers that are summed in f32 before the sum goes on in f64.
const PART: usize = 64 * LANES;

#[inline(always)]
fn sum(numbers: &[f32]) -> f64 {
    let mut total = 0.0;
    for part in numbers.chunks(PART) {
        let (blocks, rest) = part.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] += block[lane];
            }
        }
        total += lanes.iter().chain(rest).map(|&x| f64::from(x)).sum::<f64>();
    }
    total
}

/// Replaces each number `z` by `exp(z - largest)`, and returns their sum.
#[inline(always)]
fn exponentials<const FMA: bool>(numbers: &mut [f32], largest: f32) -> f64 {
    let mut total = 0.0;
    for part in numbers.chunks_mut(PART) {
        let (blocks, rest) = part.as_chunks_mut::<LANES>();
        let mut lanes = [0.0; LANES];
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp_of_negative::<FMA>(block[lane] - largest);
                lanes[lane] += block[lane];
            }
        }
        for x in &mut *rest {
            *x = exp_of_negative::<FMA>(*x - largest);
        }
        total += lanes.iter().chain(&*rest).map(|&x| f64::from(x)).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::Kind;

    fn options() -> [CrossEntropyOptions; 4] {
        let plain = CrossEntropyOptions::default();
        [
            plain,
            CrossEntropyOptions { label_smoothing: 0.1, ..plain },
            CrossEntropyOptions { z_loss: 1e-2, ..plain },
            CrossEntropyOptions { label_smoothing: 1.0, z_loss: 1e-3, ..plain },
        ]
    }

    #[test]
    fn both_paths_give_the_same_losses_and_gradients() {
        for (rows, vocabulary) in [(5, 49_152), (3, 33), (7, 2), (2, 4097), (1, 1), (40, 64)] {
            let ids: Vec<i64> = (0..rows).map(|row| row * 7919 % vocabulary).collect();
            let ids = Tensor::from_slice(&ids);
            for options in options() {
                let logits = noise(1, &[rows, vocabulary]) * 12.0 + 3.0;
                let (mut ours, mut plain) = (logits.copy(), logits.to_kind(Kind::Double));
                let losses = fused(&mut ours, &ids, options).unwrap().unwrap();
                let expected = torch(&mut plain, &ids, options).unwrap();
                if vocabulary > 1 {
                    assert_close(&losses.to_kind(Kind::Double), &expected, 1e-6);
                    assert_close(&ours.to_kind(Kind::Double), &plain, 1e-6);
                }
                let mut single = logits.copy();
                let plain_losses = torch(&mut single, &ids, options).unwrap();
                assert!((plain_losses - &losses).abs().max().double_value(&[]) < 1e-4);
            }
        }
    }

    #[test]
    fn the_gradient_of_a_target_that_is_nearly_certain_keeps_its_digits() {
        for lead in [5.0, 10.0, 17.0, 25.0] {
            let logits = noise(1, &[1, 300]);
            let _ = logits.narrow(1, 7, 1).g_add_scalar_(lead);
            let ids = Tensor::from_slice(&[7i64]);
            let (mut ours, mut exact) = (logits.copy(), logits.to_kind(Kind::Double));
            let _losses = fused(&mut ours, &ids, CrossEntropyOptions::default()).unwrap().unwrap();
            let _ = torch(&mut exact, &ids, CrossEntropyOptions::default()).unwrap();
            let of_target = |gradient: &Tensor| gradient.double_value(&[0, 7]);
            let error = (of_target(&ours) / of_target(&exact) - 1.0).abs();
            assert!(error < 1e-6, "{lead}: {error:e}");
        }
    }

    #[test]
    fn logits_in_wider_rows_take_the_fused_path_and_others_do_not() {
        let wide = noise(1, &[4, 50]);
        let ids = Tensor::from_slice(&[0i64, 39, 5, 5]);
        let options = CrossEntropyOptions::default();
        let (mut logits, mut copy) = (wide.narrow(1, 3, 40), wide.narrow(1, 3, 40).copy());
        let losses = fused(&mut logits, &ids, options).unwrap().unwrap();
        assert_close(&losses, &torch(&mut copy, &ids, options).unwrap(), 1e-6);
        assert_close(&logits, &copy, 1e-6);
        for mut other in [noise(1, &[40, 4]).tr(), noise(1, &[4, 40]).to_kind(Kind::Double)] {
            assert!(fused(&mut other, &ids, options).unwrap().is_none());
        }
    }

    #[test]
    fn extreme_and_senseless_logits_give_what_libtorch_gives() {
        let ids = Tensor::from_slice(&[1i64]);
        for numbers in [
            [1e4, -1e4, 0.0],
            [f32::NEG_INFINITY, 2.0, 1.0],
            [f32::INFINITY, 2.0, 1.0],
            [f32::NAN, 2.0, 1.0],
            [f32::NAN; 3],
            [f32::NEG_INFINITY; 3],
            [f32::MAX, f32::MIN, 0.0],
        ] {
            let logits = Tensor::from_slice(&numbers).unsqueeze(0);
            let (mut ours, mut plain) = (logits.copy(), logits.copy());
            let options = CrossEntropyOptions::default();
            let losses = fused(&mut ours, &ids, options).unwrap().unwrap();
            let log_probabilities = plain.log_softmax(-1, Kind::Float);
            assert!(
                losses.allclose(&-log_probabilities.narrow(1, 1, 1).get(0), 1e-6, 0.0, true),
                "{numbers:?}"
            );
            let _ = torch(&mut plain, &ids, options).unwrap();
            if losses.isfinite().all().int64_value(&[]) == 1 {
                assert!(ours.allclose(&plain, 1e-6, 1e-7, false), "{numbers:?}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let ids = Tensor::from_slice(&(0..61).collect::<Vec<i64>>());
        let of = |threads| {
            tch::set_num_threads(threads);
            let mut logits = noise(1, &[61, 5000]);
            let losses = fused(&mut logits, &ids, options()[1]).unwrap().unwrap();
            (losses, logits)
        };
        assert_eq!(of(1), of(3));
    }
}
