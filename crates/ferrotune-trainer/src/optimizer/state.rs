//! An optimizer's state as named tensors.

use tch::Tensor;

use crate::error::Context;
use crate::{Error, Result};

/// What an optimizer remembers, for a checkpoint: [`Optimizer::state`](crate::Optimizer::state) gives it, and
/// [`Optimizer::load_state`](crate::Optimizer::load_state) of one that was made for the same parameters takes it.
///
/// The tensors are copies, under the names `PARAMETER.KIND`: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of SGD with
/// momentum (none without). Their order, names, shapes and dtypes (`f32`) do not depend on the steps done, so that a file of them
/// can be written as `safetensors` as they are, with `step` beside them.
#[derive(Debug)]
pub struct OptimizerState {
    /// Updates done.
    pub step: usize,
    /// The tensors, by unique names.
    pub tensors: Vec<(String, Tensor)>,
}

impl OptimizerState {
    /// Refuses a tensor that is not one of `kinds` of a parameter.
    pub(super) fn check_names(&self, parameters: &[(String, Tensor)], kinds: &[&str]) -> Result<()> {
        let known = |name: &str| {
            parameters.iter().any(|(parameter, _)| {
                let kind = name.strip_prefix(parameter.as_str()).and_then(|rest| rest.strip_prefix('.'));
                kind.is_some_and(|kind| kinds.contains(&kind))
            })
        };
        let Some((unknown, _)) = self.tensors.iter().find(|(name, _)| !known(name)) else { return Ok(()) };
        let expected = match kinds {
            [] => "no tensors: this optimizer keeps none".to_owned(),
            kinds => format!("the name of a parameter and one of {}", kinds.join(", ")),
        };
        Err(mismatch(unknown, expected, "no such parameter".into()))
    }

    /// A copy of the tensor of this kind for each parameter, on its device.
    pub(super) fn copies(&self, parameters: &[(String, Tensor)], kind: &str) -> Result<Vec<Tensor>> {
        let described = |tensor: &Tensor| -> Result<String> {
            let kind = tensor.f_kind().context("reading the optimizer's state")?;
            Ok(format!("{kind:?} {:?}", tensor.size()))
        };
        let copy = |(name, parameter): &(String, Tensor)| {
            let name = format!("{name}.{kind}");
            let (_, tensor) = self
                .tensors
                .iter()
                .find(|(other, _)| *other == name)
                .ok_or_else(|| mismatch(&name, "a tensor of this name".into(), "none".into()))?;
            let (expected, found) = (described(parameter)?, described(tensor)?);
            if expected != found {
                return Err(mismatch(&name, expected, found));
            }
            let here = tensor.f_to_device(parameter.device()).context("reading the optimizer's state")?;
            // A copy, even where it is on the right device already: the state moves in place.
            here.f_detach_copy().context("reading the optimizer's state")
        };
        parameters.iter().map(copy).collect()
    }
}

fn mismatch(tensor: &str, expected: String, found: String) -> Error {
    Error::StateMismatch { what: "optimizer state", tensor: tensor.to_owned(), expected, found }
}
