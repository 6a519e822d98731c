//! A small convolutional network learns to tell circles, squares and triangles apart in noisy pictures that this program draws.
//!
//! Nothing in it is about language: `ferrotune-trainer` wants a data set that makes batches and a model that gives their summed loss.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its user")]

use clap::Parser;
use ferrotune_examples::{interrupted, interruption};
use ferrotune_trainer::{
    BoxError, Callback, Dataset, Error, EvaluationRecord, IntervalStrategy, Mode, OptimizerName, RandomKey,
    TrainableModel, Trainer, TrainingArguments,
};
use std::{collections::BTreeMap, process::ExitCode};
use tch::{Device, Reduction, TchError, Tensor, nn, nn::Module};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example cnn
  cargo run --release -p ferrotune-examples --example cnn -- --optim sgd --learning-rate 0.1

Exit codes: 0 done, 1 something failed, 2 an argument is wrong, 130 or 143 it was interrupted.";

/// Train a small convolutional network on pictures that the program draws: circles, squares and triangles.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// `adamw_torch_fused`, `adamw_torch`, or `sgd`, which wants a higher rate.
    #[arg(long, default_value_t)]
    optim: OptimizerName,
    /// The highest learning rate.
    #[arg(long, default_value_t = 0.003)]
    learning_rate: f64,
    /// How often every picture is seen.
    #[arg(long, default_value_t = 6.0)]
    num_train_epochs: f64,
    /// Seed of the pictures and of the first weights.
    #[arg(long, default_value_t = 42)]
    seed: u32,
}

const CLASSES: usize = 3; // circle, square, triangle
const SIDE: i64 = 16;

/// Draws a picture: 1 within the shape, 0 outside, noise everywhere.
fn draw(class: usize, key: RandomKey) -> Vec<f32> {
    let place = key.fold(0).uniform(3);
    let pixel = |(index, noise): (usize, f32)| {
        let x = (index % SIDE as usize) as f32 - (6.0 + 4.0 * place[1]);
        let y = (index / SIDE as usize) as f32 - (6.0 + 4.0 * place[2]);
        let radius = 3.5 + 2.5 * place[0];
        let is_within = match class {
            0 => x.hypot(y) < radius,
            1 => x.abs().max(y.abs()) < 0.9 * radius,
            _ => y < radius && x.abs() < (y + radius) / 2.0,
        };
        f32::from(is_within) + noise - 0.5
    };
    key.fold(1).uniform((SIDE * SIDE) as usize).into_iter().enumerate().map(pixel).collect()
}

/// A data set is a number of examples, an order for each epoch, and a way to make a batch of some of them.
struct Pictures {
    pixels: Tensor, // [pictures, 1, SIDE, SIDE]
    labels: Tensor, // [pictures]
}

impl Pictures {
    fn draw(count: usize, key: RandomKey) -> Self {
        let labels: Vec<i64> = (0..count).map(|index| (index % CLASSES) as i64).collect();
        let pixels: Vec<f32> = (0..count).flat_map(|i| draw(i % CLASSES, key.fold(i as u64))).collect();
        let pixels = Tensor::from_slice(&pixels).reshape([-1, 1, SIDE, SIDE]);
        Self { pixels, labels: Tensor::from_slice(&labels) }
    }
}

struct Batch {
    pixels: Tensor,
    labels: Tensor,
    indices: Vec<i64>,
}

impl Dataset for Pictures {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.labels.numel()
    }

    /// Shuffled by random numbers that depend on the epoch alone.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let (key, mut order) = (RandomKey::from_seed(epoch as u64), Vec::from_iter(0..self.len()));
        order.sort_by_key(|&index| key.bits(index as u64));
        order
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch, BoxError> {
        let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let chosen = Tensor::from_slice(&indices);
        let pixels = self.pixels.f_index_select(0, &chosen)?;
        Ok(Batch { pixels, labels: self.labels.f_index_select(0, &chosen)?, indices })
    }
}

struct Cnn {
    store: nn::VarStore,
    layers: nn::Sequential, // [pictures, 1, SIDE, SIDE] -> logits [pictures, CLASSES]
}

impl Cnn {
    fn new() -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let padded = nn::ConvConfig { padding: 1, ..Default::default() };
        let layers = nn::seq()
            .add(nn::conv2d(store.root() / "first", 1, 8, 3, padded))
            .add_fn(|x| x.relu().max_pool2d_default(2))
            .add(nn::conv2d(store.root() / "second", 8, 16, 3, padded))
            .add_fn(|x| x.relu().max_pool2d_default(2).flatten(1, -1))
            .add(nn::linear(
                store.root() / "head",
                16 * SIDE / 4 * SIDE / 4,
                CLASSES as i64,
                Default::default(),
            ));
        Self { store, layers }
    }

    /// The share of pictures whose class has the highest logit.
    fn accuracy(&self, pictures: &Pictures) -> Result<f64, TchError> {
        let logits = tch::no_grad(|| self.layers.forward(&pictures.pixels));
        logits.accuracy_for_logits(&pictures.labels).f_double_value(&[])
    }
}

impl TrainableModel for Cnn {
    type Batch = Batch;
    type Error = TchError;

    /// What the loss is a sum over: one target a picture.
    fn target_tokens(&self, batch: &Batch) -> usize {
        batch.indices.len()
    }

    fn tokens(&self, batch: &Batch) -> usize {
        self.target_tokens(batch)
    }

    /// The sum, not the mean: the trainer divides by the targets of the whole step. The mode is for dropout and the like.
    fn loss(&self, batch: &Batch, _mode: Mode) -> Result<Tensor, TchError> {
        let logits = self.layers.forward(&batch.pixels);
        logits.f_cross_entropy_loss(&batch.labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        BTreeMap::from_iter(self.store.variables()).into_iter().collect() // the store has them in no order
    }

    fn sources(&self, batch: &Batch) -> Vec<String> {
        batch.indices.iter().map(|index| format!("picture {index}")).collect()
    }
}

/// Prints a line for each epoch.
struct Table;

impl Callback for Table {
    fn on_evaluate(&mut self, record: &EvaluationRecord) -> Result<(), BoxError> {
        let EvaluationRecord { epoch, evaluation, .. } = record;
        let (loss, accuracy) = (evaluation.loss, evaluation.metrics["accuracy"]);
        println!("epoch {epoch:.1}: validation loss {loss:.4}, accuracy {accuracy:.3}");
        Ok(())
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    tch::set_num_threads(1); // more do not pay at this size
    tch::manual_seed(arguments.seed.into()); // the first weights
    let key = RandomKey::from_seed(arguments.seed.into());
    let (train, validation) = (Pictures::draw(1500, key.fold(0)), Pictures::draw(600, key.fold(1)));
    let model = Cnn::new();
    let training = TrainingArguments {
        optim: arguments.optim,
        learning_rate: arguments.learning_rate,
        num_train_epochs: arguments.num_train_epochs,
        eval_strategy: IntervalStrategy::Epoch,
        ..Default::default()
    };
    let outcome = Trainer::new(&model, training, &train)?
        .with_validation(&validation)
        .with_compute_metrics(["accuracy"], || {
            Ok(Some([("accuracy".to_owned(), model.accuracy(&validation)?)].into()))
        })
        .with_callback(Table)
        .with_cancellation(interruption())
        .train()?;
    println!("accuracy on {} unseen pictures: {:.3}", validation.len(), model.accuracy(&validation)?);
    Ok(if outcome.cancelled { interrupted() } else { ExitCode::SUCCESS })
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(if let Some(Error::InvalidArgument { .. }) = error.downcast_ref() { 2 } else { 1 })
    })
}
