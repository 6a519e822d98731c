//! The decoder: embedding, layers, norm, head.

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
    layer::{Attend, Layer, Place, WithinBatch},
    neftune,
    options::ForwardOptions,
    reader::Reader,
    rope, size,
};
use ferrotune_autograd::checkpoint;
use ferrotune_kernels::{
    AttentionOptions, CrossEntropyOptions, FrozenWeight, Mode, SequenceLayout, linear_cross_entropy_with,
    rms_norm,
};
use ferrotune_lora::{Adaptable, LoraLinear};
use std::path::Path;
use tch::{Device, Kind, TchError, Tensor};

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
    embed_tokens: FrozenWeight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenWeight,
    head_is_embedding: bool,
    inverse_frequencies: Tensor,
    device: Device,
}

impl CausalLm {
    /// Loads a Hugging Face model directory: `config.json` and safetensors weights in f32, f16 or bf16, computed in `kind`.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_dir`] and [`Checkpoint::open`]; [`Error::TensorMissing`], [`Error::TensorShape`],
    /// [`Error::TensorDtype`] or [`Error::TensorsUnexpected`] where configuration and weights do not belong together;
    /// [`Error::TensorNotFinite`].
    pub fn load(directory: &Path, device: Device, kind: Kind) -> Result<Self> {
        let config = ModelConfig::from_dir(directory)?;
        let checkpoint = Checkpoint::open(directory)?;
        size::check(&config, &checkpoint)?;
        let mut read = Reader::new(&checkpoint, device, kind);
        read.prefix = size::prefix(&checkpoint);
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let has_head = checkpoint.contains("lm_head.weight");
        let embed_name = format!("{}embed_tokens.weight", read.prefix);
        let head_name = "lm_head.weight";
        // Tied models may lack either of the two. One that has both, and different ones, is not tied, as in transformers.
        let (embed_name, head_name) =
            match (config.tie_word_embeddings, has_head, checkpoint.contains(&embed_name)) {
                (true, true, true) if read.are_equal([&embed_name, head_name], &[vocab, hidden])? => {
                    (&*embed_name, None)
                }
                (true, true, true) | (false, ..) => (&*embed_name, Some(head_name)),
                (true, true, false) => (head_name, None),
                (true, false, _) => (&*embed_name, None),
            };
        let mut matrix = |name: &str| read.frozen(vec![(name.to_owned(), vocab)], hidden);
        let embed_tokens = matrix(embed_name)?;
        let head = head_name.map(matrix).transpose()?;
        let head_is_embedding = head.is_none();
        let head = head.unwrap_or_else(|| embed_tokens.shallow_clone());
        let layers = read.layers(&config)?;
        let norm = read.tensor("norm.weight", &[hidden])?;
        read.check_nothing_left(directory)?;
        let inverse_frequencies =
            Tensor::f_from_slice(&rope::inverse_frequencies(&config))?.f_to_device(device)?;
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

    pub(crate) fn head(&self) -> &FrozenWeight {
        &self.head
    }

    /// Number of weights of the base model; a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        let of = |weight: &FrozenWeight| (weight.out_features() * weight.in_features()) as usize;
        let head = if self.head_is_embedding { 0 } else { of(&self.head) };
        let layers = self.layers.iter().map(|layer| {
            layer.linears().map(LoraLinear::parameter_count).iter().sum::<usize>() + 2 * self.norm.numel()
        });
        of(&self.embed_tokens) + head + layers.sum::<usize>() + self.norm.numel()
    }

    /// Bytes that the weights in fewer bits will take beside the weights once it generates, see [`FrozenWeight`].
    pub fn compact_bytes(&self) -> usize {
        self.product_weights().map(FrozenWeight::compact_bytes).sum()
    }

    /// Bytes that the weights rounded to `kind` will take beside the weights, for products in that kind.
    pub fn rounded_bytes(&self, kind: Kind) -> usize {
        self.product_weights().map(|weight| weight.rounded_bytes(kind)).sum()
    }

    fn product_weights(&self) -> impl Iterator<Item = &FrozenWeight> {
        let linears = self.layers.iter().flat_map(Layer::linears).map(LoraLinear::weight);
        linears.chain([&self.head])
    }

    /// Final hidden states of the rows `rows` (all where `None`), after the last norm.
    ///
    /// # Shapes
    /// - `input_ids`: `[total_tokens]`; returns `[rows, hidden_size]`
    ///
    /// # Errors
    /// [`Error::Inputs`] if ids and layout have different lengths, a sequence is longer than the model's context, or has
    /// an adapter that the model does not have; [`Error::TokenOutOfRange`] for an id without an embedding.
    pub fn hidden_states(
        &self,
        input_ids: &[i64],
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mode: Mode,
    ) -> Result<Tensor> {
        self.within_batch(self.embed(input_ids, layout)?, layout, rows, mode, ForwardOptions::default())
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
    /// As [`CausalLm::hidden_states`]; [`Error::Kernel`] for a target outside of the vocabulary.
    pub fn target_nll(&self, inputs: &PackedInputs, mode: Mode) -> Result<Tensor> {
        self.target_losses(inputs, mode, ForwardOptions::default())
    }

    /// Loss of each target, `[targets]` in f32: its negative log-likelihood, and what the options make of it.
    ///
    /// # Errors
    /// As [`CausalLm::hidden_states`]; [`Error::Kernel`] for a target outside of the vocabulary, or a label
    /// smoothing outside of 0 to 1.
    pub fn target_losses(
        &self,
        inputs: &PackedInputs,
        mode: Mode,
        options: ForwardOptions,
    ) -> Result<Tensor> {
        let PackedInputs { input_ids, layout, target_rows, target_ids } = inputs;
        let mut x = self.embed(input_ids, layout)?;
        if let (Some(alpha), Mode::Train(key)) = (options.neftune_alpha, mode) {
            x = neftune::with_noise(&x, alpha, layout, key)?;
        }
        let hidden = self.within_batch(x, layout, Some(target_rows), mode, options)?;
        let ids = Tensor::f_from_slice(target_ids)?.f_to_device(self.device)?;
        let kind = self.product_kind(options);
        let (hidden, head) = (hidden.f_to_kind(kind)?, self.head.in_kind(kind)?);
        let options = CrossEntropyOptions { label_smoothing: options.label_smoothing, ..Default::default() };
        Ok(linear_cross_entropy_with(&hidden, &head, &ids, options)?)
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
        Ok(self.embed_tokens.select_rows(input_ids)?)
    }

    /// The kind of factors of products.
    fn product_kind(&self, options: ForwardOptions) -> Kind {
        let policy = options.policy;
        if policy.compute() == policy.weights() { self.kind() } else { policy.compute().kind() }
    }

    /// Final hidden states of `rows` with attention within the batch alone.
    fn within_batch(
        &self,
        embeddings: Tensor,
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mode: Mode,
        options: ForwardOptions,
    ) -> Result<Tensor> {
        let (kv_heads, attention) = (self.config.num_key_value_heads, self.attention_options());
        let kind = self.product_kind(options);
        let keeps_inputs_alone = options.gradient_checkpointing && matches!(mode, Mode::Train(_));
        self.through_layers(embeddings, layout, rows, |index, x, tables, wanted| {
            let layer = &self.layers[index];
            if !keeps_inputs_alone {
                let mut within = WithinBatch { layout, kv_heads, options: attention };
                let place = Place { index, layout, tables, wanted, config: &self.config };
                return match kind == self.kind() {
                    true => layer.forward(x, place, mode, &mut within),
                    false => layer.in_kind(kind)?.forward(x, place, mode, &mut within),
                };
            }
            let layer = layer.in_kind(self.kind())?;
            let parameters = layer.parameters(layout);
            let (config, layout) = (self.config.clone(), layout.clone());
            let tables = tables.each_ref().map(Tensor::shallow_clone);
            let wanted = wanted.map(Tensor::shallow_clone);
            let again = move |x: &[Tensor]| {
                let mut within = WithinBatch { layout: &layout, kv_heads, options: attention };
                let place = Place {
                    index,
                    layout: &layout,
                    tables: &tables,
                    wanted: wanted.as_ref(),
                    config: &config,
                };
                Ok(vec![layer.in_kind(kind)?.forward(&x[0], place, mode, &mut within)?])
            };
            let parameters: Vec<&Tensor> = parameters.iter().collect();
            let output = checkpoint(again, &[x], &parameters).map_err(ferrotune_kernels::Error::from)?;
            Ok(output.into_iter().next().ok_or_else(|| TchError::Torch("a layer gave nothing".to_owned()))?)
        })
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
        self.through_layers(embeddings, layout, rows, |index, x, tables, wanted| {
            let place = Place { index, layout, tables, wanted, config: &self.config };
            self.layers[index].forward(x, place, mode, attention)
        })
    }

    /// What `layer` makes of the embeddings, from its index, its input, the tables of the rotation and the rows that are wanted of it;
    /// then the last norm.
    fn through_layers(
        &self,
        embeddings: Tensor,
        layout: &SequenceLayout,
        rows: Option<&[i64]>,
        mut layer: impl FnMut(usize, &Tensor, &[Tensor; 2], Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (cos, sin) = rope::tables(&self.inverse_frequencies, &layout.position_ids(), self.device)?;
        let tables = [cos.f_to_kind(self.kind())?, sin.f_to_kind(self.kind())?];
        let rows = rows.map(|rows| Tensor::f_from_slice(rows)?.f_to_device(self.device)).transpose()?;
        let mut x = embeddings;
        for index in 0..self.layers.len() {
            // Nothing after the last attention mixes rows: from there on only those asked for are computed.
            let wanted = if index + 1 == self.layers.len() { rows.as_ref() } else { None };
            x = layer(index, &x, &tables, wanted)?;
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
