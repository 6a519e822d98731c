//! Output head and cross-entropy in one function that never keeps the logits.

use crate::{
    error::{Error, Result, check_shape},
    frozen::FrozenWeight,
};
use ferrotune_autograd::{BackwardContext, BoxedError, ForwardContext, Function, apply_one};
use tch::{Kind, Tensor};

/// Number of logits that exist at one time: 16 MiB in f32.
const CHUNK_LOGITS: i64 = 4 << 20;

/// Negative log-likelihood of each target under a frozen output head.
///
/// `nll_t = logsumexp(W h_t) - (W h_t)[id_t]`, computed in f32. The logits of a chunk of rows exist only while that chunk is
/// computed; since the head is frozen, the gradient with respect to `h` is formed on the way and nothing else is kept.
///
/// # Shapes
/// - `hidden`: `[targets, hidden_size]`, the rows that predict a target; `weight`: `[vocab_size, hidden_size]`
/// - `ids`: `[targets]`, int64, on the same device
/// - returns `[targets]` in f32
///
/// # Errors
/// [`Error::Shape`] where two things do not fit; [`Error::TargetOutOfRange`] for an id that the vocabulary does not have.
pub fn linear_cross_entropy(hidden: &Tensor, weight: &FrozenWeight, ids: &Tensor) -> Result<Tensor> {
    const NAME: &str = "linear_cross_entropy";
    check_shape(NAME, "hidden", hidden, &[-1, weight.in_features()])?;
    check_shape(NAME, "ids", ids, &[hidden.size()[0]])?;
    if ids.numel() > 0 {
        for id in [ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?] {
            if !(0..weight.out_features()).contains(&id) {
                return Err(Error::TargetOutOfRange { id, vocabulary: weight.out_features() });
            }
        }
    }
    Ok(apply_one(LinearCrossEntropy { weight: weight.shallow_clone() }, &[Some(hidden), Some(ids)])?)
}

struct LinearCrossEntropy {
    weight: FrozenWeight,
}

impl Function for LinearCrossEntropy {
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError> {
        let (hidden, ids) = (inputs[0].ok_or("hidden is required")?, inputs[1].ok_or("ids are required")?);
        let targets = hidden.size()[0];
        let rows_per_chunk = (CHUNK_LOGITS / self.weight.out_features()).max(1);
        let (mut losses, mut grads) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < targets {
            let rows = rows_per_chunk.min(targets - start);
            let ids = ids.f_narrow(0, start, rows)?.f_unsqueeze(1)?;
            let logits = self.weight.forward_product(&hidden.f_narrow(0, start, rows)?)?;
            let mut log_probabilities = logits.f_log_softmax(-1, Kind::Float)?;
            drop(logits);
            losses.push(log_probabilities.f_gather(1, &ids, false)?.f_squeeze_dim(1)?.f_neg()?);
            if context.needs_input_grad(0) {
                // d nll / d logits = softmax - one_hot
                let mut probabilities = log_probabilities.f_exp_()?;
                let minus_one = Tensor::f_full([rows, 1], -1.0, (Kind::Float, ids.device()))?;
                let _ = probabilities.f_scatter_add_(1, &ids, &minus_one)?;
                grads.push(self.weight.input_gradient(&probabilities.f_to_kind(hidden.kind())?)?);
            }
            start += rows;
        }
        if targets == 0 {
            return Ok(vec![Tensor::f_zeros([0], (Kind::Float, hidden.device()))?]);
        }
        if !grads.is_empty() {
            context.save(&[&Tensor::f_cat(&grads, 0)?]);
        }
        Ok(vec![Tensor::f_cat(&losses, 0)?])
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
