//! `config.json`.

use serde_json::{Value as Json, json};

use super::fields::Fields;
use super::rope::RopeScaling;
use super::special_tokens::SpecialTokens;
use super::weights::WeightPlan;
use crate::error::Result;
use crate::gguf::GgufFile;

/// Keys of architecture `llama` that are read, or that say nothing about the mathematics. Any other is refused by name:
/// a multiplier that is overlooked gives a model that is subtly wrong.
const KNOWN_KEYS: [&str; 24] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.causal",
    "expert_count",
    "expert_used_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "use_parallel_residual",
    "pooling_type",
];

/// The hyperparameters of a decoder, as `config.json` calls them.
#[derive(Clone, Debug)]
pub(super) struct ModelConfig {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<RopeScaling>,
    sliding_window: Option<usize>,
}

impl ModelConfig {
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let fields = Fields(file);
        let key = "general.architecture";
        match fields.optional_str(key)?.ok_or_else(|| fields.missing(key))? {
            "llama" => {}
            other => return Err(fields.unsupported(key, other, "llama")),
        }
        refuse_unknown(fields)?;
        let hidden_size = fields.size("llama.embedding_length")?;
        let num_attention_heads = fields.size("llama.attention.head_count")?;
        let head_dim = head_dim(fields, hidden_size, num_attention_heads)?;
        let num_key_value_heads =
            fields.optional_size("llama.attention.head_count_kv")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of the {num_attention_heads} attention heads");
            return Err(fields.invalid("llama.attention.head_count_kv", expected, num_key_value_heads));
        }
        let max_position_embeddings = fields.size("llama.context_length")?;
        let rope_theta = fields.optional_f64("llama.rope.freq_base")?.unwrap_or(10_000.0);
        Ok(Self {
            hidden_size,
            intermediate_size: fields.size("llama.feed_forward_length")?,
            num_hidden_layers: fields.size("llama.block_count")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields
                .optional_f64("llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| fields.missing("llama.attention.layer_norm_rms_epsilon"))?,
            rope_theta,
            rope_scaling: RopeScaling::from_gguf(file, rope_theta, head_dim)?,
            sliding_window: fields
                .optional_usize("llama.attention.sliding_window")?
                .filter(|&window| window > 0),
        })
    }

    /// The content of `config.json`.
    ///
    /// Mistral models are written as such only where a sliding window makes a difference; without one the two model types are
    /// the same function.
    pub(super) fn to_json(&self, plan: &WeightPlan, special: &SpecialTokens) -> Json {
        let (architecture, model_type) = if self.sliding_window.is_some() {
            ("MistralForCausalLM", "mistral")
        } else {
            ("LlamaForCausalLM", "llama")
        };
        let mut rope_parameters = json!({ "rope_theta": self.rope_theta, "rope_type": "default" });
        let mut config = json!({
            "architectures": [architecture],
            "attention_dropout": 0.0,
            "bos_token_id": special.bos,
            "dtype": "float32",
            "eos_token_id": special.eos_json(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": special.pad,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": plan.tied,
            "use_cache": true,
            "vocab_size": plan.vocab_size,
        });
        if let Some(window) = self.sliding_window {
            config["sliding_window"] = json!(window);
        } else {
            config["attention_bias"] = json!(plan.attention_bias);
            config["mlp_bias"] = json!(plan.mlp_bias);
        }
        if let Some(scaling) = &self.rope_scaling {
            rope_parameters = scaling.to_json();
            // The older spelling, for readers that do not know `rope_parameters`.
            config["rope_scaling"] = rope_parameters.clone();
            rope_parameters["rope_theta"] = json!(self.rope_theta);
        }
        config["rope_parameters"] = rope_parameters;
        config.sort_all_objects();
        config
    }

    pub(super) fn has_sliding_window(&self) -> bool {
        self.sliding_window.is_some()
    }
}

fn refuse_unknown(fields: Fields<'_>) -> Result<()> {
    for (key, value) in fields.0.metadata() {
        if let Some(name) = key.strip_prefix("llama.")
            && !KNOWN_KEYS.contains(&name)
        {
            return Err(fields.unsupported(
                "metadata key",
                format_args!("{key} = {}", value.describe()),
                "plain Llama",
            ));
        }
    }
    if let Some(experts) = fields.optional_usize("llama.expert_count")?.filter(|&experts| experts > 0) {
        return Err(fields.unsupported("llama.expert_count", experts, "0, a model without experts"));
    }
    if fields.optional_bool("llama.attention.causal")? == Some(false) {
        return Err(fields.unsupported("llama.attention.causal", false, true));
    }
    if fields.optional_bool("llama.use_parallel_residual")? == Some(true) {
        return Err(fields.unsupported("llama.use_parallel_residual", true, false));
    }
    Ok(())
}

fn head_dim(fields: Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let key = "llama.attention.key_length";
    let head_dim = match fields.optional_size(key)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of the hidden size {hidden_size}, for there is no {key}");
            return Err(fields.invalid("llama.attention.head_count", expected, heads));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(fields.invalid(key, "an even number, for rotary pairs", head_dim));
    }
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(found) = fields.optional_size(key)?.filter(|&found| found != head_dim) {
            return Err(fields.unsupported(
                key,
                found,
                format_args!("{head_dim}, the length of a query head"),
            ));
        }
    }
    Ok(head_dim)
}
