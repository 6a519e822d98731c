//! The loss on data that is not trained on.

use std::collections::BTreeMap;
use std::time::Instant;

use ferrotune_kernels::Mode;
use serde::Serialize;

use crate::error::{Context, Place};
use crate::{Dataset, Error, Result, TrainableModel};

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Negative log-likelihood per target token.
    pub loss: f64,
    /// Its sum over all target tokens.
    pub nll: f64,
    /// Target tokens.
    pub target_tokens: usize,
    /// Examples.
    pub examples: usize,
    /// Seconds it took, what was measured besides included.
    pub seconds: f64,
    /// What was measured besides, by name; see [`Trainer::with_compute_metrics`](crate::Trainer::with_compute_metrics).
    pub metrics: BTreeMap<String, f64>,
}

impl Evaluation {
    /// The metrics that every evaluation has.
    pub const METRICS: [&str; 2] = ["loss", "perplexity"];

    /// The value of one of [`Evaluation::METRICS`], or of what was measured besides.
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "loss" => Some(self.loss),
            "perplexity" => Some(self.perplexity()),
            _ => self.metrics.get(name).copied(),
        }
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// The loss of `model` on the whole of `dataset`: `sum nll / sum targets`, in batches of `batch_size` examples, with nothing random.
///
/// Every target token weighs the same, so the result does not depend on the batch size. (The evaluation loss of `transformers.Trainer`
/// is a mean of batch means, which does.)
///
/// # Errors
/// [`Error::EmptyDataset`], [`Error::InvalidArgument`] for a batch size of 0, [`Error::UnfitLoss`], [`Error::NoTargets`],
/// [`Error::NonFiniteLoss`] with the examples of the batch, and whatever the model and
/// the data set cannot do.
pub fn evaluate<M: TrainableModel>(
    model: &M,
    dataset: &dyn Dataset<Batch = M::Batch>,
    batch_size: usize,
) -> Result<Evaluation> {
    // Never cancelled, it gives no `None`.
    evaluate_unless(model, dataset, batch_size, &mut |_| Ok(true))?
        .ok_or(Error::NoTargets { place: Box::default() })
}

/// As [`evaluate`], but tells before each batch how many examples are done, and asks whether it goes on; `None` if not.
pub(crate) fn evaluate_unless<M: TrainableModel>(
    model: &M,
    dataset: &dyn Dataset<Batch = M::Batch>,
    batch_size: usize,
    goes_on: &mut dyn FnMut(usize) -> Result<bool>,
) -> Result<Option<Evaluation>> {
    let examples = dataset.len();
    if examples == 0 {
        return Err(Error::EmptyDataset { split: "validation" });
    }
    if batch_size == 0 {
        return Err(Error::InvalidArgument {
            field: "per_device_eval_batch_size",
            found: "0".into(),
            expected: "a whole number of at least 1",
        });
    }
    let start = Instant::now();
    let _guard = tch::no_grad_guard();
    let (mut nll, mut target_tokens) = (0.0, 0);
    let indices: Vec<usize> = (0..examples).collect();
    for (batch, chunk) in indices.chunks(batch_size).enumerate() {
        if !goes_on(batch * batch_size)? {
            return Ok(None);
        }
        let batch = dataset.batch(chunk).map_err(|source| Error::Dataset {
            split: "validation",
            indices: chunk.to_vec(),
            source,
        })?;
        let targets = model.target_tokens(&batch);
        if targets == 0 {
            continue;
        }
        let place = || Box::new(Place { step: None, examples: model.sources(&batch) });
        let loss = model
            .loss(&batch, Mode::Eval)
            .map_err(|source| Error::Model { place: place(), source: source.into() })?;
        if loss.numel() != 1 {
            return Err(Error::UnfitLoss {
                expected: "one number",
                found: format!("a tensor of shape {:?}", loss.size()),
                place: place(),
            });
        }
        let loss = loss
            .f_sum(tch::Kind::Double)
            .and_then(|sum| sum.f_double_value(&[]))
            .context("reading the loss")?;
        if !loss.is_finite() {
            return Err(Error::NonFiniteLoss { loss, place: place() });
        }
        nll += loss;
        target_tokens += targets;
    }
    if target_tokens == 0 {
        return Err(Error::NoTargets { place: Box::default() });
    }
    Ok(Some(Evaluation {
        loss: nll / target_tokens as f64,
        nll,
        target_tokens,
        examples,
        seconds: start.elapsed().as_secs_f64(),
        metrics: BTreeMap::new(),
    }))
}
