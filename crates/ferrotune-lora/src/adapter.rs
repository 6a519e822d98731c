//! Adapters of a whole model: made fresh, or read from PEFT files.

use crate::{
    config::{LoraConfig, TargetModules},
    error::{Error, Result},
    init::init_a,
    layer::{LoraLinear, LoraWeights},
    peft::{AdapterFile, load_adapter, named_parameters, save_adapter},
    target::{ModuleInfo, effective_target_modules, select_targets},
};
use ferrotune_kernels::RandomKey;
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};
use tch::{Kind, Tensor};

/// A model whose linear layers can be adapted.
///
/// `tch` cannot walk the modules of a model, so the model shows its layers itself: it holds [`LoraLinear`]s and visits them in a
/// fixed order.
///
/// ```
/// use ferrotune_lora::{Adaptable, LoraLinear, Result};
/// struct Model { up: LoraLinear, down: LoraLinear }
/// impl Adaptable for Model {
///     fn visit_linears(&mut self, visit: &mut dyn FnMut(&mut LoraLinear) -> Result<()>) -> Result<()> {
///         visit(&mut self.up)?;
///         visit(&mut self.down)
///     }
/// }
/// ```
pub trait Adaptable {
    /// Calls `visit` for each linear layer, in a fixed order, and stops at its first error.
    ///
    /// # Errors
    /// Those of `visit`.
    fn visit_linears(&mut self, visit: &mut dyn FnMut(&mut LoraLinear) -> Result<()>) -> Result<()>;

    /// Paths of modules of the model that have weights but cannot be adapted (embeddings, norms, the output head); they matter only
    /// for how a long list of target modules is abbreviated on disk.
    fn other_modules(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A named adapter in a model: its configuration and handles on its weights.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    index: usize,
    config: LoraConfig,
    /// Path, A and B of each adapted module, in the model's order.
    weights: Vec<(String, Tensor, Tensor)>,
}

impl Adapter {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The index by which forward passes choose it.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its configuration, as it is written to disk.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Path, `A` and `B` of each adapted module, in the model's order.
    pub fn weights(&self) -> &[(String, Tensor, Tensor)] {
        &self.weights
    }

    /// A second handle on the same weights.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let weights = self.weights.iter();
        Self {
            name: self.name.clone(),
            index: self.index,
            config: self.config.clone(),
            weights: weights
                .map(|(path, a, b)| (path.clone(), a.shallow_clone(), b.shallow_clone()))
                .collect(),
        }
    }

    /// Its parameters under PEFT's names in memory (`<path>.lora_A.weight`), in the model's order.
    ///
    /// An optimizer of `tch`'s takes them through a `VarStore`, whose names may hold no dots:
    /// `store.root().add(&name.replace('.', "/"), tensor, true)` shares the tensor.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        named_parameters(self.weights.iter().map(|(path, a, b)| (path, a, b)))
    }

    /// Number of trainable numbers.
    pub fn parameter_count(&self) -> usize {
        self.weights.iter().map(|(_, a, b)| a.numel() + b.numel()).sum()
    }

    /// Writes it as PEFT files (`adapter_config.json`, `adapter_model.safetensors`) into a directory.
    ///
    /// # Errors
    /// As [`save_adapter`].
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        let weights: Vec<(&str, Tensor, Tensor)> = self
            .weights
            .iter()
            .map(|(path, a, b)| Ok((path.as_str(), a.f_detach()?, b.f_detach()?)))
            .collect::<Result<_>>()?;
        save_adapter(directory, &self.config, &weights)
    }
}

/// Adds a fresh adapter to the layers that `config` names and marks its weights, and nothing else, as trainable.
///
/// `A` is drawn from `U(-1/sqrt(in_features), 1/sqrt(in_features))`, by `key` and the module's path alone; `B` is zero.
///
/// # Errors
/// [`Error::NoTarget`] if nothing matches, with what there is; [`Error::InvalidValue`] for a senseless configuration.
pub fn inject(
    model: &mut (impl Adaptable + ?Sized),
    name: &str,
    index: usize,
    config: &LoraConfig,
    key: RandomKey,
) -> Result<Adapter> {
    let fresh = |module: &ModuleInfo, place: &Tensor| -> Result<(Tensor, Tensor)> {
        let rank = config.rank_for(&module.path)?;
        let a = init_a(rank, module.in_features, key.fold_name(&module.path))?.f_to_device(place.device())?;
        let b = Tensor::f_zeros([module.out_features, rank as i64], (Kind::Float, place.device()))?;
        Ok((a.f_set_requires_grad(true)?, b.f_set_requires_grad(true)?))
    };
    let made = make(model, index, config, fresh)?;
    add(model, name, index, config, made)
}

/// Reads an adapter from a PEFT directory into a model; `trainable` marks its weights for further training.
///
/// # Errors
/// Those of [`load_adapter`]; [`Error::OtherModel`], [`Error::NoWeights`] or [`Error::ShapeMismatch`] if it was made for another
/// model.
pub fn load(
    model: &mut (impl Adaptable + ?Sized),
    name: &str,
    index: usize,
    directory: impl AsRef<Path>,
    trainable: bool,
) -> Result<Adapter> {
    let directory = directory.as_ref();
    let file = load_adapter(directory)?;
    insert(model, name, index, file, trainable).map_err(|error| error.in_file(directory))
}

/// Puts an adapter that was read into a model; `trainable` marks its weights for further training. What its configuration says of
/// training, such as `lora_dropout`, may be changed before.
///
/// # Errors
/// [`Error::OtherModel`], [`Error::NoWeights`] or [`Error::ShapeMismatch`] if it was made for another model.
pub fn insert(
    model: &mut (impl Adaptable + ?Sized),
    name: &str,
    index: usize,
    mut file: AdapterFile,
    trainable: bool,
) -> Result<Adapter> {
    // The file says which modules are adapted; the list in its configuration may be abbreviated or a pattern.
    let modules = module_infos(model)?;
    let known: HashSet<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let mut unknown = file.tensors.keys().filter(|path| !known.contains(path.as_str()));
    if let Some(first) = unknown.next() {
        return Err(Error::OtherModel { count: 1 + unknown.count(), first: first.clone() });
    }
    let config = file.config.clone();
    let from_file = |module: &ModuleInfo, place: &Tensor| -> Result<(Tensor, Tensor)> {
        let Some((a, b)) = file.tensors.remove(&module.path) else {
            return Err(Error::NoWeights { path: module.path.clone() });
        };
        let ready = |tensor: Tensor| tensor.f_to_device(place.device())?.f_set_requires_grad(trainable);
        Ok((ready(a)?, ready(b)?))
    };
    let left = |file: &AdapterFile| {
        let first = file.tensors.keys().next()?.clone();
        Some(Error::OtherModel { count: file.tensors.len(), first })
    };
    let made = make(model, index, &config, from_file).and_then(|made| left(&file).map_or(Ok(made), Err));
    add(model, name, index, &config, made?)
}

/// Folds an adapter into the frozen weights of its model, `W += scaling * B A`, and takes it out: the bare model then computes what it
/// computed with the adapter, up to rounding. No product of the adapter is left, but merged weights take all bits of f32: more memory, and
/// more time, where the base was kept in fewer.
///
/// The same as PEFT's `merge_and_unload`. Other adapters of the model stay, and add to the new weights.
///
/// # Errors
/// Those of [`LoraLinear::merge_adapter`].
pub fn merge(model: &mut (impl Adaptable + ?Sized), adapter: Adapter) -> Result<()> {
    model.visit_linears(&mut |layer| layer.merge_adapter(adapter.index))
}

/// Takes the adapter with the index `index` out of its model, without a trace in the frozen weights; nothing happens if there is none.
///
/// The same as PEFT's `unload`, for one adapter.
///
/// # Errors
/// None of its own; those of a model's [`Adaptable::visit_linears`].
pub fn unload(model: &mut (impl Adaptable + ?Sized), index: usize) -> Result<()> {
    model.visit_linears(&mut |layer| {
        layer.remove_adapter(index);
        Ok(())
    })
}

/// The linear layers of a model that can be adapted, in its order.
///
/// # Errors
/// Those of [`Adaptable::visit_linears`].
pub fn module_infos(model: &mut (impl Adaptable + ?Sized)) -> Result<Vec<ModuleInfo>> {
    let mut modules = Vec::new();
    model.visit_linears(&mut |layer| {
        modules.extend(layer.modules().cloned());
        Ok(())
    })?;
    Ok(modules)
}

/// The weights that `new` makes for each targeted module, beside (on the device of) its frozen weight, in the model's order. The model
/// stays as it is.
fn make(
    model: &mut (impl Adaptable + ?Sized),
    index: usize,
    config: &LoraConfig,
    mut new: impl FnMut(&ModuleInfo, &Tensor) -> Result<(Tensor, Tensor)>,
) -> Result<Vec<(String, LoraWeights)>> {
    let modules = module_infos(model)?;
    let selected: HashSet<&str> =
        select_targets(config, &modules)?.into_iter().map(|place| modules[place].path.as_str()).collect();
    let mut made = Vec::with_capacity(selected.len());
    model.visit_linears(&mut |layer| {
        let frozen = layer.weight().dense_rows(0, 1)?;
        for module in layer.modules().filter(|module| selected.contains(module.path.as_str())) {
            let (a, b) = new(module, &frozen)?;
            let scaling = config.scaling_for(&module.path)?;
            let weights = LoraWeights { a, b, scaling, dropout: config.lora_dropout };
            layer.check_adapter(&module.path, index, &weights)?;
            made.push((module.path.clone(), weights));
        }
        Ok(())
    })?;
    Ok(made)
}

/// Gives a model weights that were checked against it: all of them, for nothing here can fail any more.
fn add(
    model: &mut (impl Adaptable + ?Sized),
    name: &str,
    index: usize,
    config: &LoraConfig,
    made: Vec<(String, LoraWeights)>,
) -> Result<Adapter> {
    let mut config = config.clone();
    if config.target_modules == TargetModules::AllLinear {
        let (modules, others) = (module_infos(model)?, model.other_modules());
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        config.target_modules = effective_target_modules(&config, &modules, &others)?;
    }
    let weights = made
        .iter()
        .map(|(path, made)| (path.clone(), made.a.shallow_clone(), made.b.shallow_clone()))
        .collect();
    let mut made: HashMap<String, LoraWeights> = made.into_iter().collect();
    model.visit_linears(&mut |layer| {
        let paths: Vec<String> = layer.modules().map(|module| module.path.clone()).collect();
        for path in paths {
            if let Some(weights) = made.remove(&path) {
                layer.set_adapter(&path, index, weights)?;
            }
        }
        Ok(())
    })?;
    Ok(Adapter { name: name.to_owned(), index, config, weights })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_kernels::{Mode, Prologue};
    use tch::Device;

    struct Model {
        qv: LoraLinear,
        down: LoraLinear,
    }

    impl Adaptable for Model {
        fn visit_linears(&mut self, visit: &mut dyn FnMut(&mut LoraLinear) -> Result<()>) -> Result<()> {
            visit(&mut self.qv)?;
            visit(&mut self.down)
        }
    }

    fn model(out: i64) -> Model {
        let weight = |seed: u64, rows: i64, columns: i64| {
            let numbers = RandomKey::from_seed(seed).uniform((rows * columns) as usize);
            Tensor::from_slice(&numbers).reshape([rows, columns])
        };
        let (q, v, down) = (weight(1, out, 6), weight(2, 3, 6), weight(3, 4, out));
        Model {
            qv: LoraLinear::stacked(&[("layers.0.q_proj", &q, None), ("layers.0.v_proj", &v, None)]).unwrap(),
            down: LoraLinear::new("layers.0.down_proj", &down, None).unwrap(),
        }
    }

    fn config(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            rank: 2,
            lora_alpha: 6.0,
            target_modules: TargetModules::Names(targets.iter().map(|target| (*target).to_owned()).collect()),
            ..LoraConfig::default()
        }
    }

    #[test]
    fn a_fresh_adapter_is_the_identity_and_only_it_is_trainable() {
        let mut model = model(5);
        let x = Tensor::ones([2, 6], (Kind::Float, Device::Cpu));
        let before = model.qv.forward(&x, None, Mode::Eval).unwrap();
        let adapter =
            inject(&mut model, "default", 0, &config(&["q_proj", "down_proj"]), RandomKey::from_seed(1))
                .unwrap();
        let paths: Vec<&str> = adapter.weights().iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["layers.0.q_proj", "layers.0.down_proj"]);
        assert_eq!(adapter.parameter_count(), 2 * (6 + 5) + 2 * (5 + 4));
        let y = model.qv.forward(&x, Some(0), Mode::Eval).unwrap();
        assert_eq!(y, before);
        y.sum(Kind::Float).backward();
        let (_, a, b) = &adapter.weights()[0];
        // B is zero, so A's gradient is too; B's is not.
        assert_eq!(a.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert!(b.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
    }

    #[test]
    fn a_model_whose_adapter_was_unloaded_is_the_bare_one_and_takes_another() {
        let mut model = model(5);
        let x = Tensor::ones([2, 6], (Kind::Float, Device::Cpu));
        let base = model.qv.forward(&x, None, Mode::Eval).unwrap();
        let key = RandomKey::from_seed(1);
        let adapter = inject(&mut model, "first", 0, &config(&["q_proj", "v_proj"]), key).unwrap();
        for (_, _, b) in adapter.weights() {
            let _ = tch::no_grad(|| b.shallow_clone().fill_(0.5));
        }
        assert_ne!(model.qv.forward(&x, Some(0), Mode::Eval).unwrap(), base);
        unload(&mut model, 0).unwrap();
        assert!(!model.qv.has_adapter(0));
        assert_eq!(model.qv.forward(&x, Some(0), Mode::Eval).unwrap(), base);
        // Nothing of the first is left in a layer that the second does not name.
        inject(&mut model, "second", 0, &config(&["down_proj"]), key).unwrap();
        assert_eq!(model.qv.forward(&x, Some(0), Mode::Eval).unwrap(), base);
    }

    #[test]
    fn alpha_over_rank_scales_only_the_update() {
        let mut model = model(5);
        let x = Tensor::ones([2, 6], (Kind::Float, Device::Cpu));
        let base = model.qv.forward(&x, None, Mode::Eval).unwrap();
        let adapter =
            inject(&mut model, "default", 0, &config(&["v_proj"]), RandomKey::from_seed(1)).unwrap();
        let (_, a, b) = &adapter.weights()[0];
        let _ = tch::no_grad(|| b.shallow_clone().fill_(0.5));
        let y = model.qv.forward(&x, Some(0), Mode::Eval).unwrap();
        let update = x.matmul(&a.tr()).matmul(&b.tr()) * 3.0; // alpha / rank
        let expected = Tensor::cat(&[base.narrow(1, 0, 5), base.narrow(1, 5, 3) + update], 1);
        assert!((y - expected).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn sequences_of_one_batch_may_use_different_adapters() {
        let mut model = model(5);
        for index in [0, 1] {
            let key = RandomKey::from_seed(index as u64);
            let adapter = inject(&mut model, "x", index, &config(&["q_proj"]), key).unwrap();
            let _ = tch::no_grad(|| adapter.weights()[0].2.shallow_clone().fill_(1.0));
        }
        let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([4, 6]);
        let layout = layout_of(&[0, 1, 3, 4]).with_adapters(&[Some(1), None, Some(0)]).unwrap();
        let y = model.qv.forward_packed(Prologue::None, &x, &layout, Mode::Eval).unwrap();
        for (row, adapter) in [(0, Some(1)), (1, None), (2, None), (3, Some(0))] {
            let alone = model.qv.forward(&x.narrow(0, row, 1), adapter, Mode::Eval).unwrap();
            assert!((y.narrow(0, row, 1) - alone).abs().max().double_value(&[]) < 1e-4, "row {row}");
        }
    }

    fn layout_of(cu_seqlens: &[i64]) -> ferrotune_kernels::SequenceLayout {
        ferrotune_kernels::SequenceLayout::from_cu_seqlens(cu_seqlens).unwrap()
    }

    #[test]
    fn an_adapter_comes_back_from_disk_and_does_not_fit_another_model() {
        let mut source = model(5);
        let saved =
            inject(&mut source, "default", 0, &config(&["q_proj", "down_proj"]), RandomKey::from_seed(1))
                .unwrap();
        let folder = tempfile::tempdir().unwrap();
        saved.save(folder.path().join("adapter")).unwrap();
        let read = load(&mut model(5), "again", 0, folder.path().join("adapter"), true).unwrap();
        assert_eq!(read.weights().len(), 2);
        for ((path, a, b), (same_path, same_a, same_b)) in saved.weights().iter().zip(read.weights()) {
            assert_eq!((path, a, b), (same_path, same_a, same_b));
            assert!(same_a.requires_grad() && same_b.requires_grad());
        }
        // The first module fits, the second does not: neither is changed.
        let mut wider = model(5);
        wider.down =
            LoraLinear::new("layers.0.down_proj", &Tensor::ones([9, 5], (Kind::Float, Device::Cpu)), None)
                .unwrap();
        let error =
            load(&mut wider, "other", 0, folder.path().join("adapter"), false).unwrap_err().to_string();
        assert!(error.contains("[4, 2]") && error.contains('9'), "{error}");
        assert!(!wider.qv.has_adapter(0) && !wider.down.has_adapter(0), "half adapted");
        let mut other = model(5);
        other.down =
            LoraLinear::new("layers.1.up_proj", &Tensor::ones([4, 5], (Kind::Float, Device::Cpu)), None)
                .unwrap();
        let error =
            load(&mut other, "other", 0, folder.path().join("adapter"), false).unwrap_err().to_string();
        assert!(error.contains("layers.0.down_proj"), "{error}");
    }
}
