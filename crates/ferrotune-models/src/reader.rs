//! Reads the tensors of a model.

use crate::{
    checkpoint::{Checkpoint, lock},
    config::ModelConfig,
    error::{Error, Result},
    layer::{Layer, Stacked},
};
use ferrotune_autograd::parallel_for;
use ferrotune_kernels::FrozenWeight;
use ferrotune_lora::LoraLinear;
use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tch::{Device, Kind, Tensor};

/// Reads tensors and remembers which, to find those that nobody asked for.
pub(crate) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    kind: Kind,
    used: Vec<String>,
    /// Before the names of all tensors but the head's.
    pub(crate) prefix: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, device: Device, kind: Kind) -> Self {
        Self { checkpoint, device, kind, used: Vec::new(), prefix: "model." }
    }

    /// All layers, on libtorch's threads: to make room for a weight takes as long as to copy it.
    pub(crate) fn layers(&mut self, config: &ModelConfig) -> Result<Vec<Layer>> {
        let count = config.num_hidden_layers;
        let layers: Mutex<Vec<Option<Result<Layer>>>> = Mutex::new((0..count).map(|_| None).collect());
        let used = Mutex::new(Vec::new());
        let (checkpoint, device, kind, prefix) = (self.checkpoint, self.device, self.kind, self.prefix);
        // Each takes the next one: a thread that shares its core with others makes fewer.
        let next = AtomicUsize::new(0);
        parallel_for(count, 1, |_| {
            let mut read = Self { prefix, ..Self::new(checkpoint, device, kind) };
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                let layer = Layer::load(&mut read, config, index);
                if let Some(place) = lock(&layers).get_mut(index) {
                    *place = Some(layer);
                }
            }
            lock(&used).append(&mut read.used);
        });
        self.used.append(&mut lock(&used));
        layers.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()
    }

    /// A tensor in the kind in which the model computes.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.checkpoint.tensor(&name, shape, self.kind)?.f_to_device(self.device)?;
        self.used.push(name);
        Ok(tensor)
    }

    /// Whether two matrices hold the same numbers; then the second need not be read.
    pub(crate) fn are_equal(&mut self, names: [&str; 2], shape: &[i64]) -> Result<bool> {
        let are_equal = self.checkpoint.are_equal(names, shape)?;
        self.used.extend(names.map(str::to_owned));
        Ok(are_equal)
    }

    /// Matrices of one width below each other, as a weight for products in the kind in which the model computes.
    pub(crate) fn frozen(&mut self, parts: Vec<(String, i64)>, columns: i64) -> Result<FrozenWeight> {
        let stack = self.checkpoint.stack(&parts, columns)?;
        let weight = match (self.kind, self.device, stack.kind()) {
            (Kind::Float, Device::Cpu, Some(Kind::Float)) => {
                FrozenWeight::filled(stack.shape, |first, bytes| stack.read_numbers(first, bytes))?
            }
            (Kind::Float, Device::Cpu, _) => FrozenWeight::in_fewest_bits(&stack.stored()?, Kind::Float)?,
            (kind, device, _) => FrozenWeight::new(&stack.tensor(kind)?.f_to_device(device)?)?,
        };
        self.used.extend(parts.into_iter().map(|(name, _)| name));
        Ok(weight)
    }

    /// Layers on one input, stacked. Their paths are those of the whole model, whatever the checkpoint's prefix.
    pub(crate) fn linear(&mut self, layer: &str, stacked: &Stacked) -> Result<LoraLinear> {
        let Stacked { parts, in_features, bias, .. } = stacked;
        let parent = format!("{layer}.{}", stacked.parent);
        let name_of = |name: &str| format!("{}{parent}.{name}.weight", self.prefix);
        let weights = parts.iter().map(|(name, rows)| (name_of(name), *rows)).collect();
        let weight = self.frozen(weights, *in_features)?;
        let mut biases = Vec::new();
        for (name, out_features) in parts.iter().filter(|_| *bias) {
            biases.push(self.tensor(&format!("{parent}.{name}.bias"), &[*out_features])?);
        }
        let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
        let modules = parts.iter().map(|(name, rows)| (format!("model.{parent}.{name}"), *rows));
        Ok(LoraLinear::of_weight(&Vec::from_iter(modules), weight, bias.as_ref())?)
    }

    pub(crate) fn check_nothing_left(&self, directory: &Path) -> Result<()> {
        let left: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|name| {
                !name.ends_with("rotary_emb.inv_freq") && !self.used.iter().any(|used| used == name)
            })
            .collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Error::TensorsUnexpected {
                path: directory.to_owned(),
                count: left.len(),
                first: (*first).to_owned(),
            }),
        }
    }
}
