//! Differentiable functions held to libtorch's own gradients, and their failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in the helpers of tests

use ferrotune_autograd::{
    BackwardContext, Error, ForwardContext, Function, apply, apply_one, live_functions,
};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Tests that count live functions must not run beside others that make some.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// `(a * b + c, sum(a))`, `c` optional.
struct MultiplyAdd;

impl Function for MultiplyAdd {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, Boxed> {
        let (a, b) = (inputs[0].ok_or("a is missing")?, inputs[1].ok_or("b is missing")?);
        context.save(&[a, b]);
        let product = a.f_mul(b)?;
        let first = match inputs[2] {
            Some(c) => product.f_add(c)?,
            None => product,
        };
        Ok(vec![first, a.f_sum(Kind::Double)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> Result<Vec<Option<Tensor>>, Boxed> {
        let [a, b] = context.saved() else { return Err("two tensors were saved".into()) };
        let mut grad_a = a.f_zeros_like()?;
        if let Some(grad) = &grads[0] {
            grad_a = grad_a.f_add(&grad.f_mul(b)?)?;
        }
        if let Some(grad) = &grads[1] {
            grad_a = grad_a.f_add(grad)?;
        }
        let grad_b = match &grads[0] {
            Some(grad) if context.needs_input_grad(1) => Some(grad.f_mul(a)?),
            _ => None,
        };
        let grad_c = grads[0].as_ref().filter(|_| context.needs_input_grad(2)).map(Tensor::shallow_clone);
        Ok(vec![Some(grad_a), grad_b, grad_c])
    }
}

fn leaf(seed: i64) -> Tensor {
    (Tensor::arange(6, (Kind::Double, Device::Cpu)) * 0.7 + seed as f64)
        .sin()
        .reshape([2, 3])
        .set_requires_grad(true)
}

fn grads(of: &[&Tensor]) -> Vec<Tensor> {
    of.iter().map(|tensor| tensor.grad().copy()).collect()
}

#[test]
fn values_and_gradients_equal_the_composed_formula() {
    let _alone = alone();
    for with_c in [true, false] {
        let (a, b, c) = (leaf(1), leaf(2), leaf(3));
        let outputs = apply(MultiplyAdd, &[Some(&a), Some(&b), with_c.then_some(&c)]).unwrap();
        (outputs[0].sin().sum(Kind::Double) + &outputs[1] * 0.3).backward();
        let ours = grads(&[&a, &b, &c][..if with_c { 3 } else { 2 }]);

        let (a, b, c) = (leaf(1), leaf(2), leaf(3));
        let product = &a * &b;
        let first = if with_c { product + &c } else { product };
        (first.sin().sum(Kind::Double) + a.sum(Kind::Double) * 0.3).backward();
        let reference = grads(&[&a, &b, &c][..if with_c { 3 } else { 2 }]);
        for (ours, reference) in ours.iter().zip(&reference) {
            assert!((ours - reference).norm().double_value(&[]) < 1e-14);
        }
    }
}

#[test]
fn gradients_accumulate_over_retained_graphs_and_an_unused_output_has_none() {
    let _alone = alone();
    let (a, b) = (leaf(1), leaf(2));
    let outputs = apply(MultiplyAdd, &[Some(&a), Some(&b), None]).unwrap();
    let loss = outputs[0].sum(Kind::Double);
    Tensor::run_backward(&[&loss], &[&a], true, false);
    let once = Tensor::run_backward(&[&loss], &[&a], true, false).pop().unwrap();
    assert!((&once - &b).norm().double_value(&[]) < 1e-14);
    loss.backward();
    assert!((a.grad() - &b).norm().double_value(&[]) < 1e-14);
}

#[test]
fn nothing_is_recorded_without_gradients_and_everything_is_freed() {
    let _alone = alone();
    let before = live_functions();
    let constant = leaf(1).detach();
    let output = apply(MultiplyAdd, &[Some(&constant), Some(&constant), None]).unwrap();
    assert!(!output[0].requires_grad());
    let (a, b) = (leaf(1), leaf(2));
    tch::no_grad(|| assert!(!apply(MultiplyAdd, &[Some(&a), Some(&b), None]).unwrap()[0].requires_grad()));
    assert_eq!(live_functions(), before);
    let output = apply(MultiplyAdd, &[Some(&a), Some(&b), None]).unwrap();
    assert_eq!(live_functions(), before + 1);
    drop(output);
    assert_eq!(live_functions(), before);
}

enum Fault {
    ForwardError,
    ForwardPanic,
    BackwardError,
    BackwardPanic,
    TooFewGradients,
    BadMark,
}

struct Faulty(Fault);

impl Function for Faulty {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, Boxed> {
        match self.0 {
            Fault::ForwardError => return Err("no such luck".into()),
            Fault::ForwardPanic => panic!("forward fell over"),
            Fault::BadMark => context.mark_non_differentiable(7),
            _ => {}
        }
        Ok(vec![inputs[0].ok_or("x")?.f_neg()?])
    }

    fn backward(&self, _: &[Option<Tensor>], _: &BackwardContext) -> Result<Vec<Option<Tensor>>, Boxed> {
        match self.0 {
            Fault::BackwardError => Err("gradient of number 17 is off".into()),
            Fault::BackwardPanic => panic!("backward fell over"),
            _ => Ok(vec![]),
        }
    }
}

#[test]
fn errors_and_panics_reach_the_caller_with_their_message() {
    let _alone = alone();
    let before = live_functions();
    let x = leaf(1);
    let run = |fault| apply_one(Faulty(fault), &[Some(&x)]);
    assert!(
        matches!(run(Fault::ForwardError), Err(Error::Forward { source, .. }) if source.to_string() == "no such luck")
    );
    assert!(
        matches!(run(Fault::ForwardPanic), Err(Error::Panic { message, .. }) if message == "forward fell over")
    );
    assert!(matches!(run(Fault::BadMark), Err(Error::NoSuchOutput { index: 7, outputs: 1, .. })));
    for (fault, message) in [
        (Fault::BackwardError, "gradient of number 17 is off"),
        (Fault::BackwardPanic, "backward fell over"),
        (Fault::TooFewGradients, "returned 0 gradients for 1 inputs"),
    ] {
        let loss = run(fault).unwrap().sum(Kind::Double);
        let error = loss.f_backward().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(live_functions(), before);
}

#[test]
fn one_output_is_demanded_where_one_is_expected() {
    let _alone = alone();
    let (a, b) = (leaf(1), leaf(2));
    let error = apply_one(MultiplyAdd, &[Some(&a), Some(&b), None]).unwrap_err();
    assert!(matches!(error, Error::OutputCount { found: 2, .. }), "{error}");
}

#[test]
fn a_second_derivative_is_refused_with_a_reason() {
    let _alone = alone();
    let (a, b) = (leaf(1), leaf(2));
    let outputs = apply(MultiplyAdd, &[Some(&a), Some(&b), None]).unwrap();
    let gradient =
        Tensor::run_backward(&[&outputs[0].square().sum(Kind::Double)], &[&a], true, true).pop().unwrap();
    let error = gradient.sum(Kind::Double).f_backward().unwrap_err().to_string();
    assert!(error.contains("differentiable once"), "{error}");
}

#[test]
fn a_saved_tensor_changed_in_place_is_noticed() {
    let _alone = alone();
    let (a, b) = (leaf(1), leaf(2));
    let mut c = &a * 1.0;
    let outputs = apply(MultiplyAdd, &[Some(&c), Some(&b), None]).unwrap();
    let _ = c.fill_(0.0);
    let error = outputs[0].sum(Kind::Double).f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

struct Counted;

impl Function for Counted {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, Boxed> {
        context.mark_non_differentiable(1);
        let x = inputs[0].ok_or("x")?;
        Ok(vec![x.f_mul_scalar(2.0)?, Tensor::from(x.numel() as f64)])
    }

    fn backward(&self, grads: &[Option<Tensor>], _: &BackwardContext) -> Result<Vec<Option<Tensor>>, Boxed> {
        Ok(vec![grads[0].as_ref().map(|grad| grad.f_mul_scalar(2.0)).transpose()?])
    }
}

#[test]
fn an_output_may_be_marked_as_having_no_gradient() {
    let _alone = alone();
    let x = leaf(1);
    let outputs = apply(Counted, &[Some(&x)]).unwrap();
    assert!(outputs[0].requires_grad());
    assert!(!outputs[1].requires_grad());
}

#[test]
fn parallel_ranges_cover_everything_once_and_a_panic_comes_back() {
    let counts: Vec<std::sync::atomic::AtomicU8> = (0..10_007).map(|_| 0.into()).collect();
    ferrotune_autograd::parallel_for(counts.len(), 16, |range| {
        for count in &counts[range] {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    assert!(counts.into_iter().all(|count| count.into_inner() == 1));
    ferrotune_autograd::parallel_for(0, 16, |_| panic!("nothing to do"));
    let panic = std::panic::catch_unwind(|| ferrotune_autograd::parallel_for(4, 1, |_| panic!("stumbled")))
        .unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "stumbled");
}
