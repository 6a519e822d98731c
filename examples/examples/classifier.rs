//! A plain text classifier: which language is a line written in? Its letters in groups of one to three are hashed into a vector, and one
//! linear layer makes logits of it.
//!
//! It shows how to write a loss of one's own. The trainer only wants a sum over the targets, whatever is summed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its user")]

use clap::{Parser, ValueEnum};
use ferrotune_examples::{count, interrupted, interruption};
use ferrotune_trainer::{
    BoxError, Dataset, Error, Mode, RandomKey, TrainableModel, Trainer, TrainingArguments,
};
use std::process::ExitCode;
use tch::{Device, Kind, TchError, Tensor};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example classifier
  cargo run --release -p ferrotune-examples --example classifier -- --loss focal --text \"Wo finde ich hier einen guten Bäcker?\"

Exit codes: 0 done, 1 something failed, 2 an argument is wrong, 130 or 143 it was interrupted.";

/// Train a classifier that tells English, German, French and Spanish apart, on some hundred lines that come with it.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// What is made small.
    #[arg(long, value_enum, default_value_t = LossName::CrossEntropy)]
    loss: LossName,
    /// A line whose language is to be told after the training; may be given several times.
    #[arg(long)]
    text: Vec<String>,
    /// The highest learning rate.
    #[arg(long, default_value_t = 0.1)]
    learning_rate: f64,
    /// How often every line is seen.
    #[arg(long, default_value_t = 20.0)]
    num_train_epochs: f64,
    /// Lines of a step.
    #[arg(long, default_value_t = 8, value_parser = count())]
    per_device_train_batch_size: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum LossName {
    /// The negative log-likelihood: `-log p`.
    CrossEntropy,
    /// `-(1 - p)^2 log p`: what is already told with certainty counts little (Lin et al. 2017, "Focal loss for dense object detection").
    Focal,
    /// `-w log p`, with a higher weight `w` for a language that has fewer lines.
    Weighted,
}

const LANGUAGES: [&str; 4] = ["en", "de", "fr", "es"];
/// A language, a tab, a line.
const LINES: &str = include_str!("../data/languages.tsv");
const BUCKETS: usize = 2048;

/// How often each group of one to three letters occurs, by its hash, as a vector of length 1.
fn features(line: &str) -> Vec<f32> {
    let letters: Vec<char> = format!(" {} ", line.to_lowercase()).chars().collect();
    let mut counts = vec![0.0; BUCKETS];
    for group in (1..=3).flat_map(|size| letters.windows(size)) {
        let hash = RandomKey::from_seed(0).fold_name(&String::from_iter(group)).bits(0);
        counts[hash as usize % BUCKETS] += 1.0;
    }
    let norm = counts.iter().map(|count: &f32| count * count).sum::<f32>().sqrt();
    counts.into_iter().map(|count| count / norm).collect()
}

/// Lines and their languages, each with its number in the file.
#[derive(Default)]
struct Lines(Vec<(usize, &'static str, usize)>);

/// The lines to train on and, every fourth of each language, those to test on.
fn split() -> Result<(Lines, Lines), String> {
    let (mut train, mut test) = (Lines::default(), Lines::default());
    let mut seen = [0; LANGUAGES.len()];
    for (number, line) in (1..).zip(LINES.lines()) {
        let (name, line) = line.split_once('\t').ok_or_else(|| format!("line {number} has no tab"))?;
        let language = LANGUAGES.iter().position(|known| *known == name);
        let language = language.ok_or_else(|| format!("line {number}: no language {name:?}"))?;
        seen[language] += 1;
        let part = if seen[language] % 4 == 0 { &mut test } else { &mut train };
        part.0.push((number, line, language));
    }
    Ok((train, test))
}

struct Batch {
    features: Tensor, // [lines, BUCKETS]
    labels: Tensor,   // [lines]
    numbers: Vec<usize>,
}

impl Dataset for Lines {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.0.len()
    }

    /// Shuffled by random numbers that depend on the epoch alone.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let (key, mut order) = (RandomKey::from_seed(epoch as u64), Vec::from_iter(0..self.len()));
        order.sort_by_key(|&index| key.bits(index as u64));
        order
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch, BoxError> {
        let chosen: Vec<_> = indices.iter().map(|&index| self.0[index]).collect();
        let values: Vec<f32> = chosen.iter().flat_map(|(_, line, _)| features(line)).collect();
        let labels: Vec<i64> = chosen.iter().map(|&(.., language)| language as i64).collect();
        Ok(Batch {
            features: Tensor::from_slice(&values).f_reshape([-1, BUCKETS as i64])?,
            labels: Tensor::from_slice(&labels),
            numbers: chosen.iter().map(|&(number, ..)| number).collect(),
        })
    }
}

/// A loss: from the log-probability of each line's own language and its label, both `[lines]`, the loss of each line.
type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor, TchError>>;

fn loss(name: LossName, train: &Lines) -> Loss {
    match name {
        LossName::CrossEntropy => Box::new(|log_p, _| log_p.f_neg()),
        LossName::Focal => Box::new(|log_p, _| {
            let doubt = log_p.f_exp()?.f_neg()?.f_add_scalar(1.0)?;
            doubt.f_square()?.f_mul(log_p)?.f_neg()
        }),
        LossName::Weighted => {
            // The weights of all lines have a mean of 1, so that the learning rate need not change.
            let lines_of = |language| train.0.iter().filter(|line| line.2 == language).count();
            let mean = train.len() as f32 / LANGUAGES.len() as f32;
            let weights: Vec<f32> =
                (0..LANGUAGES.len()).map(|language| mean / lines_of(language) as f32).collect();
            let weights = Tensor::from_slice(&weights);
            Box::new(move |log_p, labels| weights.f_index_select(0, labels)?.f_mul(log_p)?.f_neg())
        }
    }
}

struct Classifier {
    weight: Tensor, // [LANGUAGES, BUCKETS]
    bias: Tensor,   // [LANGUAGES]
    loss: Loss,
}

impl Classifier {
    fn new(loss: Loss) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let languages = LANGUAGES.len() as i64;
        Self { weight: zeros(&[languages, BUCKETS as i64]), bias: zeros(&[languages]), loss }
    }

    /// `[lines, LANGUAGES]`.
    fn log_probabilities(&self, features: &Tensor) -> Result<Tensor, TchError> {
        features.f_linear(&self.weight, Some(&self.bias))?.f_log_softmax(1, Kind::Float)
    }

    /// The most probable language of a line, and its probability.
    fn tell(&self, line: &str) -> Result<(usize, f64), TchError> {
        let features = Tensor::from_slice(&features(line)).unsqueeze(0);
        let (best, language) = tch::no_grad(|| self.log_probabilities(&features))?.f_max_dim(1, false)?;
        Ok((language.f_int64_value(&[0])? as usize, best.f_double_value(&[0])?.exp()))
    }
}

impl TrainableModel for Classifier {
    type Batch = Batch;
    type Error = TchError;

    fn target_tokens(&self, batch: &Batch) -> usize {
        batch.numbers.len()
    }

    fn tokens(&self, batch: &Batch) -> usize {
        batch.numbers.len()
    }

    /// Any loss will do that is a sum over the targets: the trainer divides by the targets of the whole step.
    fn loss(&self, batch: &Batch, _mode: Mode) -> Result<Tensor, TchError> {
        let log_p = self.log_probabilities(&batch.features)?;
        let log_p = log_p.f_gather(1, &batch.labels.unsqueeze(1), false)?.f_squeeze_dim(1)?;
        (self.loss)(&log_p, &batch.labels)?.f_sum(Kind::Float)
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        vec![("weight".into(), self.weight.shallow_clone()), ("bias".into(), self.bias.shallow_clone())]
    }

    fn sources(&self, batch: &Batch) -> Vec<String> {
        batch.numbers.iter().map(|number| format!("languages.tsv:{number}")).collect()
    }
}

/// Precision, recall and F1 of each language, and the mean of the last.
fn report(model: &Classifier, test: &Lines) -> Result<(), TchError> {
    let mut confusion = [[0; LANGUAGES.len()]; LANGUAGES.len()]; // [language][told]
    for &(_, line, language) in &test.0 {
        confusion[language][model.tell(line)?.0] += 1;
    }
    println!("{:<10}{:>6}{:>11}{:>8}{:>8}", "language", "lines", "precision", "recall", "F1");
    let mut sum = 0.0;
    for (index, name) in LANGUAGES.iter().enumerate() {
        let hits = f64::from(confusion[index][index]);
        let lines: i32 = confusion[index].iter().sum();
        let told: i32 = confusion.iter().map(|row| row[index]).sum();
        let (precision, recall) = (hits / f64::from(told.max(1)), hits / f64::from(lines.max(1)));
        let f1 = 2.0 * hits / f64::from((told + lines).max(1));
        println!("{name:<10}{lines:>6}{precision:>11.3}{recall:>8.3}{f1:>8.3}");
        sum += f1;
    }
    println!("macro F1 on {} unseen lines: {:.3}", test.len(), sum / LANGUAGES.len() as f64);
    Ok(())
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    tch::set_num_threads(1); // more do not pay at this size
    let (train, test) = split()?;
    let model = Classifier::new(loss(arguments.loss, &train));
    let training = TrainingArguments {
        learning_rate: arguments.learning_rate,
        num_train_epochs: arguments.num_train_epochs,
        per_device_train_batch_size: arguments.per_device_train_batch_size,
        ..Default::default()
    };
    let outcome = Trainer::new(&model, training, &train)?
        .with_validation(&test)
        .with_cancellation(interruption())
        .train()?;
    println!("{} lines to train on, mean training loss {:.4}", train.len(), outcome.train_loss);
    if let Some(validation) = outcome.validation {
        println!("loss on unseen lines {:.4}\n", validation.loss);
    }
    report(&model, &test)?;
    for line in &arguments.text {
        let (language, probability) = model.tell(line)?;
        println!("{} {probability:.3} {line}", LANGUAGES[language]);
    }
    Ok(if outcome.cancelled { interrupted() } else { ExitCode::SUCCESS })
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(if let Some(Error::InvalidArgument { .. }) = error.downcast_ref() { 2 } else { 1 })
    })
}
