//! A model of one's own, adapted: ferrotune's LoRA layers in plain `tch` code, with `tch`'s optimiser and a loop written here.
//!
//! A small residual classifier learns task A. Then it is frozen, its linear layers get an adapter, and the adapter alone learns task
//! B, which shows the same objects in a mirror. Nothing else of ferrotune is needed: no trainer, no recipe, no model of ours.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its user")]

use clap::Parser;
use ferrotune_lora::{Adaptable, LoraConfig, LoraLinear, Mode, RandomKey, TargetModules, inject, load};
use std::{collections::HashMap, error::Error, num::NonZeroU32, path::PathBuf, process::ExitCode};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Module, OptimizerConfig},
};

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p ferrotune-examples --example custom_model
  cargo run --release -p ferrotune-examples --example custom_model -- --rank 2 --output my_adapter

Exit codes: 0 done, 1 something failed, 2 an argument is wrong.";

/// Adapt a small classifier to a second task with LoRA layers, save the adapter as PEFT files and load it again.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// Rank of the adapter.
    #[arg(long, default_value = "4")]
    rank: NonZeroU32,
    /// Seed of the data, the model and the adapter.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// The directory that receives the adapter's files.
    #[arg(long, value_name = "DIR", default_value = "target/custom_model/adapter")]
    output: PathBuf,
}

const FEATURES: i64 = 16;
const HIDDEN: i64 = 64;
const CLASSES: i64 = 4;
const STEPS: u64 = 600;
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

#[derive(Clone, Copy)]
enum Task {
    A,
    B,
}

/// Where the labels come from: a fixed random network, and for task B a mirror in front of it.
struct World {
    inner: Tensor,
    outer: Tensor,
    mirror: Tensor,
}

impl World {
    fn new() -> Self {
        let inner = Tensor::randn([FEATURES, CLASSES], FLOAT) * 0.25;
        let normal = inner.sum_dim_intlist(1, true, Kind::Float); // a direction that matters to the network
        let normal = &normal / normal.norm();
        // I - 2 n n^T differs from I by a matrix of rank 1: a change within reach of a low-rank update.
        let mirror = Tensor::eye(FEATURES, FLOAT) - normal.matmul(&normal.tr()) * 2.0;
        Self { inner, outer: Tensor::randn([CLASSES, CLASSES], FLOAT), mirror }
    }

    /// Inputs `[count, FEATURES]` and the class of each, `[count]`.
    fn sample(&self, task: Task, count: i64) -> (Tensor, Tensor) {
        let x = Tensor::randn([count, FEATURES], FLOAT);
        let seen = if let Task::B = task { x.matmul(&self.mirror) } else { x.shallow_clone() };
        let labels = seen.matmul(&self.inner).tanh().matmul(&self.outer).argmax(1, false);
        (x, labels)
    }
}

/// The model as its owner wrote it, before LoRA came up.
struct Classifier {
    input: nn::Linear,
    up: nn::Linear,
    down: nn::Linear,
    head: nn::Linear,
}

impl Classifier {
    fn new(root: &nn::Path) -> Self {
        let linear = |path, inputs, outputs| nn::linear(path, inputs, outputs, Default::default());
        Self {
            input: linear(root / "input", FEATURES, HIDDEN),
            up: linear(root / "block" / "up", HIDDEN, 2 * HIDDEN),
            down: linear(root / "block" / "down", 2 * HIDDEN, HIDDEN),
            head: linear(root / "head", HIDDEN, CLASSES),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.input.forward(x);
        let hidden = &hidden + self.down.forward(&self.up.forward(&hidden).gelu("none"));
        self.head.forward(&hidden)
    }
}

/// The same model with room for adapters: each layer that may be adapted is a `LoraLinear`, with a path to find it by.
struct Adapted<'a> {
    input: LoraLinear,
    up: LoraLinear,
    down: LoraLinear,
    head: &'a nn::Linear,
}

impl<'a> Adapted<'a> {
    /// Shares the weights of the base, and freezes what it wraps.
    fn new(base: &'a Classifier) -> ferrotune_lora::Result<Self> {
        Ok(Self {
            input: LoraLinear::from_linear("input", &base.input)?,
            up: LoraLinear::from_linear("block.up", &base.up)?,
            down: LoraLinear::from_linear("block.down", &base.down)?,
            head: &base.head,
        })
    }

    /// `adapter` chooses one of the adapters, or the bare base; `mode` says whether dropout acts.
    fn forward(&self, x: &Tensor, adapter: Option<usize>, mode: Mode) -> ferrotune_lora::Result<Tensor> {
        let hidden = self.input.forward(x, adapter, mode)?;
        let wide = self.up.forward(&hidden, adapter, mode)?.gelu("none");
        let hidden = hidden + self.down.forward(&wide, adapter, mode)?;
        Ok(self.head.forward(&hidden))
    }
}

/// All that injection needs from a model: its layers, in a fixed order.
impl Adaptable for Adapted<'_> {
    fn visit_linears(
        &mut self,
        visit: &mut dyn FnMut(&mut LoraLinear) -> ferrotune_lora::Result<()>,
    ) -> ferrotune_lora::Result<()> {
        [&mut self.input, &mut self.up, &mut self.down].into_iter().try_for_each(visit)
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    tch::manual_seed(arguments.seed.into());
    tch::set_num_threads(1); // more do not pay at this size
    let world = World::new();

    // 1. The base learns task A, in nothing but tch, and is frozen.
    let mut store = nn::VarStore::new(Device::Cpu);
    let base = Classifier::new(&store.root());
    let mut optimizer = nn::Adam::default().build(&store, 3e-3)?;
    for _ in 0..STEPS {
        let (x, labels) = world.sample(Task::A, 256);
        optimizer.backward_step(&base.forward(&x).cross_entropy_for_logits(&labels));
    }
    store.freeze();
    let pretrained: HashMap<_, _> = store.variables().into_iter().map(|(name, t)| (name, t.copy())).collect();

    // 2. An adapter joins the layers that its configuration names, by PEFT's rules. Fresh, it changes no output.
    let mut model = Adapted::new(&base)?;
    let rank = arguments.rank.get();
    let config = LoraConfig {
        rank: rank as usize,
        lora_alpha: f64::from(2 * rank),
        lora_dropout: 0.02,
        target_modules: TargetModules::Names(vec!["input".into(), "up".into(), "down".into()]),
        task_type: None,
        ..LoraConfig::default()
    };
    let key = RandomKey::from_seed(arguments.seed.into());
    let adapter = inject(&mut model, "task_b", 0, &config, key)?;

    // 3. The adapter learns task B. A store that holds handles on its parameters shows them to tch's optimiser.
    let trainable = nn::VarStore::new(Device::Cpu);
    for (name, parameter) in adapter.named_parameters() {
        let _ = trainable.root().add(&name.replace('.', "/"), parameter, true);
    }
    let mut optimizer = nn::AdamW::default().build(&trainable, 3e-3)?;
    for step in 0..STEPS {
        let (x, labels) = world.sample(Task::B, 256);
        let logits = model.forward(&x, Some(adapter.index()), Mode::Train(key.fold(step)))?;
        optimizer.backward_step(&logits.cross_entropy_for_logits(&labels));
    }

    // 4. Before and after: with the adapter switched off, the base is what it was.
    let tests = [Task::A, Task::B].map(|task| world.sample(task, 4096));
    println!("{:<16}{:>10}{:>10}", "accuracy", "task A", "task B");
    for (label, choice) in [("base", None), ("base + adapter", Some(adapter.index()))] {
        print!("{label:<16}");
        for (x, labels) in &tests {
            let logits = tch::no_grad(|| model.forward(x, choice, Mode::Eval))?;
            print!("{:>8.1} %", 100.0 * logits.accuracy_for_logits(labels).double_value(&[]));
        }
        println!();
    }
    let changed = store.variables().iter().filter(|(name, tensor)| pretrained[*name] != **tensor).count();
    let parameters: usize = pretrained.values().map(Tensor::numel).sum();
    println!("\nbase: {parameters} parameters in {} tensors, {changed} of them changed", pretrained.len());
    println!("adapter: {} parameters", adapter.parameter_count());
    if changed > 0 {
        return Err("the base changed although it is frozen".into());
    }

    // 5. PEFT's files, read into a model that has never seen the adapter.
    adapter.save(&arguments.output)?;
    let mut again = Adapted::new(&base)?;
    let loaded = load(&mut again, "task_b", 0, &arguments.output, false)?;
    let (x, _) = &tests[1];
    let saved = model.forward(x, Some(adapter.index()), Mode::Eval)?;
    if again.forward(x, Some(loaded.index()), Mode::Eval)? != saved {
        return Err("the loaded adapter gives other outputs than the saved one".into());
    }
    println!("saved to {} and loaded again: the same outputs, bit for bit", arguments.output.display());
    Ok(())
}
