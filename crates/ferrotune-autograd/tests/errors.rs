//! What libtorch refuses to record.

use ferrotune_autograd::{BackwardContext, BoxedError, Error, ForwardContext, Function, apply_one};
use tch::{Device, Kind, Tensor};

/// Gives back a tensor that is none.
struct Nothing;

impl Function for Nothing {
    fn forward(&mut self, _: &[Option<&Tensor>], _: &mut ForwardContext) -> Result<Vec<Tensor>, BoxedError> {
        Ok(vec![Tensor::new()])
    }

    fn backward(&self, _: &[Option<Tensor>], _: &BackwardContext) -> Result<Vec<Option<Tensor>>, BoxedError> {
        Ok(vec![None])
    }
}

#[test]
fn a_tensor_that_is_none_cannot_be_recorded() {
    let x = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let result = apply_one(Nothing, &[Some(&x)]);
    assert!(
        matches!(result, Err(Error::Attach { function, .. }) if function.contains("Nothing")),
        "{result:?}"
    );
}
