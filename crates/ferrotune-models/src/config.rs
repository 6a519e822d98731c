//! A Hugging Face `config.json` of a Llama or Mistral model.

use crate::{
    error::{Error, Result},
    regular_file,
};
use serde_json::{Map, Value};
use std::path::Path;

/// The families that this crate computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `model_type = "llama"`.
    Llama,
    /// `model_type = "mistral"`.
    Mistral,
}

/// How rotary frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// `rope_type = "default"`: not at all.
    Default,
    /// `rope_type = "llama3"`: long wavelengths are stretched, short ones kept, those between interpolated.
    Llama3 {
        /// By how much long wavelengths are stretched.
        factor: f64,
        /// `original_max_position_embeddings / low_freq_factor` is the wavelength above which all is stretched.
        low_freq_factor: f64,
        /// `original_max_position_embeddings / high_freq_factor` is the wavelength below which nothing is.
        high_freq_factor: f64,
        /// Context length before the scaling.
        original_max_position_embeddings: f64,
    },
}

/// Shape and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward block.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: i64,
    /// Number of key and value heads.
    pub num_key_value_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Constant under the root of the norms.
    pub rms_norm_eps: f64,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: i64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Number of tokens that a query sees, itself included.
    pub sliding_window: Option<i64>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<i64>,
}

/// Keys that change what a decoder computes in some family, with the value at which they do nothing.
const INERT_VALUES: &[(&str, Inert)] = &[
    ("attention_multiplier", Inert::Absent),
    ("residual_multiplier", Inert::Number(1.0)),
    ("embedding_multiplier", Inert::Number(1.0)),
    ("logits_scaling", Inert::Number(1.0)),
    ("logit_scale", Inert::Number(1.0)),
    ("attention_dropout", Inert::Number(0.0)),
    ("partial_rotary_factor", Inert::Number(1.0)),
    ("attn_logit_softcapping", Inert::Absent),
    ("final_logit_softcapping", Inert::Absent),
    ("query_pre_attn_scalar", Inert::Absent),
    ("clip_qkv", Inert::Absent),
    ("use_qk_norm", Inert::False),
    ("qk_norm", Inert::False),
    ("qk_layernorm", Inert::False),
    ("no_rope_layers", Inert::Absent),
    ("num_local_experts", Inert::Absent),
    ("num_experts", Inert::Absent),
    ("is_encoder_decoder", Inert::False),
    ("quantization_config", Inert::Absent),
];

#[derive(Clone, Copy)]
enum Inert {
    Absent,
    Number(f64),
    False,
}

impl ModelConfig {
    /// Reads `config.json` (and the stop tokens of `generation_config.json`) of a model directory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`] or [`Error::TooLarge`] for the file; [`Error::InFile`] around [`Error::ConfigMalformed`],
    /// [`Error::ConfigUnsupported`] (the field that changes the maths and is not supported) or [`Error::ConfigInvalid`] (a value that cannot
    /// be).
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let text = regular_file::read_json(&path)?;
        let mut config = Self::from_json(&text).map_err(|error| error.in_file(&path))?;
        let path = directory.join("generation_config.json");
        if regular_file::is_there(&path) {
            let text = regular_file::read_json(&path)?;
            let fields = Fields::parse(&text).map_err(|error| error.in_file(&path))?;
            if let Some(ids) = fields.ids("eos_token_id").map_err(|error| error.in_file(&path))? {
                config.eos_token_ids = ids;
            }
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::from_dir`], without the file's name.
    pub fn from_json(text: &str) -> Result<Self> {
        let fields = Fields::parse(text)?;
        let family = match fields.text("model_type")?.as_deref() {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            Some(other) => return Err(unsupported("model_type", other, "only `llama` and `mistral` are")),
            None => return Err(invalid("model_type", "nothing", "`llama` or `mistral`")),
        };
        for &(key, inert) in INERT_VALUES {
            let Some(value) = fields.get(key) else { continue };
            let does_nothing = match inert {
                Inert::Absent => false,
                Inert::Number(number) => value.as_f64() == Some(number),
                Inert::False => value.as_bool() == Some(false),
            };
            if !does_nothing {
                return Err(unsupported(key, &value.to_string(), "it changes what the model computes"));
            }
        }
        match fields.text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(unsupported("hidden_act", other, "only `silu` is")),
        }
        if let Some(types) = fields.get("layer_types") {
            let same = types.as_array().is_some_and(|types| types.windows(2).all(|pair| pair[0] == pair[1]));
            if !same {
                return Err(unsupported(
                    "layer_types",
                    &types.to_string(),
                    "layers of different kinds are not",
                ));
            }
        }
        let llama = family == Family::Llama;
        let hidden_size = fields.size("hidden_size", 4096)?;
        let heads = fields.size("num_attention_heads", 32)?;
        let kv_heads = fields.size("num_key_value_heads", if llama { heads } else { 8 })?;
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(invalid("num_key_value_heads", &kv_heads.to_string(), &expected));
        }
        if fields.get("head_dim").is_none() && hidden_size % heads != 0 {
            let expected = format!("a multiple of num_attention_heads = {heads}, or a head_dim beside it");
            return Err(invalid("hidden_size", &hidden_size.to_string(), &expected));
        }
        let head_dim = fields.size("head_dim", hidden_size / heads)?;
        if head_dim % 2 != 0 {
            return Err(invalid("head_dim", &head_dim.to_string(), "an even number"));
        }
        let max_position_embeddings =
            fields.size("max_position_embeddings", if llama { 2048 } else { 4096 * 32 })?;
        let (rope_theta, rope_scaling) = fields.rope(max_position_embeddings)?;
        let sliding_window =
            match (family, fields.get("sliding_window"), fields.0.contains_key("sliding_window")) {
                (Family::Llama, ..) => None, // as transformers: Llama has no window, whatever the file says
                (Family::Mistral, None, true) => None,
                (Family::Mistral, ..) => Some(fields.size("sliding_window", 4096)?),
            };
        Ok(Self {
            family,
            vocab_size: fields.size("vocab_size", 32_000)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", if llama { 11_008 } else { 14_336 })?,
            num_hidden_layers: fields.size("num_hidden_layers", 32)? as usize,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            max_position_embeddings,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: llama && fields.flag("attention_bias")?,
            mlp_bias: llama && fields.flag("mlp_bias")?,
            sliding_window,
            eos_token_ids: fields.ids("eos_token_id")?.unwrap_or_default(),
        })
    }
}

/// A JSON object whose nulls count as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(map) => Ok(Self(map)),
            Err(source) => Err(Error::ConfigMalformed {
                line: source.line(),
                column: source.column(),
                reason: source.to_string(),
            }),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(invalid(key, &other.to_string(), "a string")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(key, &other.to_string(), "true or false")),
        }
    }

    /// A positive size that no checkpoint exceeds by honest means.
    fn size(&self, key: &str, default: i64) -> Result<i64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_i64() {
            Some(size) if (1..=1 << 31).contains(&size) => Ok(size),
            _ => Err(invalid(key, &value.to_string(), "a whole number from 1 to 2^31")),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(invalid(key, &value.to_string(), "a positive number")),
        }
    }

    /// One token id or a list of them.
    fn ids(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = match value {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|id| vec![id]),
        };
        list.map(Some).ok_or_else(|| invalid(key, &value.to_string(), "a token id or a list of them"))
    }

    /// Base and scaling of the rotary frequencies from the new key (`rope_parameters`) or the old ones (`rope_theta`,
    /// `rope_scaling`); a `rope_scaling` replaces the new key, and a base inside wins over the one outside.
    fn rope(&self, max_position_embeddings: i64) -> Result<(f64, RopeScaling)> {
        let is_filled = |value: &&Value| value.as_object().is_none_or(|map| !map.is_empty());
        let inner = match self.get("rope_scaling").filter(is_filled).or_else(|| self.get("rope_parameters")) {
            None => Fields(Map::new()),
            Some(Value::Object(map)) => Fields(map.clone()),
            Some(other) => {
                return Err(invalid("rope_scaling or rope_parameters", &other.to_string(), "an object"));
            }
        };
        if let Some((key, value)) = inner.0.iter().find(|(_, value)| value.is_object()) {
            return Err(unsupported(
                &format!("rope_parameters.{key}"),
                &value.to_string(),
                "layers of different kinds are not",
            ));
        }
        let theta = inner.number("rope_theta", self.number("rope_theta", 10_000.0)?)?;
        if let Some(factor) = inner.get("partial_rotary_factor").filter(|factor| factor.as_f64() != Some(1.0))
        {
            return Err(unsupported(
                "partial_rotary_factor",
                &factor.to_string(),
                "only whole heads are rotated",
            ));
        }
        let rope_type = match inner.text("rope_type")? {
            Some(name) => Some(name),
            None => inner.text("type")?,
        };
        let scaling = match rope_type.as_deref() {
            None | Some("default") => RopeScaling::Default,
            Some("llama3") => {
                let required = |key: &str| match inner.get(key) {
                    Some(_) => inner.number(key, 1.0),
                    None => Err(invalid(key, "nothing", "a positive number, for rope_type `llama3`")),
                };
                let original = match self.get("original_max_position_embeddings") {
                    Some(_) => self.number("original_max_position_embeddings", 1.0)?,
                    None => {
                        inner.number("original_max_position_embeddings", max_position_embeddings as f64)?
                    }
                };
                let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
                if low >= high {
                    return Err(invalid("high_freq_factor", &high.to_string(), "more than low_freq_factor"));
                }
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original,
                }
            }
            Some(other) => {
                return Err(unsupported("rope_type", other, "only `default` and `llama3` are"));
            }
        };
        Ok((theta, scaling))
    }
}

fn unsupported(key: &str, found: &str, reason: &str) -> Error {
    Error::ConfigUnsupported { key: key.to_owned(), found: found.to_owned(), reason: reason.to_owned() }
}

fn invalid(key: &str, found: &str, expected: &str) -> Error {
    Error::ConfigInvalid { key: key.to_owned(), found: found.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<ModelConfig> {
        ModelConfig::from_json(&format!(
            r#"{{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4{extra}}}"#
        ))
    }

    #[test]
    fn absent_keys_have_the_defaults_of_the_family() {
        let llama = read("").unwrap();
        assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.intermediate_size), (4, 16, 11_008));
        assert_eq!(
            (llama.rope_theta, llama.sliding_window, llama.max_position_embeddings),
            (10_000.0, None, 2048)
        );
        let mistral = ModelConfig::from_json(r#"{"model_type": "mistral"}"#).unwrap();
        assert_eq!((mistral.num_key_value_heads, mistral.sliding_window), (8, Some(4096)));
        let open = ModelConfig::from_json(r#"{"model_type": "mistral", "sliding_window": null}"#).unwrap();
        assert_eq!(open.sliding_window, None);
    }

    #[test]
    fn old_and_new_rope_keys_mean_the_same() {
        let llama3 = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192"#;
        let old = read(&format!(r#", "rope_theta": 500000.0, "rope_scaling": {{{llama3}}}"#)).unwrap();
        let new = read(&format!(r#", "rope_parameters": {{"rope_theta": 500000.0, {llama3}}}"#)).unwrap();
        assert_eq!(old, new);
        assert_eq!(new.rope_theta, 500_000.0);
        let aliased = read(r#", "rope_scaling": {"type": "default"}, "rope_theta": 5.0"#).unwrap();
        assert_eq!((aliased.rope_theta, aliased.rope_scaling), (5.0, RopeScaling::Default));
        let inner_wins = read(r#", "rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}"#).unwrap();
        assert_eq!(inner_wins.rope_theta, 7.0);
    }

    #[test]
    fn what_changes_the_maths_is_refused_by_name() {
        for (extra, key) in [
            (r#", "hidden_act": "gelu""#, "hidden_act"),
            (r#", "rope_scaling": {"type": "yarn", "factor": 2.0}"#, "rope_type"),
            (r#", "quantization_config": {"bits": 4}"#, "quantization_config"),
            (r#", "logits_scaling": 8.0"#, "logits_scaling"),
            (r#", "attention_dropout": 0.1"#, "attention_dropout"),
            (
                r#", "rope_parameters": {"full_attention": {"rope_theta": 5.0}}"#,
                "rope_parameters.full_attention",
            ),
            (r#", "layer_types": ["full_attention", "sliding_attention"]"#, "layer_types"),
        ] {
            assert!(
                matches!(read(extra), Err(Error::ConfigUnsupported { key: found, .. }) if found == key),
                "{extra}"
            );
        }
        let other = ModelConfig::from_json(r#"{"model_type": "gemma2"}"#);
        assert!(matches!(other, Err(Error::ConfigUnsupported { found, .. }) if found == "gemma2"));
        assert!(
            read(r#", "logits_scaling": 1.0, "quantization_config": null, "attention_dropout": 0"#).is_ok()
        );
    }

    #[test]
    fn senseless_values_are_named() {
        for (extra, key) in [
            (r#", "num_key_value_heads": 3"#, "num_key_value_heads"),
            (r#", "head_dim": 5"#, "head_dim"),
            (r#", "vocab_size": -1"#, "vocab_size"),
            (r#", "rms_norm_eps": "small""#, "rms_norm_eps"),
            (r#", "eos_token_id": "end""#, "eos_token_id"),
            (r#", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}"#, "low_freq_factor"),
        ] {
            assert!(
                matches!(read(extra), Err(Error::ConfigInvalid { key: found, .. }) if found == key),
                "{extra}"
            );
        }
        assert!(matches!(ModelConfig::from_json("{"), Err(Error::ConfigMalformed { line: 1, .. })));
    }
}
