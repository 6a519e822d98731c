//! One step of Adam with decoupled weight decay.

use crate::{
    cpu::{Change, Kernel, change_all, dispatch, update},
    error::{Error, Result},
};
use tch::Tensor;

/// One parameter, its gradient and its moments.
#[derive(Debug)]
pub struct AdamWParameter<'a> {
    /// `p`, changed in place.
    pub parameter: &'a mut Tensor,
    /// `m`, the decaying mean of the gradients, changed in place.
    pub exp_avg: &'a mut Tensor,
    /// `v`, the decaying mean of their squares, changed in place.
    pub exp_avg_sq: &'a mut Tensor,
    /// `g`.
    pub gradient: &'a Tensor,
    /// Decay of this parameter; zero for none.
    pub weight_decay: f64,
}

/// What is the same for all parameters of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Steps done, this one included.
    pub step: i64,
    /// `lr`.
    pub learning_rate: f64,
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Factor of every gradient: 1, or what clips them.
    pub gradient_scale: f64,
}

/// Moves all parameters by one step, in one pass over memory.
///
/// With `g` the gradient times `gradient_scale` and `t` steps done, this one included,
///
/// ```text
/// p <- p (1 - lr weight_decay)
/// m <- beta1 m + (1 - beta1) g
/// v <- beta2 v + (1 - beta2) g^2
/// p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
/// ```
///
/// f32 parameters on the CPU whose elements lie side by side are all moved in one parallel region; if one is different, all go
/// through libtorch's operators.
///
/// # Shapes
/// Parameter, moments and gradient have one shape.
///
/// # Errors
/// [`Error::Shape`] names what has another shape; then nothing has moved.
///
/// # Examples
/// ```
/// use ferrotune_kernels::{AdamWParameter, AdamWStep, adamw_step, tch::Tensor};
/// let mut parameter = Tensor::from_slice(&[1.0f32, -1.0]);
/// let (mut exp_avg, mut exp_avg_sq) = (parameter.zeros_like(), parameter.zeros_like());
/// let gradient = Tensor::from_slice(&[0.5f32, -2.0]);
/// let step = AdamWStep { step: 1, learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, gradient_scale: 1.0 };
/// let first = AdamWParameter {
///     parameter: &mut parameter,
///     exp_avg: &mut exp_avg,
///     exp_avg_sq: &mut exp_avg_sq,
///     gradient: &gradient,
///     weight_decay: 0.0,
/// };
/// adamw_step(&mut [first], step)?;
/// assert!((parameter - Tensor::from_slice(&[0.9f32, -0.9])).abs().max().double_value(&[]) < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
/// Loshchilov and Hutter 2019, arXiv:1711.05101; `torch.optim.AdamW`.
pub fn adamw_step(parameters: &mut [AdamWParameter<'_>], step: AdamWStep) -> Result<()> {
    for AdamWParameter { parameter, exp_avg, exp_avg_sq, gradient, .. } in &*parameters {
        let expected = parameter.size();
        for (what, tensor) in
            [("exp_avg", &**exp_avg), ("exp_avg_sq", &**exp_avg_sq), ("the gradient", gradient)]
        {
            if tensor.size() != expected {
                return Err(Error::Shape {
                    function: "adamw_step",
                    what: what.to_owned(),
                    found: tensor.size(),
                    expected: format!("that of its parameter, {expected:?}"),
                });
            }
        }
    }
    let _no_grad = tch::no_grad_guard();
    if fused(parameters, step)? { Ok(()) } else { torch(parameters, step) }
}

/// The factors of a step.
#[derive(Clone, Copy)]
struct Factors {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    gradient_scale: f64,
    step_size: f64,
    bias_correction2_sqrt: f64,
}

impl From<AdamWStep> for Factors {
    fn from(step: AdamWStep) -> Self {
        let AdamWStep { beta1, beta2, epsilon, gradient_scale, .. } = step;
        // `powf`, not `powi`: the reference raises a float to a float.
        let steps = step.step as f64;
        let step_size = step.learning_rate / (1.0 - beta1.powf(steps));
        let bias_correction2_sqrt = (1.0 - beta2.powf(steps)).sqrt();
        Self { beta1, beta2, epsilon, gradient_scale, step_size, bias_correction2_sqrt }
    }
}

/// The step in libtorch's operators.
fn torch(parameters: &mut [AdamWParameter<'_>], step: AdamWStep) -> Result<()> {
    let factors = Factors::from(step);
    for AdamWParameter { parameter, exp_avg, exp_avg_sq, gradient, weight_decay } in parameters {
        let scaled;
        let gradient = if factors.gradient_scale == 1.0 {
            *gradient
        } else {
            scaled = gradient.f_mul_scalar(factors.gradient_scale)?;
            &scaled
        };
        if *weight_decay != 0.0 {
            let _ = parameter.f_mul_scalar_(1.0 - step.learning_rate * *weight_decay)?;
        }
        let _ = exp_avg.f_lerp_(gradient, 1.0 - factors.beta1)?;
        // tch has no `value` of addcmul_ and addcdiv_; libtorch multiplies it onto the first factor, which is done here.
        let _ = exp_avg_sq
            .f_mul_scalar_(factors.beta2)?
            .f_addcmul_(&gradient.f_mul_scalar(1.0 - factors.beta2)?, gradient)?;
        let mut denominator = exp_avg_sq.f_sqrt()?;
        let _ = denominator.f_div_scalar_(factors.bias_correction2_sqrt)?.f_add_scalar_(factors.epsilon)?;
        let _ = parameter.f_addcdiv_(&exp_avg.f_mul_scalar(-factors.step_size)?, &denominator)?;
    }
    Ok(())
}

/// [`torch`] in one pass over all parameters; `false` if they do not lie for it.
fn fused(parameters: &mut [AdamWParameter<'_>], step: AdamWStep) -> Result<bool> {
    let factors = Factors::from(step);
    // A gradient may be a view of another layout, such as one number expanded: a copy, for that parameter alone.
    let gradients: Vec<Tensor> =
        parameters.iter().map(|of| Ok(of.gradient.f_contiguous()?)).collect::<Result<_>>()?;
    let keep: Vec<f32> =
        parameters.iter().map(|of| (1.0 - step.learning_rate * of.weight_decay) as f32).collect();
    let mut changes: Vec<Change<3, 1>> = parameters
        .iter_mut()
        .zip(&gradients)
        .map(|(of, gradient)| Change {
            changed: [&mut *of.parameter, &mut *of.exp_avg, &mut *of.exp_avg_sq],
            read: [gradient],
        })
        .collect();
    Ok(change_all(&mut changes, |index, state, [gradient]| {
        dispatch(Move { factors, keep: keep[index], state, gradient });
    }))
}

struct Move<'a> {
    factors: Factors,
    /// What weight decay leaves of the parameter.
    keep: f32,
    /// Parameter and moments.
    state: [&'a mut [f32]; 3],
    gradient: &'a [f32],
}

impl Kernel for Move<'_> {
    // No fused product and sum: each operation rounds as libtorch's does, on every machine.
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Factors { beta1, beta2, epsilon, gradient_scale, step_size, bias_correction2_sqrt } =
            self.factors;
        let (rest1, rest2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let (beta2, epsilon) = (beta2 as f32, epsilon as f32);
        let (scale, step_size, correction) =
            (gradient_scale as f32, step_size as f32, bias_correction2_sqrt as f32);
        update([self.gradient], self.state, |[gradient], [parameter, mean, square]| {
            let gradient = gradient * scale;
            let mean = lerp(mean, gradient, rest1);
            let square = beta2 * square + rest2 * gradient * gradient;
            let denominator = square.sqrt() / correction + epsilon;
            [parameter * self.keep - step_size * mean / denominator, mean, square]
        });
    }
}

/// `(1 - weight) start + weight end`, starting at the end that is nearer: exact at both, and rounded as libtorch's.
#[inline(always)]
fn lerp(start: f32, end: f32, weight: f32) -> f32 {
    let distance = end - start;
    match weight < 0.5 {
        true => start + weight * distance,
        false => end - (1.0 - weight) * distance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{assert_close, noise};
    use tch::Kind;

    /// A parameter, its moments and the gradient of a step.
    struct State {
        tensors: [Tensor; 3],
        weight_decay: f64,
    }

    fn states(sizes: &[Vec<i64>]) -> Vec<State> {
        let of = |(index, size): (usize, &Vec<i64>)| State {
            tensors: [noise(index as u64, size), Tensor::zeros_like(&noise(1, size)), noise(1, size) * 0.0],
            weight_decay: if index % 2 == 0 { 0.0 } else { 0.1 },
        };
        sizes.iter().enumerate().map(of).collect()
    }

    fn run(
        states: &mut [State],
        gradients: &[Tensor],
        step: i64,
        path: impl Fn(&mut [AdamWParameter], AdamWStep) -> Result<bool>,
    ) -> bool {
        let mut parameters: Vec<AdamWParameter> = states
            .iter_mut()
            .zip(gradients)
            .map(|(State { tensors: [parameter, exp_avg, exp_avg_sq], weight_decay }, gradient)| {
                AdamWParameter { parameter, exp_avg, exp_avg_sq, gradient, weight_decay: *weight_decay }
            })
            .collect();
        let options = AdamWStep {
            step,
            learning_rate: 1e-2,
            beta1: if step == 3 { 0.2 } else { 0.9 },
            beta2: 0.99,
            epsilon: 1e-8,
            gradient_scale: if step == 2 { 0.3 } else { 1.0 },
        };
        path(&mut parameters, options).unwrap()
    }

    /// Gradients of all layouts: one number expanded and shared, columns, a transpose.
    fn gradients(step: i64, sizes: &[Vec<i64>]) -> Vec<Tensor> {
        let shared = noise(90 + step as u64, &[1]);
        sizes
            .iter()
            .enumerate()
            .map(|(index, size)| match index {
                0 | 1 => shared.expand(size, false),
                2 => noise(step as u64, &[size[1], size[0]]).tr(),
                3 => noise(step as u64, &[size[0], 2 * size[1]]).narrow(1, 1, size[1]),
                _ => noise(100 * step as u64 + index as u64, size),
            })
            .collect()
    }

    fn sizes() -> Vec<Vec<i64>> {
        vec![vec![7, 5], vec![35], vec![16, 33], vec![3, 5], vec![0, 4], vec![1], vec![300, 101], vec![]]
    }

    #[test]
    fn both_paths_take_the_same_steps() {
        let sizes = sizes();
        let (mut ours, mut plain) = (states(&sizes), states(&sizes));
        for step in 1..=5 {
            let gradients = gradients(step, &sizes);
            assert!(run(&mut ours, &gradients, step, fused));
            run(&mut plain, &gradients, step, |parameters, step| torch(parameters, step).map(|()| true));
            for (ours, plain) in ours.iter().zip(&plain) {
                for (ours, plain) in ours.tensors.iter().zip(&plain.tensors) {
                    if plain.numel() > 0 {
                        assert_close(ours, plain, 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let sizes = sizes();
        let of = |threads| {
            tch::set_num_threads(threads);
            let mut states = states(&sizes);
            for step in 1..=3 {
                assert!(run(&mut states, &gradients(step, &sizes), step, fused));
            }
            states.into_iter().flat_map(|state| state.tensors).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn parameters_that_share_memory_are_left_to_libtorch() {
        for shared in [true, false] {
            let mut states = states(&[vec![40], vec![40]]);
            if shared {
                states[1].tensors[0] = states[0].tensors[0].shallow_clone();
            }
            assert_eq!(run(&mut states, &[noise(5, &[40]), noise(6, &[40])], 1, fused), !shared);
        }
    }

    #[test]
    fn other_kinds_and_layouts_are_moved_by_libtorch() {
        let mut states = states(&[vec![8, 9], vec![4]]);
        states[0].tensors = states[0].tensors.each_ref().map(|tensor| tensor.to_kind(Kind::Double));
        let before = states[0].tensors[0].copy();
        let gradients = [noise(5, &[8, 9]).to_kind(Kind::Double), noise(6, &[4])];
        assert!(!run(&mut states, &gradients, 1, fused));
        assert!(
            run(&mut states, &gradients, 1, |parameters, step| adamw_step(parameters, step).map(|()| true))
        );
        // The first step has the length of the learning rate.
        let moved = (&states[0].tensors[0] - before).abs();
        assert!((moved - 1e-2).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn what_has_another_shape_is_named() {
        let mut states = states(&[vec![8]]);
        let gradients = [noise(5, &[4, 2])];
        run(&mut states, &gradients, 1, |parameters, step| {
            let error = adamw_step(parameters, step).unwrap_err().to_string();
            assert!(error.contains("the gradient has shape [4, 2]") && error.contains("[8]"), "{error}");
            Ok(true)
        });
    }
}
