//! A token model of the tests' own, in plain tch: the next token from the current one.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cell::{Cell, RefCell};

use ferrotune_precision::{ComputeDtype, DtypePolicy};
use ferrotune_trainer::{BoxError, Dataset, ForwardArguments, Mode, RandomKey, TrainableModel};
use tch::{Kind, Tensor};

pub const VOCAB: i64 = 13;

/// Ids, and labels aligned with them (-100: no target); the label at `t + 1` is the target of `t`.
#[derive(Clone, Debug)]
pub struct Example {
    pub input_ids: Vec<i64>,
    pub labels: Vec<i64>,
}

impl Example {
    pub fn new(input_ids: &[i64], prompt: usize) -> Self {
        let mut labels = input_ids.to_vec();
        labels[..prompt].fill(-100);
        Self { input_ids: input_ids.to_vec(), labels }
    }
}

pub struct Batch {
    pub indices: Vec<usize>,
    inputs: Vec<i64>,
    targets: Vec<i64>,
    tokens: usize,
}

pub struct Examples {
    pub examples: Vec<Example>,
    /// Of each epoch; the examples as they lie where there is none.
    pub orders: Vec<Vec<usize>>,
}

impl Examples {
    pub fn new(examples: Vec<Example>) -> Self {
        Self { examples, orders: Vec::new() }
    }

    /// `count` examples of lengths 3 to 9, a prompt of 1 to 3 tokens, and ids that follow a rule.
    pub fn patterned(count: usize) -> Self {
        let example = |index: usize| {
            let ids: Vec<i64> = (0..3 + 2 * (index % 4)).map(|t| ((index + 5 * t) as i64) % VOCAB).collect();
            Example::new(&ids, 1 + index % 3)
        };
        Self::new((0..count).map(example).filter(|e| e.labels.iter().any(|&l| l >= 0)).collect())
    }
}

impl Dataset for Examples {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.examples.len()
    }

    fn order(&self, epoch: usize) -> Vec<usize> {
        self.orders.get(epoch).cloned().unwrap_or_else(|| (0..self.examples.len()).collect())
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch, BoxError> {
        let mut batch = Batch { indices: indices.to_vec(), inputs: vec![], targets: vec![], tokens: 0 };
        for &index in indices {
            let Example { input_ids, labels } = self.examples.get(index).ok_or("no such example")?;
            batch.tokens += input_ids.len();
            for (t, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label >= 0) {
                batch.inputs.push(input_ids[t - 1]);
                batch.targets.push(label);
            }
        }
        Ok(batch)
    }
}

pub struct TokenModel {
    pub parameters: Vec<(String, Tensor)>,
    /// The key of every training forward pass.
    pub keys: RefCell<Vec<RandomKey>>,
    /// Forward passes in `Mode::Eval`.
    pub evaluations: Cell<usize>,
    /// Adds noise of this size, drawn from the key, to the logits in training.
    pub noise: f64,
    /// The loss of batches with this example is NaN.
    pub poisoned: Option<usize>,
    /// What products are computed in.
    pub policy: DtypePolicy,
}

#[derive(Debug, thiserror::Error)]
#[error("tokens of another vocabulary")]
pub struct ModelError;

impl TokenModel {
    pub fn new(parameters: Vec<(String, Tensor)>) -> Self {
        Self {
            parameters,
            keys: RefCell::default(),
            evaluations: Cell::new(0),
            noise: 0.0,
            poisoned: None,
            policy: DtypePolicy::default(),
        }
    }

    /// The same small weights in every call.
    pub fn small() -> Self {
        let shapes: [(&str, &[i64]); 5] = [
            ("embedding.weight", &[VOCAB, 6]),
            ("norm.weight", &[6]),
            ("hidden.weight", &[9, 6]),
            ("hidden.bias", &[9]),
            ("output.weight", &[VOCAB, 9]),
        ];
        let parameter = |(name, shape): (&str, &[i64])| {
            let count = shape.iter().product::<i64>() as usize;
            let values = RandomKey::from_seed(11).fold_name(name).uniform(count);
            (
                name.to_string(),
                ((Tensor::from_slice(&values) - 0.5) * 2.0).reshape(shape).set_requires_grad(true),
            )
        };
        Self::new(shapes.into_iter().map(parameter).collect())
    }

    pub fn get(&self, name: &str) -> &Tensor {
        &self.parameters.iter().find(|(other, _)| other == name).unwrap().1
    }

    pub fn values(&self) -> Vec<(String, Vec<f32>)> {
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
        self.parameters.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
    }
}

impl TrainableModel for TokenModel {
    type Batch = Batch;
    type Error = ModelError;

    fn target_tokens(&self, batch: &Batch) -> usize {
        batch.targets.len()
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.tokens
    }

    fn loss(&self, batch: &Batch, mode: Mode) -> Result<Tensor, ModelError> {
        if batch.inputs.iter().any(|&id| id >= VOCAB) {
            return Err(ModelError);
        }
        let x = Tensor::embedding(
            self.get("embedding.weight"),
            &Tensor::from_slice(&batch.inputs),
            -1,
            false,
            false,
        );
        let x = x * self.get("norm.weight");
        let lower = |tensor: &Tensor| self.policy.to_compute(tensor).map_err(|_| ModelError);
        let x = lower(&x)?.linear(&lower(self.get("hidden.weight"))?, Some(&lower(self.get("hidden.bias"))?));
        let logits = x.tanh().linear(&lower(self.get("output.weight"))?, None::<&Tensor>);
        let mut logits = self.policy.to_full(&logits).map_err(|_| ModelError)?; // [targets, vocab]
        match mode {
            Mode::Train(key) => {
                self.keys.borrow_mut().push(key);
                let noise = Tensor::from_slice(&key.uniform(logits.numel())).view_as(&logits);
                logits += noise * self.noise;
            }
            Mode::Eval => {
                assert!(!logits.requires_grad(), "an evaluation keeps nothing for a backward pass");
                self.evaluations.set(self.evaluations.get() + 1);
            }
        }
        let nll = logits.cross_entropy_loss(
            &Tensor::from_slice(&batch.targets),
            None::<&Tensor>,
            tch::Reduction::Sum,
            -100,
            0.0,
        );
        Ok(if self.poisoned.is_some_and(|index| batch.indices.contains(&index)) {
            nll * f64::NAN
        } else {
            nll
        })
    }

    fn forward_arguments(&self) -> ForwardArguments {
        let compute = self.policy.compute();
        ForwardArguments {
            bf16: compute == ComputeDtype::Bf16,
            fp16: compute == ComputeDtype::F16,
            ..ForwardArguments::default()
        }
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    fn sources(&self, batch: &Batch) -> Vec<String> {
        batch.indices.iter().map(|index| format!("train.jsonl:{}", index + 1)).collect()
    }
}

/// `|a - b| / |b|` over all elements.
pub fn relative_distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let distance: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    (distance / norm.max(1e-30)).sqrt()
}

pub fn parameter(values: &[f32], shape: &[i64]) -> Tensor {
    Tensor::from_slice(values).reshape(shape).to_kind(Kind::Float).set_requires_grad(true)
}

/// A model whose loss is multiplied, at each forward pass, by what `factor` gives.
pub struct Disturbed<F> {
    pub model: TokenModel,
    pub factor: F,
}

impl<F: Fn() -> f64> TrainableModel for Disturbed<F> {
    type Batch = Batch;
    type Error = ModelError;

    fn target_tokens(&self, batch: &Batch) -> usize {
        self.model.target_tokens(batch)
    }
    fn tokens(&self, batch: &Batch) -> usize {
        self.model.tokens(batch)
    }
    fn loss(&self, batch: &Batch, mode: Mode) -> Result<Tensor, ModelError> {
        Ok(self.model.loss(batch, mode)? * (self.factor)())
    }
    fn forward_arguments(&self) -> ForwardArguments {
        self.model.forward_arguments()
    }
    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.model.trainable_parameters()
    }
    fn sources(&self, batch: &Batch) -> Vec<String> {
        self.model.sources(batch)
    }
}
