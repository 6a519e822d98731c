//! Reads the tensors of a model.

use crate::{
    checkpoint::{Checkpoint, lock},
    config::ModelConfig,
    error::{Error, Result},
    layer::Layer,
};
use ferrotune_autograd::parallel_for;
use ferrotune_lora::LoraLinear;
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
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
        parallel_for(count, 1, |indices| {
            let mut read = Self { prefix, ..Self::new(checkpoint, device, kind) };
            for index in indices {
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

    pub(crate) fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.tensor_at(&format!("{}{name}", self.prefix), shape)
    }

    pub(crate) fn tensor_at(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.checkpoint.tensor(name, shape, self.kind)?;
        let tensor = tensor.f_to_device(self.device)?;
        self.used.push(name.to_owned());
        Ok(tensor)
    }

    /// Layers on one input, stacked. Their paths are those of the whole model, whatever the checkpoint's prefix.
    pub(crate) fn linear(
        &mut self,
        parent: &str,
        parts: &[(&str, i64)],
        in_features: i64,
        bias: bool,
    ) -> Result<LoraLinear> {
        let name_of = |name: &str| format!("{}{parent}.{name}.weight", self.prefix);
        let weights: Vec<_> = parts.iter().map(|(name, rows)| (name_of(name), *rows)).collect();
        let stacked = self.checkpoint.stacked(&weights, in_features, self.kind)?.f_to_device(self.device)?;
        self.used.extend(weights.into_iter().map(|(name, _)| name));
        let (mut layers, mut first) = (Vec::with_capacity(parts.len()), 0);
        for (name, out_features) in parts {
            let weight = stacked.f_narrow(0, first, *out_features)?;
            first += out_features;
            let bias = match bias {
                true => Some(self.tensor(&format!("{parent}.{name}.bias"), &[*out_features])?),
                false => None,
            };
            layers.push((format!("model.{parent}.{name}"), weight, bias));
        }
        let layers: Vec<_> =
            layers.iter().map(|(path, weight, bias)| (path.as_str(), weight, bias.as_ref())).collect();
        Ok(LoraLinear::stacked(&layers)?)
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
