//! What a function saves may be stored in another kind.
#![allow(clippy::unwrap_used)] // also in the helpers of tests

use ferrotune_autograd::{
    BackwardContext, BoxedError, ForwardContext, Function, GradientCheck, apply_one, tch,
};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// The test that looks at the memory of the process runs alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// `y = x^3`, whose square is saved in `kind` between two tensors that are saved as they are.
struct Cube {
    kind: Option<Kind>,
}

impl Function for Cube {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> Result<Vec<Tensor>, BoxedError> {
        let x = inputs[0].ok_or("x is required")?;
        let square = x.f_square()?;
        let marks = Tensor::from_slice(&[3i64, 1 << 40]);
        context.save(&[&marks]);
        match self.kind {
            Some(kind) => context.save_as(&[&square], kind)?,
            None => context.save(&[&square]),
        }
        context.save(&[&marks]);
        Ok(vec![square.f_mul(x)?])
    }

    fn backward(
        &self,
        grads: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> Result<Vec<Option<Tensor>>, BoxedError> {
        let ([Some(grad)], [before, square, after]) = (grads, context.saved()) else {
            return Err("one gradient and three saved tensors".into());
        };
        if !before.f_equal(after)? || before.kind() != Kind::Int64 || square.kind() != grad.kind() {
            return Err("a saved tensor comes back as another".into());
        }
        Ok(vec![Some(grad.f_mul(square)?.f_mul_scalar(3.0)?)])
    }
}

fn leaf(kind: Kind) -> Tensor {
    (Tensor::arange(12, (Kind::Double, Device::Cpu)) * 0.37 + 0.1).sin().to_kind(kind).set_requires_grad(true)
}

fn cube(x: &Tensor, kind: Option<Kind>) -> Tensor {
    apply_one(Cube { kind }, &[Some(x)]).unwrap()
}

#[test]
fn gradients_are_those_of_the_rounded_tensor_in_the_kind_that_it_had() {
    let _alone = alone();
    for own in [Kind::Double, Kind::Float, Kind::BFloat16] {
        for stored in [None, Some(Kind::Double), Some(Kind::Float), Some(Kind::BFloat16), Some(Kind::Half)] {
            let x = leaf(own);
            let y = cube(&x, stored);
            y.sum(own).backward();
            assert!(y.equal(&(x.square() * &x)), "the value is not rounded");
            let square = x.detach().square();
            let rounded = stored.map_or(square.copy(), |kind| square.to_kind(kind).to_kind(own));
            assert!(x.grad().equal(&(rounded * 3.0)), "{own:?} as {stored:?}");
        }
    }
}

#[test]
fn differences_agree_as_far_as_the_stored_kind_goes() {
    let _alone = alone();
    let check = |kind, relative_tolerance| {
        let check = GradientCheck { relative_tolerance, ..Default::default() };
        check.run(|inputs| Ok(vec![cube(&inputs[0], Some(kind))]), &[leaf(Kind::Double)])
    };
    check(Kind::Float, 1e-6).unwrap();
    check(Kind::Half, 1e-3).unwrap();
    assert!(check(Kind::BFloat16, 1e-3).is_err());
    check(Kind::BFloat16, 1e-2).unwrap();
}

#[test]
fn a_stored_copy_does_not_change_with_the_tensor() {
    let _alone = alone();
    struct SaveInput;
    impl Function for SaveInput {
        fn forward(
            &mut self,
            inputs: &[Option<&Tensor>],
            context: &mut ForwardContext,
        ) -> Result<Vec<Tensor>, BoxedError> {
            let x = inputs[0].ok_or("x is required")?;
            context.save_as(&[x], Kind::BFloat16)?;
            Ok(vec![x.f_square()?])
        }
        fn backward(
            &self,
            grads: &[Option<Tensor>],
            context: &BackwardContext,
        ) -> Result<Vec<Option<Tensor>>, BoxedError> {
            Ok(vec![grads[0].as_ref().map(|grad| grad * &context.saved()[0] * 2.0)])
        }
    }
    let leaf = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
    let mut x = &leaf * 1.0;
    let y = apply_one(SaveInput, &[Some(&x)]).unwrap();
    let _ = x.fill_(7.0);
    y.sum(Kind::Float).backward();
    assert_eq!(Vec::<f32>::try_from(leaf.grad()).unwrap(), [2.0, 4.0]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_graph_takes_half_the_memory() {
    let _alone = alone();
    let resident = || -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
    };
    // 64 MiB: memory of this size goes back to the system when it is freed.
    let x = Tensor::ones([16 << 20], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let kept = |kind| {
        let before = resident();
        let y = cube(&x, kind);
        let after = resident();
        drop(y);
        after.saturating_sub(before)
    };
    kept(None); // what is set up once
    let (whole, half) = (kept(None), kept(Some(Kind::BFloat16)));
    // The output takes 64 MiB, the saved square as much or half of it.
    assert!((120..140).contains(&whole) && (88..108).contains(&half), "{whole} MiB, {half} MiB");
}
