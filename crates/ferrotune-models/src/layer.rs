//! A layer of the decoder: attention and a feed-forward block.

use crate::{config::ModelConfig, error::Result, reader::Reader};
use ferrotune_kernels::{AttentionOptions, Mode, Prologue, SequenceLayout, rotary_attention};
use ferrotune_lora::LoraLinear;
use tch::{Kind, Tensor};

/// The tensors of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    input_layernorm: Tensor,
    pub(crate) qkv_proj: LoraLinear,
    pub(crate) o_proj: LoraLinear,
    post_attention_layernorm: Tensor,
    pub(crate) gate_up_proj: LoraLinear,
    pub(crate) down_proj: LoraLinear,
}

/// Where a layer is computed.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub index: usize,
    pub layout: &'a SequenceLayout,
    /// Cosines and sines of the rows.
    pub tables: &'a [Tensor; 2],
    /// The rows that are wanted after it; all where `None`.
    pub wanted: Option<&'a Tensor>,
    pub config: &'a ModelConfig,
}

/// Rotary embedding and attention of one forward pass.
pub(crate) trait Attend {
    /// Attention of the new rows, `[tokens, heads, head_dim]`; `qkv` is `[tokens, heads + 2 * kv_heads, head_dim]`, not rotated yet,
    /// and `tables` are the cosines and sines of its rows.
    fn attend(&mut self, layer: usize, qkv: &Tensor, tables: &[Tensor; 2]) -> Result<Tensor>;
}

/// Attention within the batch alone, for training and scoring.
pub(crate) struct WithinBatch<'a> {
    pub layout: &'a SequenceLayout,
    pub kv_heads: i64,
    pub options: AttentionOptions,
}

impl Attend for WithinBatch<'_> {
    fn attend(&mut self, _: usize, qkv: &Tensor, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
        Ok(rotary_attention(qkv, self.kv_heads, cos, sin, self.layout, self.options)?)
    }
}

/// The norms of a layer, by name.
pub(crate) const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

/// Linear layers on one input, which are kept as one.
pub(crate) struct Stacked {
    /// The module that they belong to.
    pub parent: &'static str,
    /// Their names and `out_features`.
    pub parts: Vec<(&'static str, i64)>,
    pub in_features: i64,
    pub bias: bool,
}

impl Stacked {
    /// Those of a layer, in the order in which they are computed.
    pub(crate) fn of_layer(config: &ModelConfig) -> [Self; 4] {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let attention = |parts, in_features| Self {
            parent: "self_attn",
            parts,
            in_features,
            bias: config.attention_bias,
        };
        let mlp = |parts, in_features| Self { parent: "mlp", parts, in_features, bias: config.mlp_bias };
        [
            attention(vec![("q_proj", queries), ("k_proj", keys), ("v_proj", keys)], hidden),
            attention(vec![("o_proj", hidden)], queries),
            mlp(vec![("gate_proj", intermediate), ("up_proj", intermediate)], hidden),
            mlp(vec![("down_proj", hidden)], intermediate),
        ]
    }
}

impl Layer {
    pub(crate) fn load(read: &mut Reader, config: &ModelConfig, index: usize) -> Result<Self> {
        let layer = format!("layers.{index}");
        let mut norm = |name: &str| read.tensor(&format!("{layer}.{name}.weight"), &[config.hidden_size]);
        let [input_layernorm, post_attention_layernorm] = [norm(NORMS[0])?, norm(NORMS[1])?];
        let [qkv_proj, o_proj, gate_up_proj, down_proj] =
            Stacked::of_layer(config).map(|stacked| read.linear(&layer, &stacked));
        Ok(Self {
            input_layernorm,
            qkv_proj: qkv_proj?,
            o_proj: o_proj?,
            post_attention_layernorm,
            gate_up_proj: gate_up_proj?,
            down_proj: down_proj?,
        })
    }

    /// Its linear layers, in the order in which they are computed.
    pub(crate) fn linears(&self) -> [&LoraLinear; 4] {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj]
    }

    pub(crate) fn has_adapter(&self, index: usize) -> bool {
        self.linears().iter().any(|linear| linear.has_adapter(index))
    }

    /// The trainable tensors of the adapters that the sequences use.
    pub(crate) fn parameters(&self, layout: &SequenceLayout) -> Vec<Tensor> {
        let mut adapters: Vec<usize> =
            layout.segments().iter().filter_map(|segment| segment.adapter).collect();
        adapters.sort_unstable();
        adapters.dedup();
        let of = |adapter: &usize| self.linears().map(|linear| linear.adapter_tensors(*adapter));
        adapters.iter().flat_map(of).flatten().collect()
    }

    /// The layer for products in `kind`; norms stay as they are.
    pub(crate) fn in_kind(&self, kind: Kind) -> Result<Self> {
        Ok(Self {
            input_layernorm: self.input_layernorm.shallow_clone(),
            qkv_proj: self.qkv_proj.in_kind(kind)?,
            o_proj: self.o_proj.in_kind(kind)?,
            post_attention_layernorm: self.post_attention_layernorm.shallow_clone(),
            gate_up_proj: self.gate_up_proj.in_kind(kind)?,
            down_proj: self.down_proj.in_kind(kind)?,
        })
    }

    /// What comes after the layer, for all rows or those that are wanted.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        place: Place<'_>,
        mode: Mode,
        attention: &mut dyn Attend,
    ) -> Result<Tensor> {
        let attended = self.attention(x, place, mode, attention)?;
        self.rest(x, &attended, place, mode)
    }

    /// Attention of the normalised input before its output projection, `[tokens, heads * head_dim]`.
    fn attention(
        &self,
        x: &Tensor,
        Place { index, layout, tables, config, .. }: Place<'_>,
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
        Place { layout, wanted, config, .. }: Place<'_>,
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
        let x = add(x, self.o_proj.forward_packed(Prologue::None, attended, layout, mode)?)?;
        let norm = Prologue::RmsNorm { weight: &self.post_attention_layernorm, eps: config.rms_norm_eps };
        let gate_up = self.gate_up_proj.forward_packed(norm, &x, layout, mode)?;
        add(&x, self.down_proj.forward_packed(Prologue::SwiGlu, &gate_up, layout, mode)?)
    }
}

/// `x + y`, in the memory of `y`, which is new, where the sum has its kind.
fn add(x: &Tensor, mut y: Tensor) -> Result<Tensor> {
    Ok(if x.kind() == y.kind() { y.f_add_(x)? } else { x.f_add(&y)? })
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
