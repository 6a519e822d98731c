//! A frozen linear layer with room for adapters.

use crate::{
    error::{Error, Result},
    target::ModuleInfo,
};
use ferrotune_kernels::{
    FrozenWeight, GroupMember, LowRank, Mode, Prologue, RandomKey, SequenceLayout, grouped_lora_linear,
};
use tch::{Kind, Tensor, nn};

/// The trainable half of an adapted module.
#[derive(Debug)]
pub struct LoraWeights {
    /// `A`, `[rank, in_features]`.
    pub a: Tensor,
    /// `B`, `[out_features, rank]`.
    pub b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)`.
    pub scaling: f64,
    /// Probability that an element of the update's input is dropped in training.
    pub dropout: f64,
}

/// Adapters that one model can hold.
const MAX_ADAPTERS: usize = 4096;

#[derive(Debug)]
struct Member {
    info: ModuleInfo,
    /// Tells its dropout from that of every other layer.
    layer: u64,
    /// By adapter index.
    adapters: Vec<Option<LoraWeights>>,
}

/// A frozen linear layer, or several on one input, to which low-rank adapters can be added.
///
/// `y = x W^T + bias + scaling * dropout(x) A^T B^T`; only `A` and `B` are trained. An adapter's `B` starts at zero, so a fresh one
/// leaves the output unchanged. Layers that read the same input (q, k and v; gate and up) may be stacked into one product; their
/// paths, and their adapters, stay apart.
///
/// ```
/// use ferrotune_lora::LoraLinear;
/// use ferrotune_kernels::Mode;
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::ones([4, 3], (Kind::Float, Device::Cpu));
/// let layer = LoraLinear::new("model.layers.0.self_attn.q_proj", &weight, None)?;
/// let y = layer.forward(&Tensor::ones([2, 3], (Kind::Float, Device::Cpu)), None, Mode::Eval)?;
/// assert_eq!(y.size(), [2, 4]);
/// # Ok::<(), ferrotune_lora::Error>(())
/// ```
///
/// # References
/// Hu et al. 2021, arXiv:2106.09685; computes what `peft.tuners.lora.layer.Linear.forward` computes.
#[derive(Debug)]
pub struct LoraLinear {
    members: Vec<Member>,
    weight: FrozenWeight,
    bias: Option<Tensor>,
}

impl LoraLinear {
    /// Freezes one layer; `path` is its dotted module path, by which adapters find it. The tensors are shared, not copied.
    ///
    /// # Shapes
    /// - `weight`: `[out_features, in_features]`; `bias`: `[out_features]`
    ///
    /// # Errors
    /// [`Error::Kernel`] if the shapes do not fit; [`Error::ShapeMismatch`] for a bias that does not.
    pub fn new(path: &str, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::stacked(&[(path, weight, bias)])
    }

    /// Freezes a layer of `tch`'s.
    ///
    /// Only what is wrapped is frozen: layers that stay as they are (a head, say) remain trainable in their `VarStore` unless its
    /// `freeze` is called.
    ///
    /// # Errors
    /// As [`LoraLinear::new`].
    pub fn from_linear(path: &str, linear: &nn::Linear) -> Result<Self> {
        Self::new(path, &linear.ws, linear.bs.as_ref())
    }

    /// Freezes several layers on the same input and stacks their weights, in order, into one product: the result of
    /// [`forward`](Self::forward) holds their outputs side by side.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the shapes do not fit; [`Error::ShapeMismatch`] for a bias that does not; [`Error::MixedBias`] if some have a
    /// bias and others none.
    pub fn stacked(layers: &[(&str, &Tensor, Option<&Tensor>)]) -> Result<Self> {
        let weights: Vec<&Tensor> = layers.iter().map(|(_, weight, _)| *weight).collect();
        let biases: Vec<&Tensor> = layers.iter().filter_map(|(_, _, bias)| *bias).collect();
        if !biases.is_empty() && biases.len() != layers.len() {
            return Err(Error::MixedBias {
                paths: layers.iter().map(|(path, ..)| (*path).to_owned()).collect(),
            });
        }
        for (path, weight, bias) in layers {
            let (Some(bias), Some(&rows)) = (bias, weight.size().first()) else { continue };
            if bias.size() != [rows] {
                return Err(Error::ShapeMismatch {
                    tensor: format!("{path}.bias"),
                    expected: vec![rows],
                    found: bias.size(),
                    reason: "a bias has one number for each row of the weight".to_owned(),
                });
            }
        }
        let weight = FrozenWeight::stacked(&weights)?;
        let modules: Vec<_> =
            layers.iter().map(|(path, weight, _)| ((*path).to_owned(), weight.size()[0])).collect();
        let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
        Self::of_weight(&modules, weight, bias.as_ref())
    }

    /// A layer of modules, by path and `out_features`, whose weights are stacked already, and their biases with them.
    ///
    /// # Shapes
    /// - `weight`: `[sum of out_features, in_features]`; `bias`: `[sum of out_features]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the modules do not add up to the rows of the weight, or `bias` has not as many numbers.
    pub fn of_weight(modules: &[(String, i64)], weight: FrozenWeight, bias: Option<&Tensor>) -> Result<Self> {
        let rows: i64 = modules.iter().map(|(_, out_features)| out_features).sum();
        let paths = || modules.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(", ");
        if rows != weight.out_features() {
            return Err(Error::ShapeMismatch {
                tensor: format!("weight of {}", paths()),
                expected: vec![rows, weight.in_features()],
                found: vec![weight.out_features(), weight.in_features()],
                reason: "the rows of its modules are below each other".to_owned(),
            });
        }
        if let Some(bias) = bias.filter(|bias| bias.size() != [rows]) {
            return Err(Error::ShapeMismatch {
                tensor: format!("bias of {}", paths()),
                expected: vec![rows],
                found: bias.size(),
                reason: "a bias has one number for each row of the weight".to_owned(),
            });
        }
        let member = |(path, out_features): &(String, i64)| Member {
            layer: RandomKey::from_seed(0).fold_name(path).bits(0),
            info: ModuleInfo {
                path: path.clone(),
                in_features: weight.in_features(),
                out_features: *out_features,
                is_output_head: false,
            },
            adapters: Vec::new(),
        };
        let members = modules.iter().map(member).collect();
        let bias = bias.map(Tensor::f_detach).transpose()?;
        Ok(Self { members, weight, bias })
    }

    /// The modules that this layer stands for, in order.
    pub fn modules(&self) -> impl Iterator<Item = &ModuleInfo> {
        self.members.iter().map(|member| &member.info)
    }

    /// The frozen weight, all modules stacked.
    pub fn weight(&self) -> &FrozenWeight {
        &self.weight
    }

    /// Number of frozen numbers, biases included.
    pub fn parameter_count(&self) -> usize {
        let weight = (self.weight.out_features() * self.weight.in_features()) as usize;
        weight + self.bias.as_ref().map_or(0, Tensor::numel)
    }

    /// Whether any of the modules has the adapter `adapter`.
    pub fn has_adapter(&self, adapter: usize) -> bool {
        self.members.iter().any(|member| matches!(member.adapters.get(adapter), Some(Some(_))))
    }

    /// The adapter `adapter` of the module at `path`, if it has one.
    pub fn adapter(&self, path: &str, adapter: usize) -> Option<&LoraWeights> {
        self.members.iter().find(|member| member.info.path == path)?.adapters.get(adapter)?.as_ref()
    }

    /// Gives the module at `path` the adapter `adapter`, in place of what it had there.
    ///
    /// # Errors
    /// [`Error::NoSuchModule`] if the layer does not stand for that module; [`Error::ShapeMismatch`] names both shapes;
    /// [`Error::InvalidValue`] for an index beyond 4095.
    pub fn set_adapter(&mut self, path: &str, adapter: usize, weights: LoraWeights) -> Result<()> {
        let place = self.check_adapter(path, adapter, &weights)?;
        let adapters = &mut self.members[place].adapters;
        if adapters.len() <= adapter {
            adapters.resize_with(adapter + 1, || None);
        }
        adapters[adapter] = Some(weights);
        Ok(())
    }

    /// The place of the module at `path`, which these weights fit.
    pub(crate) fn check_adapter(&self, path: &str, adapter: usize, weights: &LoraWeights) -> Result<usize> {
        let Some(place) = self.members.iter().position(|member| member.info.path == path) else {
            let available = self.members.iter().map(|member| member.info.path.clone()).collect();
            return Err(Error::NoSuchModule { path: path.to_owned(), available });
        };
        if adapter >= MAX_ADAPTERS {
            return Err(Error::value("adapter index", adapter, format!("less than {MAX_ADAPTERS}")));
        }
        let info = &self.members[place].info;
        let rank = weights.a.size().first().copied().unwrap_or(-1);
        for (name, tensor, expected) in [
            ("lora_A", &weights.a, [-1, info.in_features]),
            ("lora_B", &weights.b, [info.out_features, rank]),
        ] {
            let found = tensor.size();
            if found.len() != 2 || (expected[0] != -1 && found[0] != expected[0]) || found[1] != expected[1] {
                return Err(Error::ShapeMismatch {
                    tensor: format!("{path}.{name}"),
                    expected: expected.to_vec(),
                    found,
                    reason: format!("the module maps {} features to {}", info.in_features, info.out_features),
                });
            }
        }
        Ok(place)
    }

    /// The layer for products in `kind`: the frozen weight rounded once and kept, `A` and `B` cast each time, in the graph, so that the
    /// gradients of `f32` adapters are `f32`. In the layer's own kind it is another handle on the same layer.
    ///
    /// ```
    /// use ferrotune_lora::{LoraLinear, LoraWeights};
    /// use ferrotune_kernels::Mode;
    /// use tch::{Device, Kind, Tensor};
    /// let ones = |rows, columns| Tensor::ones([rows, columns], (Kind::Float, Device::Cpu));
    /// let mut layer = LoraLinear::new("up", &ones(4, 3), None)?;
    /// let b = ones(4, 2).set_requires_grad(true);
    /// layer.set_adapter("up", 0, LoraWeights { a: ones(2, 3), b: b.shallow_clone(), scaling: 0.5, dropout: 0.0 })?;
    /// let y = layer.in_kind(Kind::BFloat16)?.forward(&ones(2, 3), Some(0), Mode::Eval)?;
    /// y.sum(Kind::Float).backward();
    /// assert_eq!((y.kind(), b.grad().kind()), (Kind::BFloat16, Kind::Float));
    /// # Ok::<(), ferrotune_lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Torch`] or [`Error::Kernel`] if libtorch fails, out of memory included.
    pub fn in_kind(&self, kind: Kind) -> Result<Self> {
        let cast = |weights: &LoraWeights| -> Result<LoraWeights> {
            let (a, b) = match kind == self.weight.kind() {
                true => (weights.a.shallow_clone(), weights.b.shallow_clone()),
                false => (weights.a.f_to_kind(kind)?, weights.b.f_to_kind(kind)?),
            };
            Ok(LoraWeights { a, b, ..*weights })
        };
        let members = self.members.iter().map(|Member { info, layer, adapters }| {
            let adapters = adapters.iter().map(|adapter| adapter.as_ref().map(cast).transpose());
            Ok(Member { info: info.clone(), layer: *layer, adapters: adapters.collect::<Result<_>>()? })
        });
        Ok(Self {
            members: members.collect::<Result<_>>()?,
            weight: self.weight.in_kind(kind)?,
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        })
    }

    /// `A` and `B` of every module that has the adapter `adapter`, shallow clones.
    pub fn adapter_tensors(&self, adapter: usize) -> Vec<Tensor> {
        let weights = self.members.iter().filter_map(|member| member.adapters.get(adapter)?.as_ref());
        weights.flat_map(|weights| [weights.a.shallow_clone(), weights.b.shallow_clone()]).collect()
    }

    /// Output of the layer for a batch on one adapter (`None`: the bare base model).
    ///
    /// # Shapes
    /// - `x`: `[..., in_features]`; returns `[..., sum of out_features]`
    ///
    /// # Errors
    /// [`Error::Kernel`] if `x` does not fit, or libtorch fails.
    pub fn forward(&self, x: &Tensor, adapter: Option<usize>, mode: Mode) -> Result<Tensor> {
        self.forward_after(Prologue::None, x, adapter, mode)
    }

    /// [`forward`](Self::forward) of what `prologue` makes of `x`; backward makes it again rather than keep it.
    ///
    /// # Shapes
    /// - `x`: `[..., in_features]`, or what the prologue turns into that; returns `[..., sum of out_features]`
    ///
    /// # Errors
    /// As [`LoraLinear::forward`].
    pub fn forward_after(
        &self,
        prologue: Prologue,
        x: &Tensor,
        adapter: Option<usize>,
        mode: Mode,
    ) -> Result<Tensor> {
        let members: Vec<GroupMember> = self
            .members
            .iter()
            .map(|member| GroupMember {
                out_features: member.info.out_features,
                update: adapter.and_then(|index| member.adapters.get(index)?.as_ref()).map(|weights| {
                    LowRank {
                        a: &weights.a,
                        b: &weights.b,
                        scaling: weights.scaling,
                        dropout: weights.dropout,
                        layer: member.layer,
                    }
                }),
            })
            .collect();
        Ok(grouped_lora_linear(x, prologue, &self.weight, self.bias.as_ref(), &members, mode)?)
    }

    /// Output of the layer for what `prologue` makes of packed sequences, each on the adapter that the layout names.
    ///
    /// # Shapes
    /// - `x`: `[total_tokens, in_features]`, or what the prologue turns into that; returns `[total_tokens, sum of out_features]`
    ///
    /// # Errors
    /// As [`LoraLinear::forward`].
    pub fn forward_packed(
        &self,
        prologue: Prologue,
        x: &Tensor,
        layout: &SequenceLayout,
        mode: Mode,
    ) -> Result<Tensor> {
        match layout.adapter_rows().as_slice() {
            [] => self.forward_after(prologue, x, None, mode),
            [(_, adapter)] => self.forward_after(prologue, x, *adapter, mode),
            runs => {
                let parts: Vec<Tensor> = runs
                    .iter()
                    .map(|(rows, adapter)| {
                        // Each run draws its own dropout.
                        let mode = match mode {
                            Mode::Train(key) => Mode::Train(key.fold(rows.start as u64)),
                            Mode::Eval => Mode::Eval,
                        };
                        let rows = x.f_narrow(0, rows.start, rows.end - rows.start)?;
                        self.forward_after(prologue, &rows, *adapter, mode)
                    })
                    .collect::<Result<_>>()?;
                Ok(Tensor::f_cat(&parts, 0)?)
            }
        }
    }

    /// Adds the updates of the adapter `adapter` to the frozen weights, `W += scaling * B A`, and removes it from the layer.
    ///
    /// ```
    /// # use ferrotune_lora::{LoraLinear, LoraWeights};
    /// # use tch::{Device, Kind, Tensor};
    /// let ones = |rows, columns| Tensor::ones([rows, columns], (Kind::Float, Device::Cpu));
    /// let weight = ones(3, 2);
    /// let mut layer = LoraLinear::new("up", &weight, None)?;
    /// layer.set_adapter("up", 0, LoraWeights { a: ones(1, 2), b: ones(3, 1), scaling: 0.5, dropout: 0.0 })?;
    /// layer.merge_adapter(0)?;
    /// assert_eq!(layer.weight().dense_rows(0, 3)?, ones(3, 2) * 1.5);
    /// assert!(!layer.has_adapter(0));
    /// assert_eq!(weight, ones(3, 2)); // the tensor that the layer was made from is as it was
    /// # Ok::<(), ferrotune_lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Kernel`] or [`Error::Torch`] if libtorch fails.
    pub fn merge_adapter(&mut self, adapter: usize) -> Result<()> {
        if !self.has_adapter(adapter) {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        // The layer's tensors are shared with whoever gave them.
        let merged = self.weight.dense_copy()?;
        let mut start = 0;
        for member in &self.members {
            let rows = member.info.out_features;
            if let Some(Some(LoraWeights { a, b, scaling, .. })) = member.adapters.get(adapter) {
                let update = b.f_matmul(a)?.f_mul_scalar(*scaling)?;
                let _ = merged.f_narrow(0, start, rows)?.f_add_(&update.f_to_kind(merged.kind())?)?;
            }
            start += rows;
        }
        self.weight = FrozenWeight::new(&merged)?;
        self.remove_adapter(adapter);
        Ok(())
    }

    /// Removes the adapter `adapter` from all modules of the layer, which then compute what they computed before they had it.
    pub fn remove_adapter(&mut self, adapter: usize) {
        for member in &mut self.members {
            if let Some(weights) = member.adapters.get_mut(adapter) {
                *weights = None;
            }
        }
    }
}
