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

impl Layer {
    pub(crate) fn load(read: &mut Reader, config: &ModelConfig, index: usize) -> Result<Self> {
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
