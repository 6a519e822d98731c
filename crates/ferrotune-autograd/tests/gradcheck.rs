//! The gradient check accepts what is right and names what is wrong.
#![allow(clippy::unwrap_used, clippy::panic)] // also in the helpers of tests

use ferrotune_autograd::{
    BackwardContext, BoxedError, Error, ForwardContext, Function, GradientCheck, apply,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind, Tensor};

fn leaf(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7 + 0.3)
        .sin()
        .reshape(shape)
        .set_requires_grad(true)
}

/// `(x y, sum(x))`, its gradient of `x` wrong in one element if told so.
struct Product {
    spoil: bool,
}

impl Function for Product {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, BoxedError> {
        let (x, y) = (inputs[0].ok_or("x")?, inputs[1].ok_or("y")?);
        context.save(&[x, y]);
        Ok(vec![x.f_mul(y)?, x.f_sum(Kind::Double)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> Result<Vec<Option<Tensor>>, BoxedError> {
        let (x, y) = (&context.saved()[0], &context.saved()[1]);
        let mut grad_x = x.f_zeros_like()?;
        let mut grad_y = None;
        if let Some(grad) = &grads[0] {
            grad_x = grad_x.f_add(&grad.f_mul(y)?)?;
            grad_y = Some(grad.f_mul(x)?);
        }
        if let Some(grad) = &grads[1] {
            grad_x = grad_x.f_add(grad)?;
        }
        if self.spoil && grad_x.numel() > 4 {
            let _ = grad_x.f_reshape([-1])?.f_narrow(0, 4, 1)?.f_mul_scalar_(1.01)?;
        }
        Ok(vec![Some(grad_x), grad_y])
    }
}

fn product(spoil: bool) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>, BoxedError> {
    move |inputs| Ok(apply(Product { spoil }, &[Some(&inputs[0]), Some(&inputs[1])])?)
}

#[test]
fn right_gradients_pass_with_any_strides_and_without_elements() {
    let check = GradientCheck::default();
    check.run(product(false), &[leaf(&[2, 3]), leaf(&[2, 3])]).unwrap();
    let transposed = leaf(&[3, 2]).detach().transpose(0, 1).set_requires_grad(true);
    let sliced = leaf(&[2, 6]).detach().slice(1, 0, 6, 2).set_requires_grad(true);
    assert!(!transposed.is_contiguous() && !sliced.is_contiguous());
    check.run(product(false), &[transposed, sliced]).unwrap();
    check.run(product(false), &[leaf(&[0, 3]), leaf(&[0, 3])]).unwrap();
    // An input without a gradient is passed on as it is.
    check.run(product(false), &[leaf(&[2, 3]), leaf(&[2, 3]).detach()]).unwrap();
}

#[test]
fn a_wrong_element_is_named() {
    let error = GradientCheck::default().run(product(true), &[leaf(&[2, 3]), leaf(&[2, 3])]).unwrap_err();
    let Error::GradientMismatch { input, input_element, output, output_element, analytic, numerical } = error
    else {
        panic!("{error}");
    };
    assert_eq!((input, input_element, output, output_element), (0, 4, 0, 4));
    assert!((analytic / numerical - 1.01).abs() < 1e-6, "{analytic} {numerical}");
    // A looser check lets it pass.
    GradientCheck { relative_tolerance: 0.02, ..GradientCheck::default() }
        .run(product(true), &[leaf(&[2, 3]), leaf(&[2, 3])])
        .unwrap();
}

#[test]
fn a_gradient_that_is_not_a_number_is_wrong() {
    let root = |inputs: &[Tensor]| Ok(vec![inputs[0].f_sqrt()?]);
    let x = Tensor::from_slice(&[1.0, -1.0]).set_requires_grad(true);
    assert!(matches!(GradientCheck::default().run(root, &[x]), Err(Error::GradientMismatch { .. })));
}

/// `y = x`, and a gradient that grows with each call.
struct Drifting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

impl Function for Drifting {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        _: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, BoxedError> {
        Ok(vec![inputs[0].ok_or("x")?.f_alias_copy()?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        _: &BackwardContext,
    ) -> Result<Vec<Option<Tensor>>, BoxedError> {
        let scale = 1.0 + 1e-9 * CALLS.fetch_add(1, Ordering::Relaxed) as f64;
        Ok(vec![grads[0].as_ref().map(|grad| grad * scale)])
    }
}

#[test]
fn a_backward_that_changes_from_call_to_call_is_told() {
    let drifting = |inputs: &[Tensor]| Ok(apply(Drifting, &[Some(&inputs[0])])?);
    let error = GradientCheck::default().run(drifting, &[leaf(&[3])]).unwrap_err();
    assert!(matches!(error, Error::GradientChanged { input: 0, output: 0 }), "{error}");
}

#[test]
fn what_cannot_be_checked_says_why() {
    let check =
        |inputs: &[Tensor]| GradientCheck::default().run(product(false), inputs).unwrap_err().to_string();
    assert!(check(&[leaf(&[2]).detach(), leaf(&[2]).detach()]).contains("no input requires a gradient"));
    let single = leaf(&[2]).detach().to_kind(Kind::Float).set_requires_grad(true);
    assert!(check(&[leaf(&[2]), single]).contains("input 1 is Float"));
    let cut = |inputs: &[Tensor]| Ok(vec![inputs[0].detach()]);
    let error = GradientCheck::default().run(cut, &[leaf(&[2])]).unwrap_err();
    assert!(
        matches!(&error, Error::GradientCheck { reason } if reason.contains("no output depends")),
        "{error}"
    );
    let failing = |_: &[Tensor]| Err("no".into());
    let error = GradientCheck::default().run(failing, &[leaf(&[2])]).unwrap_err();
    assert!(matches!(error, Error::Forward { .. }), "{error}");
}
