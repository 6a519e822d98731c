//! The decoder: embedding, layers, norm, head.

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
    loss::LossOptions,
    neftune, rope, size,
};
use ferrotune_autograd::parallel_for;
use ferrotune_kernels::{
    AttentionOptions, CrossEntropyOptions, FrozenWeight, Mode, Prologue, SequenceLayout,
    linear_cross_entropy_with, rms_norm, rotary_attention,
};
use ferrotune_lora::{Adaptable, LoraLinear};
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tch::{Device, Kind, Tensor};

/// A batch as the model takes it: sequences one after another, without padding, and the tokens to be predicted.
#[derive(Clone, Debug)]
pub struct PackedInputs {
    /// Token ids, `[total_tokens]`.
    pub input_ids: Vec<i64>,
    /// Which rows form a sequence, and which adapter each uses.
    pub layout: SequenceLayout,
    /// Rows that predict a target.
    pub target_rows: Vec<i64>,
    /// The token that each of those rows should predict.
    pub target_ids: Vec<i64>,
}

/// A Llama or Mistral decoder with frozen weights and room for LoRA adapters.
///
/// A layer computes `x += o(attention(norm(x)))` and `x += down(silu(gate(norm(x))) * up(norm(x)))`; q, k and v, and gate and up,
/// are stacked into one product each. Names of modules are those of the checkpoint.
#[derive(Debug)]
pub struct CausalLm {
    config: ModelConfig,
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenWeight,
    head_is_embedding: bool,
    inverse_frequencies: Tensor,
    device: Device,
}

#[derive(Debug)]
pub(crate) struct Layer {
    input_layernorm: Tensor,
    qkv_proj: LoraLinear,
    o_proj: LoraLinear,
    post_attention_layernorm: Tensor,
    gate_up_proj: LoraLinear,
    down_proj: LoraLinear,
}

/// Rotary embedding and attention of one forward pass.
pub(crate) trait Attend {
    /// Attention of the new rows, `[tokens, heads, head_dim]`; `qkv` is `[tokens, heads + 2 * kv_heads, head_dim]`, not rotated yet,
    /// and `tables` are the cosines and sines of its rows.
    fn attend(&mut self, layer: usize, qkv: &Tensor, tables: &[Tensor; 2]) -> Result<Tensor>;
}

/// Attention within the batch alone, for training and scoring.
struct WithinBatch<'a> {
    layout: &'a SequenceLayout,
    kv_heads: i64,
    options: AttentionOptions,
}

impl Attend for WithinBatch<'_> {
    fn attend(&mut self, _: usize, qkv: &Tensor, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
        Ok(rotary_attention(qkv, self.kv_heads, cos, sin, self.layout, self.options)?)
    }
}

impl CausalLm {
    /// Loads a Hugging Face model directory: `config.json` and safetensors weights in f32, f16 or bf16, computed in `kind`.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_dir`] and [`Checkpoint::open`]; [`Error::TensorMissing`], [`Error::TensorShape`] or
    /// [`Error::TensorsUnexpected`] where configuration and weights do not belong together.
    pub fn load(directory: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = ModelConfig::from_dir(directory)?;
        let checkpoint = Checkpoint::open(directory)?;
        size::check(&config, &checkpoint)?;
        let mut read = Reader::new(&checkpoint, device, kind);
        if !checkpoint.contains("model.embed_tokens.weight") && checkpoint.contains("embed_tokens.weight") {
            read.prefix = ""; // saved from the decoder without its head
        }
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let has_head = checkpoint.contains("lm_head.weight");
        let embed_name = format!("{}embed_tokens.weight", read.prefix);
        let (embed_tokens, head) =
            match (config.tie_word_embeddings, has_head, checkpoint.contains(&embed_name)) {
                // Tied models may lack either of the two. One that has both, and different ones, is not tied, as in transformers.
                (true, true, true) | (false, ..) => {
                    let embed = read.tensor("embed_tokens.weight", &[vocab, hidden])?;
                    let head = read.tensor_at("lm_head.weight", &[vocab, hidden])?;
                    if config.tie_word_embeddings && embed.f_equal(&head)? {
                        (embed.shallow_clone(), embed)
                    } else {
                        (embed, head)
                    }
                }
                (true, true, false) => {
                    let head = read.tensor_at("lm_head.weight", &[vocab, hidden])?;
                    (head.shallow_clone(), head)
                }
                (true, false, _) => {
                    let embed = read.tensor("embed_tokens.weight", &[vocab, hidden])?;
                    (embed.shallow_clone(), embed)
                }
            };
        let layers = read.layers(&config)?;
        let norm = read.tensor("norm.weight", &[hidden])?;
        read.check_nothing_left(directory)?;
        let inverse_frequencies =
            Tensor::f_from_slice(&rope::inverse_frequencies(&config))?.f_to_device(device)?;
        let head_is_embedding = head.data_ptr() == embed_tokens.data_ptr();
        let head = FrozenWeight::new(&head)?;
        Ok(Self { config, embed_tokens, layers, norm, head, head_is_embedding, inverse_frequencies, device })
    }

    /// Shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> Device {
        self.device
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Number of weights of the base model; a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        let head = if self.head_is_embedding { 0 } else { self.embed_tokens.numel() };
        let layers = self.layers.iter().map(|layer| {
            layer.linears().map(LoraLinear::parameter_count).iter().sum::<usize>() + 2 * self.norm.numel()
        });
        self.embed_tokens.numel() + head + layers.sum::<usize>() + self.norm.numel()
    }

    /// Bytes that the weights in fewer bits will take beside the weights once it generates, see [`FrozenWeight`].
    pub fn compact_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears).map(LoraLinear::weight);
        linears.chain([&self.head]).map(FrozenWeight::compact_bytes).sum()
    }

    /// Final hidden states of the rows `rows` (all where `None`), after the last norm.
    ///
    /// # Shapes
    /// - `input_ids`: `[total_tokens]`; returns `[rows, hidden_size]`
    ///
    /// # Errors
    /// [`Error::Inputs`] if ids and layout have different lengths, or a sequence is longer than the model's context;
    /// [`Error::TokenOutOfRange`] for an id without an embedding.
    pub fn hidden_states(
        &self,
        input_ids: &[i64],
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mode: Mode,
    ) -> Result<Tensor> {
        self.within_batch(self.embed(input_ids, layout)?, layout, rows, mode)
    }

    /// Logits of the rows `rows` (all where `None`), in f32.
    ///
    /// # Shapes
    /// - `input_ids`: `[total_tokens]`; returns `[rows, vocab_size]`
    ///
    /// # Errors
    /// As [`CausalLm::hidden_states`].
    pub fn logits(&self, input_ids: &[i64], layout: &SequenceLayout, rows: Option<&[i64]>) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        self.head_logits(&self.hidden_states(input_ids, layout, rows, Mode::Eval)?)
    }

    /// Negative log-likelihood of each target, `[targets]` in f32: the loss is their sum.
    ///
    /// # Errors
    /// As [`CausalLm::hidden_states`].
    pub fn target_nll(&self, inputs: &PackedInputs, mode: Mode) -> Result<Tensor> {
        self.target_losses(inputs, mode, LossOptions::default())
    }

    /// Loss of each target, `[targets]` in f32: its negative log-likelihood, and what the options make of it.
    ///
    /// # Errors
    /// As [`CausalLm::hidden_states`]; [`Error::Kernel`] for a label smoothing outside of 0 to 1.
    pub fn target_losses(&self, inputs: &PackedInputs, mode: Mode, options: LossOptions) -> Result<Tensor> {
        let PackedInputs { input_ids, layout, target_rows, target_ids } = inputs;
        let mut x = self.embed(input_ids, layout)?;
        if let (Some(alpha), Mode::Train(key)) = (options.neftune_alpha, mode) {
            x = neftune::with_noise(&x, alpha, layout, key)?;
        }
        let hidden = self.within_batch(x, layout, Some(target_rows), mode)?;
        let ids = Tensor::f_from_slice(target_ids)?.f_to_device(self.device)?;
        let options = CrossEntropyOptions { label_smoothing: options.label_smoothing, ..Default::default() };
        Ok(linear_cross_entropy_with(&hidden, &self.head, &ids, options)?)
    }

    pub(crate) fn head_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward_product(hidden)?.f_to_kind(Kind::Float)?)
    }

    pub(crate) fn attention_options(&self) -> AttentionOptions {
        AttentionOptions {
            scale: (self.config.head_dim as f64).powf(-0.5),
            sliding_window: self.config.sliding_window,
        }
    }

    /// Kind in which activations are computed.
    pub(crate) fn kind(&self) -> Kind {
        self.embed_tokens.kind()
    }

    /// The input embeddings, `[total_tokens, hidden_size]`, once it is certain that the inputs belong together.
    pub(crate) fn embed(&self, input_ids: &[i64], layout: &SequenceLayout) -> Result<Tensor> {
        self.check_inputs(input_ids, layout)?;
        let ids = Tensor::f_from_slice(input_ids)?.f_to_device(self.device)?;
        Ok(self.embed_tokens.f_index_select(0, &ids)?)
    }

    /// [`CausalLm::run`] with attention within the batch alone.
    fn within_batch(
        &self,
        embeddings: Tensor,
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mode: Mode,
    ) -> Result<Tensor> {
        let (kv_heads, options) = (self.config.num_key_value_heads, self.attention_options());
        self.run(embeddings, layout, rows, mode, &mut WithinBatch { layout, kv_heads, options })
    }

    /// Final hidden states of `rows`, after the last norm, from the embeddings.
    pub(crate) fn run(
        &self,
        embeddings: Tensor,
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mode: Mode,
        attention: &mut dyn Attend,
    ) -> Result<Tensor> {
        let (cos, sin) = rope::tables(&self.inverse_frequencies, &layout.position_ids(), self.device)?;
        let tables = [cos.f_to_kind(self.kind())?, sin.f_to_kind(self.kind())?];
        let rows = rows.map(|rows| Tensor::f_from_slice(rows)?.f_to_device(self.device)).transpose()?;
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = layer.attention(&x, &tables, &self.config, layout, index, mode, attention)?;
            // Nothing after the last attention mixes rows: from there on only those asked for are computed.
            let wanted = if index + 1 == self.layers.len() { rows.as_ref() } else { None };
            x = layer.rest(&x, &attended, wanted, &self.config, layout, mode)?;
        }
        if let (true, Some(rows)) = (self.layers.is_empty(), &rows) {
            x = x.f_index_select(0, rows)?;
        }
        Ok(rms_norm(&x, &self.norm, self.config.rms_norm_eps)?)
    }

    fn check_inputs(&self, input_ids: &[i64], layout: &SequenceLayout) -> Result<()> {
        if input_ids.len() as i64 != layout.total_tokens() {
            return Err(Error::Inputs {
                what: "input_ids and layout",
                found: format!("{} ids", input_ids.len()),
                expected: format!("{} as the layout says", layout.total_tokens()),
            });
        }
        let vocab_size = self.config.vocab_size;
        if let Some(&id) = input_ids.iter().find(|id| !(0..vocab_size).contains(*id)) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
        for index in layout.segments().iter().filter_map(|segment| segment.adapter) {
            // Adapter 0 is the usual one, and absent in a bare base model; any other was meant.
            let exists = || self.layers.iter().any(|layer| layer.has_adapter(index));
            if index > 0 && !exists() {
                return Err(Error::Inputs {
                    what: "adapter of a sequence",
                    found: format!("index {index}"),
                    expected: "an adapter that the model has".to_owned(),
                });
            }
        }
        let longest = layout.segments().iter().map(|segment| segment.past + segment.len()).max().unwrap_or(0);
        if longest > self.config.max_position_embeddings {
            return Err(Error::Inputs {
                what: "length of a sequence",
                found: format!("{longest} tokens"),
                expected: format!(
                    "at most max_position_embeddings = {}",
                    self.config.max_position_embeddings
                ),
            });
        }
        Ok(())
    }
}

impl Adaptable for CausalLm {
    fn visit_linears(
        &mut self,
        visit: &mut dyn FnMut(&mut LoraLinear) -> ferrotune_lora::Result<()>,
    ) -> ferrotune_lora::Result<()> {
        for layer in &mut self.layers {
            visit(&mut layer.qkv_proj)?;
            visit(&mut layer.o_proj)?;
            visit(&mut layer.gate_up_proj)?;
            visit(&mut layer.down_proj)?;
        }
        Ok(())
    }

    fn other_modules(&self) -> Vec<String> {
        ["lm_head", "model.embed_tokens", "model.norm"].map(str::to_owned).to_vec()
    }
}

impl Layer {
    fn load(read: &mut Reader, config: &ModelConfig, index: usize) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let (attention, mlp) = (config.attention_bias, config.mlp_bias);
        let layer = format!("layers.{index}");
        let qkv = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        let gate_up = [("gate_proj", intermediate), ("up_proj", intermediate)];
        Ok(Self {
            input_layernorm: read.tensor(&format!("{layer}.input_layernorm.weight"), &[hidden])?,
            qkv_proj: read.linear(&format!("{layer}.self_attn"), &qkv, hidden, attention)?,
            o_proj: read.linear(&format!("{layer}.self_attn"), &[("o_proj", hidden)], queries, attention)?,
            post_attention_layernorm: read
                .tensor(&format!("{layer}.post_attention_layernorm.weight"), &[hidden])?,
            gate_up_proj: read.linear(&format!("{layer}.mlp"), &gate_up, hidden, mlp)?,
            down_proj: read.linear(&format!("{layer}.mlp"), &[("down_proj", hidden)], intermediate, mlp)?,
        })
    }

    /// Its linear layers, in the order in which they are computed.
    pub(crate) fn linears(&self) -> [&LoraLinear; 4] {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj]
    }

    fn has_adapter(&self, index: usize) -> bool {
        self.linears().iter().any(|linear| linear.has_adapter(index))
    }

    /// Attention of the normalised input before its output projection, `[tokens, heads * head_dim]`.
    #[allow(clippy::too_many_arguments)] // one call site; a struct for it would only repeat the names
    fn attention(
        &self,
        x: &Tensor,
        tables: &[Tensor; 2],
        config: &ModelConfig,
        layout: &SequenceLayout,
        index: usize,
        mode: Mode,
        attention: &mut dyn Attend,
    ) -> Result<Tensor> {
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let norm = Prologue::RmsNorm { weight: &self.input_layernorm, eps: config.rms_norm_eps };
        let qkv = self.qkv_proj.forward_packed(norm, x, layout, mode)?;
        let qkv = qkv.f_view([-1, heads + 2 * kv_heads, head_dim])?;
        let attended = attention.attend(index, &qkv, tables)?;
        Ok(attended.f_reshape([-1, heads * head_dim])?)
    }

    /// Output projection, residuals and feed-forward block, for all rows or those in `wanted`.
    fn rest(
        &self,
        x: &Tensor,
        attended: &Tensor,
        wanted: Option<&Tensor>,
        config: &ModelConfig,
        layout: &SequenceLayout,
        mode: Mode,
    ) -> Result<Tensor> {
        let narrowed = wanted.map(|rows| -> Result<_> {
            let layout = layout_of_rows(layout, rows)?;
            Ok((x.f_index_select(0, rows)?, attended.f_index_select(0, rows)?, layout))
        });
        let narrowed = narrowed.transpose()?;
        let (x, attended, layout) = match &narrowed {
            Some((x, attended, layout)) => (x, attended, layout),
            None => (x, attended, layout),
        };
        let x = x.f_add(&self.o_proj.forward_packed(Prologue::None, attended, layout, mode)?)?;
        let norm = Prologue::RmsNorm { weight: &self.post_attention_layernorm, eps: config.rms_norm_eps };
        let gate_up = self.gate_up_proj.forward_packed(norm, &x, layout, mode)?;
        Ok(x.f_add(&self.down_proj.forward_packed(Prologue::SwiGlu, &gate_up, layout, mode)?)?)
    }
}

/// The layout of a selection of rows, in their order; only the adapters matter in it.
fn layout_of_rows(layout: &SequenceLayout, rows: &Tensor) -> Result<SequenceLayout> {
    let mut lengths: Vec<(i64, i64)> = Vec::new();
    let mut adapters = Vec::new();
    for row in Vec::<i64>::try_from(rows)? {
        let segments = layout.segments();
        let place = segments.partition_point(|segment| segment.rows.end <= row);
        let adapter = segments.get(place).and_then(|segment| segment.adapter);
        match (lengths.last_mut(), adapters.last()) {
            (Some((count, _)), Some(last)) if *last == adapter => *count += 1,
            _ => {
                lengths.push((1, 0));
                adapters.push(adapter);
            }
        }
    }
    Ok(SequenceLayout::continuing(&lengths)?.with_adapters(&adapters)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads tensors and remembers which, to find those that nobody asked for.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    kind: Kind,
    used: Vec<String>,
    prefix: &'static str,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(checkpoint: &'a Checkpoint, device: Device, kind: Kind) -> Self {
        Self { checkpoint, device, kind, used: Vec::new(), prefix: "model.", buffer: Vec::new() }
    }

    /// All layers, on libtorch's threads: to make room for a weight takes as long as to copy it.
    fn layers(&mut self, config: &ModelConfig) -> Result<Vec<Layer>> {
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

    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.tensor_at(&format!("{}{name}", self.prefix), shape)
    }

    fn tensor_at(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.checkpoint.tensor_through(&mut self.buffer, name, shape, self.kind)?;
        let tensor = tensor.f_to_device(self.device)?;
        self.used.push(name.to_owned());
        Ok(tensor)
    }

    /// Layers on one input, stacked. Their paths are those of the whole model, whatever the checkpoint's prefix.
    fn linear(
        &mut self,
        parent: &str,
        parts: &[(&str, i64)],
        in_features: i64,
        bias: bool,
    ) -> Result<LoraLinear> {
        let mut layers = Vec::with_capacity(parts.len());
        for (name, out_features) in parts {
            let weight = self.tensor(&format!("{parent}.{name}.weight"), &[*out_features, in_features])?;
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

    fn check_nothing_left(&self, directory: &Path) -> Result<()> {
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
