//! A checkpointed function equals itself, values and gradients, to the last bit, and keeps nothing of its inside.
#![allow(clippy::unwrap_used, clippy::panic)] // also in the helpers of tests

use ferrotune_autograd::{
    BackwardContext, BoxedError, Error, ForwardContext, Function, GradientCheck, apply_one, checkpoint,
    live_functions,
};
use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tch::{Device, Kind, Tensor};

/// Tests that count live functions must not run beside others that make some.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn leaf(seed: i64, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let values = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.37 + seed as f64).sin();
    values.reshape(shape).set_requires_grad(true)
}

/// `x^2` with a backward of its own.
struct Square;

impl Function for Square {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, BoxedError> {
        let x = inputs[0].ok_or("x")?;
        context.save(&[x]);
        Ok(vec![x.f_square()?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> Result<Vec<Option<Tensor>>, BoxedError> {
        let x = &context.saved()[0];
        Ok(vec![grads[0].as_ref().map(|grad| grad * x * 2.0)])
    }
}

/// `(tanh(x W^T)^2 + y, index of the largest)`: two inputs, a weight of its own, an output without a gradient.
fn layer(weight: &Tensor) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>, BoxedError> + Send + use<> {
    let weight = weight.shallow_clone();
    move |inputs| {
        let hidden = apply_one(Square, &[Some(&inputs[0].f_linear(&weight, None::<&Tensor>)?.f_tanh()?)])?;
        let sum = hidden.f_add(&inputs[1])?;
        let largest = sum.f_argmax(1, false)?;
        Ok(vec![sum, largest])
    }
}

type Layer = Box<dyn Fn(&[&Tensor], &Tensor) -> Vec<Tensor>>;

fn gradients(run: &Layer) -> Vec<Tensor> {
    let (x, y, weight) = (leaf(1, &[3, 5]), leaf(2, &[3, 4]), leaf(3, &[4, 5]));
    let outputs = run(&[&x, &y], &weight);
    assert!(!outputs[1].requires_grad());
    (outputs[0].sin() * &y).sum(Kind::Float).backward();
    [outputs[0].detach()].into_iter().chain([&x, &y, &weight].map(Tensor::grad)).collect()
}

fn assert_equal(ours: &[Tensor], reference: &[Tensor]) {
    assert_eq!(ours.len(), reference.len());
    for (index, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        assert!(ours.equal(reference), "{index}: {ours} instead of {reference}");
    }
}

#[test]
fn values_and_gradients_are_those_of_the_function_itself() {
    let _alone = alone();
    let plain: Layer = Box::new(|inputs, weight| {
        layer(weight)(&inputs.iter().map(|tensor| tensor.shallow_clone()).collect::<Vec<_>>()).unwrap()
    });
    let kept: Layer = Box::new(|inputs, weight| checkpoint(layer(weight), inputs, &[weight]).unwrap());
    let nested: Layer = Box::new(|inputs, weight| {
        let captured = weight.shallow_clone();
        let outer = move |inputs: &[Tensor]| -> Result<Vec<Tensor>, BoxedError> {
            Ok(checkpoint(layer(&captured), &inputs.iter().collect::<Vec<_>>(), &[&captured])?)
        };
        checkpoint(outer, inputs, &[weight]).unwrap()
    });
    let reference = gradients(&plain);
    assert!(reference.iter().all(|tensor| tensor.abs().sum(Kind::Float).double_value(&[]) > 0.0));
    assert_equal(&gradients(&kept), &reference);
    assert_equal(&gradients(&nested), &reference);
}

#[test]
fn only_the_checkpoint_itself_is_alive_between_forward_and_backward() {
    let _alone = alone();
    let before = live_functions();
    let (x, y, weight) = (leaf(1, &[3, 5]), leaf(2, &[3, 4]), leaf(3, &[4, 5]));
    let outputs = checkpoint(layer(&weight), &[&x, &y], &[&weight]).unwrap();
    assert_eq!(live_functions(), before + 1);
    outputs[0].sum(Kind::Float).backward();
    drop(outputs);
    assert_eq!(live_functions(), before);
}

#[test]
fn it_runs_once_without_gradients_and_twice_with_them() {
    let _alone = alone();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = |calls: &Arc<AtomicUsize>| {
        let calls = calls.clone();
        move |inputs: &[Tensor]| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(vec![inputs[0].f_exp()?])
        }
    };
    let x = leaf(1, &[3]);
    let outputs = tch::no_grad(|| checkpoint(counted(&calls), &[&x], &[]).unwrap());
    assert!(!outputs[0].requires_grad() && calls.load(Ordering::Relaxed) == 1);
    let outputs = checkpoint(counted(&calls), &[&x], &[]).unwrap();
    outputs[0].sum(Kind::Float).backward();
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[test]
fn gradients_accumulate_and_those_that_nobody_wants_are_not_made() {
    let _alone = alone();
    let (x, y, weight) = (leaf(1, &[3, 5]), leaf(2, &[3, 4]).detach(), leaf(3, &[4, 5]));
    for _ in 0..2 {
        checkpoint(layer(&weight), &[&x, &y], &[&weight]).unwrap()[0].sum(Kind::Float).backward();
    }
    let twice = weight.grad().copy();
    let _ = weight.grad().zero_();
    layer(&weight)(&[x.shallow_clone(), y.shallow_clone()]).unwrap()[0].sum(Kind::Float).backward();
    assert!(twice.equal(&(weight.grad() * 2.0)));
    assert!(!y.grad().defined());
}

#[test]
fn gradcheck_accepts_it() {
    let _alone = alone();
    let x = leaf(1, &[2, 3]).detach().to_kind(Kind::Double).set_requires_grad(true);
    let function = |inputs: &[Tensor]| Ok(vec![inputs[0].f_softmax(-1, None::<Kind>)?.f_log1p()?]);
    let run = |inputs: &[Tensor]| Ok(checkpoint(function, &[&inputs[0]], &[])?);
    GradientCheck::default().run(run, &[x]).unwrap();
}

#[test]
fn failures_of_both_runs_reach_the_caller() {
    let _alone = alone();
    let x = leaf(1, &[3]);
    let fails = |_: &[Tensor]| Err("not today".into());
    let error = checkpoint(fails, &[&x], &[]).unwrap_err();
    assert!(matches!(&error, Error::Forward { source, .. } if source.to_string() == "not today"), "{error}");
    let first = Cell::new(true);
    let fails_later = move |inputs: &[Tensor]| {
        if first.replace(false) { Ok(vec![inputs[0].f_exp()?]) } else { Err("not again".into()) }
    };
    let outputs = checkpoint(fails_later, &[&x], &[]).unwrap();
    let error = outputs[0].sum(Kind::Float).f_backward().unwrap_err().to_string();
    assert!(error.contains("not again"), "{error}");
}
