//! The trainer trains what is no language model: a convolutional network on drawn pictures, and a perceptron on points of the plane.
#![allow(clippy::unwrap_used, reason = "a helper of a test panics as the test does")]

use std::collections::BTreeMap;

use ferrotune_trainer::{
    BoxError, Dataset, Mode, OptimizerName, RandomKey, TrainableModel, Trainer, TrainingArguments, evaluate,
};
use tch::{Device, Reduction, TchError, Tensor, nn, nn::Module};

/// Inputs, each with a class.
struct Drawn {
    inputs: Tensor,
    labels: Tensor,
}

struct Batch {
    inputs: Tensor,
    labels: Tensor,
    indices: Vec<i64>,
}

impl Dataset for Drawn {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.labels.numel()
    }

    fn order(&self, epoch: usize) -> Vec<usize> {
        let key = RandomKey::from_seed(epoch as u64);
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&index| key.bits(index as u64));
        order
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch, BoxError> {
        let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let chosen = Tensor::from_slice(&indices);
        let inputs = self.inputs.f_index_select(0, &chosen)?;
        Ok(Batch { inputs, labels: self.labels.f_index_select(0, &chosen)?, indices })
    }
}

struct Classifier {
    parameters: Vec<(String, Tensor)>,
    layers: nn::Sequential,
}

impl Classifier {
    /// Layers over parameters with the same values in every call.
    fn new(layers: impl FnOnce(&nn::VarStore) -> nn::Sequential) -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let layers = layers(&store);
        let parameters: Vec<_> = BTreeMap::from_iter(store.variables()).into_iter().collect();
        for (name, parameter) in &parameters {
            let values = RandomKey::from_seed(5).fold_name(name).uniform(parameter.numel());
            let fan_in = parameter.size()[1..].iter().product::<i64>() as f64;
            let values = (Tensor::from_slice(&values).view_as(parameter) - 0.5) * (12.0 / fan_in).sqrt();
            tch::no_grad(|| parameter.shallow_clone().copy_(&values));
        }
        Self { parameters, layers }
    }

    fn accuracy(&self, data: &Drawn) -> f64 {
        let logits = tch::no_grad(|| self.layers.forward(&data.inputs));
        logits.accuracy_for_logits(&data.labels).double_value(&[])
    }
}

impl TrainableModel for Classifier {
    type Batch = Batch;
    type Error = TchError;

    fn target_tokens(&self, batch: &Batch) -> usize {
        batch.indices.len()
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.indices.len()
    }

    fn loss(&self, batch: &Batch, _mode: Mode) -> Result<Tensor, TchError> {
        let logits = self.layers.forward(&batch.inputs);
        logits.f_cross_entropy_loss(&batch.labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    fn sources(&self, batch: &Batch) -> Vec<String> {
        batch.indices.iter().map(|index| format!("drawn:{index}")).collect()
    }
}

/// Pictures `[count, 1, 8, 8]` of a line in noise: across, down or aslant.
fn lines(count: usize, seed: u64) -> Drawn {
    let picture = |index: usize| {
        let key = RandomKey::from_seed(seed).fold(index as u64);
        let place = (key.bits(1_000) % 8) as usize;
        let is_on = move |pixel: usize| match index % 3 {
            0 => pixel / 8 == place,
            1 => pixel % 8 == place,
            _ => (pixel / 8 + place) % 8 == pixel % 8,
        };
        key.uniform(64).into_iter().enumerate().map(move |(pixel, noise)| noise + f32::from(is_on(pixel)))
    };
    let pixels: Vec<f32> = (0..count).flat_map(picture).collect();
    let labels: Vec<i64> = (0..count).map(|index| index as i64 % 3).collect();
    Drawn { inputs: Tensor::from_slice(&pixels).reshape([-1, 1, 8, 8]), labels: Tensor::from_slice(&labels) }
}

/// Points `[count, 2]` of a square, within a circle of half its area or outside: no straight line tells them apart.
fn points(count: usize, seed: u64) -> Drawn {
    let values = RandomKey::from_seed(seed).uniform(2 * count);
    let inputs = (Tensor::from_slice(&values).reshape([-1, 2]) - 0.5) * 2.0;
    let radii = inputs.square().sum_dim_intlist(1, false, tch::Kind::Float);
    let labels = radii.lt(2.0 / std::f64::consts::PI).to_kind(tch::Kind::Int64);
    Drawn { inputs, labels }
}

fn convolutional() -> Classifier {
    Classifier::new(|store| {
        let padded = nn::ConvConfig { padding: 1, ..Default::default() };
        nn::seq()
            .add(nn::conv2d(store.root() / "first", 1, 6, 3, padded))
            .add_fn(|x| x.relu().max_pool2d_default(2))
            .add(nn::conv2d(store.root() / "second", 6, 12, 3, padded))
            .add_fn(|x| x.relu().max_pool2d_default(2).flatten(1, -1))
            .add(nn::linear(store.root() / "head", 12 * 2 * 2, 3, Default::default()))
    })
}

fn perceptron() -> Classifier {
    Classifier::new(|store| {
        nn::seq()
            .add(nn::linear(store.root() / "hidden", 2, 32, Default::default()))
            .add_fn(Tensor::relu)
            .add(nn::linear(store.root() / "output", 32, 2, Default::default()))
    })
}

/// Trains, and gives the accuracy on data that were not trained on, before and after.
fn accuracies(model: &Classifier, arguments: TrainingArguments, train: &Drawn, unseen: &Drawn) -> (f64, f64) {
    let (before, loss) = (model.accuracy(unseen), evaluate(model, unseen, 64).unwrap().loss);
    let arguments = TrainingArguments { per_device_train_batch_size: 16, ..arguments };
    let outcome = Trainer::new(model, arguments, train).unwrap().with_validation(unseen).train().unwrap();
    let evaluation = outcome.validation.unwrap();
    assert_eq!(evaluation.target_tokens, unseen.len());
    assert!(evaluation.loss < 0.5 * loss, "{loss} -> {}", evaluation.loss);
    (before, model.accuracy(unseen))
}

#[test]
fn a_convolutional_network_learns_pictures() {
    let arguments =
        TrainingArguments { learning_rate: 5e-3, num_train_epochs: 8.0, ..TrainingArguments::default() };
    let (before, after) = accuracies(&convolutional(), arguments, &lines(480, 1), &lines(240, 2));
    assert!(before < 0.6 && after > 0.95, "{before} -> {after}");
}

#[test]
fn a_perceptron_learns_a_border_that_is_not_straight() {
    for (optim, learning_rate) in [(OptimizerName::AdamWTorch, 1e-2), (OptimizerName::Sgd, 0.1)] {
        let optim_args = (optim == OptimizerName::Sgd).then(|| "momentum=0.9".to_owned());
        let arguments = TrainingArguments {
            optim,
            optim_args,
            learning_rate,
            num_train_epochs: 20.0,
            ..TrainingArguments::default()
        };
        let (before, after) = accuracies(&perceptron(), arguments, &points(480, 1), &points(480, 2));
        assert!(before < 0.7 && after > 0.93, "{optim}: {before} -> {after}");
    }
}
