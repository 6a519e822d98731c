//! The configuration of a LoRA adapter, in PEFT's terms.
//!
//! A layer `y = x W^T` becomes `y = x W^T + scaling * dropout(x) A^T B^T` with
//! `scaling = lora_alpha / rank`, or `lora_alpha / sqrt(rank)` with `use_rslora`; rank and alpha may differ from layer to layer.

use crate::error::{Error, Result};
use crate::pattern;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// What `adapter_config.json` says about a LoRA adapter; the defaults are PEFT's, but for `task_type`.
///
/// Its serde form has PEFT's names (`r`, `lora_alpha`, ...) and refuses unknown fields, for use in configuration files of one's own;
/// [`from_json`](Self::from_json) reads `adapter_config.json` itself with all that it may hold.
///
/// ```
/// use ferrotune_lora::{LoraConfig, TargetModules};
/// let config = LoraConfig {
///     rank: 16,
///     lora_alpha: 32.0,
///     target_modules: TargetModules::AllLinear,
///     rank_pattern: vec![("down_proj".into(), 4)],
///     ..LoraConfig::default()
/// };
/// assert_eq!(config.scaling_for("model.layers.0.self_attn.q_proj")?, 2.0);
/// assert_eq!(config.scaling_for("model.layers.0.mlp.down_proj")?, 8.0);
/// # Ok::<(), ferrotune_lora::Error>(())
/// ```
///
/// # References
/// Hu et al. 2021, arXiv:2106.09685; `use_rslora`: Kalajdzievski 2023, arXiv:2312.03732. Semantics: `peft.LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update: rows of A, columns of B.
    #[serde(rename = "r")]
    pub rank: usize,
    /// Numerator of the scaling.
    #[serde(serialize_with = "serialize_number")]
    pub lora_alpha: f64,
    /// Probability that an element of the update's input is dropped, in training only.
    pub lora_dropout: f64,
    /// The layers that get an adapter.
    pub target_modules: TargetModules,
    /// The layers that get none although `target_modules` names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<ExcludeModules>,
    /// Scale with `lora_alpha / sqrt(rank)`.
    pub use_rslora: bool,
    /// Which biases of the base are trained too: none.
    pub bias: Bias,
    /// Numbers of the decoder layers that get adapters, all when `None`; only with a list of names.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "one_or_many")]
    pub layers_to_transform: Option<Vec<u64>>,
    /// What stands before the layer's number in a module path (`layers`, `h`), any word when `None`.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "one_or_many")]
    pub layers_pattern: Option<Vec<String>>,
    /// How A and B started.
    pub init_lora_weights: InitLoraWeights,
    /// The task; tells PEFT which class of model to load. `CAUSAL_LM` by default, where PEFT's default is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<TaskType>,
    /// Name or directory of the base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Ranks that differ from `rank`: names (matched like a target's, `q_proj` or `3.mlp.up_proj`) or regular expressions. The first
    /// that matches counts.
    #[serde(with = "ordered_map", skip_serializing_if = "Vec::is_empty")]
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas that differ from `lora_alpha`, in the same way.
    #[serde(with = "ordered_map", skip_serializing_if = "Vec::is_empty")]
    pub alpha_pattern: Vec<(String, f64)>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            exclude_modules: None,
            use_rslora: false,
            bias: Bias::None,
            layers_to_transform: None,
            layers_pattern: None,
            init_lora_weights: InitLoraWeights::Kaiming,
            task_type: Some(TaskType::CausalLm),
            base_model_name_or_path: None,
            revision: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// The rank of the adapter at `module`: the first entry of `rank_pattern` that matches, else `rank`.
    ///
    /// # Errors
    /// [`Error::Pattern`] for an entry that is no valid pattern.
    pub fn rank_for(&self, module: &str) -> Result<usize> {
        Ok(first_match("rank_pattern", &self.rank_pattern, module)?.unwrap_or(self.rank))
    }

    /// The alpha of the adapter at `module`: the first entry of `alpha_pattern` that matches, else `lora_alpha`.
    ///
    /// # Errors
    /// [`Error::Pattern`] for an entry that is no valid pattern.
    pub fn alpha_for(&self, module: &str) -> Result<f64> {
        Ok(first_match("alpha_pattern", &self.alpha_pattern, module)?.unwrap_or(self.lora_alpha))
    }

    /// What the update of the adapter at `module` is multiplied with.
    ///
    /// # Errors
    /// [`Error::Pattern`] for a pattern that is not valid, [`Error::InvalidValue`] for a rank of 0.
    pub fn scaling_for(&self, module: &str) -> Result<f64> {
        let rank = self.rank_for(module)?;
        if rank == 0 {
            return Err(Error::value("r", rank, "at least 1"));
        }
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok(self.alpha_for(module)? / divisor)
    }

    /// Checks every value that can be checked without a model.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] or [`Error::Pattern`] for the first that is wrong.
    pub fn validate(&self) -> Result<()> {
        let ranks = self.rank_pattern.iter().map(|(name, rank)| (format!("rank_pattern.{name}"), *rank));
        for (key, rank) in std::iter::once(("r".to_owned(), self.rank)).chain(ranks) {
            if rank == 0 {
                return Err(Error::value(key, rank, "at least 1"));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(name, alpha)| (format!("alpha_pattern.{name}"), *alpha));
        for (key, alpha) in std::iter::once(("lora_alpha".to_owned(), self.lora_alpha)).chain(alphas) {
            if !alpha.is_finite() || alpha == 0.0 {
                return Err(Error::value(
                    key,
                    alpha,
                    "a finite number other than 0 (0 would switch the adapter off)",
                ));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::value(
                "lora_dropout",
                self.lora_dropout,
                "a probability from 0 up to, but not, 1",
            ));
        }
        for (name, _) in &self.rank_pattern {
            pattern::suffix_match("rank_pattern", name)?;
        }
        for (name, _) in &self.alpha_pattern {
            pattern::suffix_match("alpha_pattern", name)?;
        }
        match &self.target_modules {
            TargetModules::Names(names) => check_names("target_modules", names)?,
            TargetModules::Pattern(text) => drop(pattern::full_match("target_modules", text)?),
            TargetModules::AllLinear => {}
        }
        match &self.exclude_modules {
            Some(ExcludeModules::Names(names)) => {
                if let Some(name) = names.iter().find(|name| name.is_empty()) {
                    return Err(Error::value(
                        "exclude_modules",
                        format!("{name:?}"),
                        "module names that are not empty",
                    ));
                }
            }
            Some(ExcludeModules::Pattern(text)) => drop(pattern::full_match("exclude_modules", text)?),
            None => {}
        }
        self.validate_layers()
    }

    fn validate_layers(&self) -> Result<()> {
        let named = matches!(self.target_modules, TargetModules::Names(_));
        for (key, present) in [
            ("layers_to_transform", self.layers_to_transform.is_some()),
            ("layers_pattern", self.layers_pattern.is_some()),
        ] {
            if present && !named {
                return Err(Error::value(
                    key,
                    "set",
                    "to be absent where `target_modules` is not a list of names",
                ));
            }
        }
        let patterns = self.layers_pattern.as_deref().unwrap_or_default();
        if !patterns.is_empty() && self.layers_to_transform.is_none() {
            return Err(Error::value(
                "layers_to_transform",
                "absent",
                "layer numbers, since `layers_pattern` is set",
            ));
        }
        for text in patterns {
            pattern::layer_index("layers_pattern", text)?;
        }
        Ok(())
    }
}

fn check_names(key: &str, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Err(Error::value(
            key,
            "[]",
            "at least one module name, a regular expression or \"all-linear\"",
        ));
    }
    match names.iter().find(|name| name.is_empty()) {
        Some(_) => Err(Error::value(key, "a list with \"\"", "module names that are not empty")),
        None => Ok(()),
    }
}

fn first_match<T: Copy>(key: &str, patterns: &[(String, T)], module: &str) -> Result<Option<T>> {
    for (name, value) in patterns {
        // Most entries are plain names: no pattern to compile for them.
        let matched = if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        } else {
            pattern::suffix_match(key, name)?.is_match(module)
        };
        if matched {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// The layers that get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetModules {
    /// Modules with one of these paths, or with a path that ends in a dot and one of them.
    Names(Vec<String>),
    /// Modules whose whole path this (Python) regular expression matches.
    Pattern(String),
    /// Every linear layer but the output head; `"all-linear"`, in any case.
    AllLinear,
}

impl Default for TargetModules {
    /// `q_proj` and `v_proj`, PEFT's choice for Llama, Mistral, Qwen2, Qwen3 and Gemma models.
    fn default() -> Self {
        Self::Names(vec!["q_proj".into(), "v_proj".into()])
    }
}

impl From<NamesOrText> for TargetModules {
    fn from(value: NamesOrText) -> Self {
        match value {
            NamesOrText::Names(names) => Self::Names(names),
            NamesOrText::Text(text) if text.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            NamesOrText::Text(text) => Self::Pattern(text),
        }
    }
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Pattern(text) => write!(f, "{text:?}"),
            Self::AllLinear => f.write_str("\"all-linear\""),
        }
    }
}

/// The layers that get no adapter although they are targeted.
#[derive(Clone, Debug, PartialEq)]
pub enum ExcludeModules {
    /// Modules with one of these paths, or with a path that ends in a dot and one of them.
    Names(Vec<String>),
    /// Modules whose whole path this (Python) regular expression matches.
    Pattern(String),
}

impl From<NamesOrText> for ExcludeModules {
    fn from(value: NamesOrText) -> Self {
        match value {
            NamesOrText::Names(names) => Self::Names(names),
            NamesOrText::Text(text) => Self::Pattern(text),
        }
    }
}

/// Which biases of the base model are trained too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Bias {
    /// None.
    None,
}

/// What the model is for, as PEFT names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum TaskType {
    /// Language modelling.
    CausalLm,
    /// Classification of sequences.
    SeqCls,
    /// Sequence-to-sequence modelling.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// Classification of tokens.
    TokenCls,
    /// Extractive question answering.
    QuestionAns,
    /// Hidden states.
    FeatureExtraction,
}

/// How the weights of an adapter started.
///
/// Only [`Kaiming`](Self::Kaiming) can be asked for in one's own configuration; the others are what an adapter trained elsewhere may say
/// of itself. All of them leave the base weights alone, so that the adapter applies to the base as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitLoraWeights {
    /// `true`: A uniform in `+-1/sqrt(in_features)`, B zero.
    #[default]
    Kaiming,
    /// `false`: A and B both random; a debugging aid.
    Random,
    /// `"gaussian"`: A normal with deviation `1/rank`, B zero.
    Gaussian,
    /// `"orthogonal"`: A and B orthogonal.
    Orthogonal,
    /// `"eva"`: A from the singular vectors of the activations, B zero.
    Eva,
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Kaiming => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::Orthogonal => serializer.serialize_str("orthogonal"),
            Self::Eva => serializer.serialize_str("eva"),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match bool::deserialize(deserializer) {
            Ok(true) => Ok(Self::Kaiming),
            _ => Err(de::Error::custom("`init_lora_weights` can only be `true` for a new adapter")),
        }
    }
}

/// A list of names or a text, the two forms of `target_modules` and `exclude_modules`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of module names or a string")]
pub(crate) enum NamesOrText {
    Names(Vec<String>),
    Text(String),
}

macro_rules! serde_as_names_or_text {
    ($type:ident) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                match self {
                    Self::Names(names) => names.serialize(serializer),
                    Self::Pattern(text) => serializer.serialize_str(text),
                    #[allow(unreachable_patterns)] // `TargetModules` alone has a third form
                    _ => serializer.serialize_str("all-linear"),
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                NamesOrText::deserialize(deserializer).map(Self::from)
            }
        }
    };
}
serde_as_names_or_text!(TargetModules);
serde_as_names_or_text!(ExcludeModules);

/// A whole number is written without a fraction: readers in other languages take `lora_alpha` for an integer.
pub(crate) fn serialize_number<S: Serializer>(
    value: &f64,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() < EXACT {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

pub(crate) fn one_or_many<'de, D, T>(deserializer: D) -> std::result::Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "one value or a list of them")]
    enum OneOrMany<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(Option::<OneOrMany<T>>::deserialize(deserializer)?.map(|value| match value {
        OneOrMany::Many(values) => values,
        OneOrMany::One(value) => vec![value],
    }))
}

/// A map that keeps its order, since the first entry that matches counts.
pub(crate) mod ordered_map {
    use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
    use serde::ser::{Serialize, SerializeMap, Serializer};
    use std::fmt;
    use std::marker::PhantomData;

    /// How a value of the map is written: like `lora_alpha` and `r`.
    pub(crate) trait Number: Copy {
        fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    }

    impl Number for usize {
        fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.serialize(serializer)
        }
    }

    impl Number for f64 {
        fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            super::serialize_number(self, serializer)
        }
    }

    struct Written<T>(T);

    impl<T: Number> Serialize for Written<T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.write(serializer)
        }
    }

    pub(crate) fn serialize<S: Serializer, T: Number>(
        entries: &[(String, T)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(entries.len()))?;
        for (name, value) in entries {
            map.serialize_entry(name, &Written(*value))?;
        }
        map.end()
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, T)>, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Vec<(String, T)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of module names or patterns to numbers")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_pefts() {
        let config = LoraConfig::default();
        assert_eq!(
            (config.rank, config.lora_alpha, config.lora_dropout, config.use_rslora),
            (8, 8.0, 0.0, false)
        );
        config.validate().unwrap();
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let config = LoraConfig {
            rank: 8,
            lora_alpha: 12.0,
            rank_pattern: vec![("0.self_attn.q_proj".into(), 2), ("q_proj".into(), 4), (r"^b\..*".into(), 3)],
            alpha_pattern: vec![("v_proj|o_proj".into(), 5.0), ("_proj".into(), 99.0)],
            use_rslora: true,
            ..LoraConfig::default()
        };
        let rank = |module: &str| config.rank_for(module).unwrap();
        assert_eq!(rank("layers.0.self_attn.q_proj"), 2);
        assert_eq!(rank("layers.10.self_attn.q_proj"), 4); // `0.self...` is bounded by a dot
        assert_eq!(rank("b.up_proj"), 3);
        assert_eq!(rank("a.b.up_proj"), 8);
        assert_eq!(config.alpha_for("a.o_proj").unwrap(), 5.0);
        assert_eq!(config.alpha_for("a.q_proj").unwrap(), 12.0); // `_proj` is no whole name
        assert_eq!(config.scaling_for("layers.0.self_attn.q_proj").unwrap(), 12.0 / 2.0_f64.sqrt());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let refused = |change: &dyn Fn(&mut LoraConfig), key: &str| {
            let mut config = LoraConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        };
        refused(&|c| c.rank = 0, "`r`");
        refused(&|c| c.rank_pattern = vec![("q_proj".into(), 0)], "rank_pattern.q_proj");
        refused(&|c| c.lora_alpha = f64::NAN, "lora_alpha");
        refused(&|c| c.alpha_pattern = vec![("q_proj".into(), f64::INFINITY)], "alpha_pattern.q_proj");
        refused(&|c| c.lora_dropout = 1.0, "lora_dropout");
        refused(&|c| c.lora_dropout = f64::NAN, "lora_dropout");
        refused(&|c| c.target_modules = TargetModules::Names(vec![]), "target_modules");
        refused(&|c| c.target_modules = TargetModules::Pattern("(".into()), "target_modules");
        refused(&|c| c.layers_pattern = Some(vec!["h".into()]), "layers_to_transform");
        refused(&|c| c.exclude_modules = Some(ExcludeModules::Pattern("(?=a)".into())), "exclude_modules");
        refused(
            &|c| {
                c.target_modules = TargetModules::AllLinear;
                c.layers_to_transform = Some(vec![1]);
            },
            "layers_to_transform",
        );
    }

    #[test]
    fn serde_has_pefts_names_and_refuses_others() {
        let text = r#"{"r":4,"lora_alpha":6,"target_modules":"All-Linear","layers_pattern":"h","rank_pattern":{"b":1,"a":2}}"#;
        let config: LoraConfig = serde_json::from_str(text).unwrap();
        assert_eq!(
            (config.rank, config.lora_alpha, &config.target_modules),
            (4, 6.0, &TargetModules::AllLinear)
        );
        assert_eq!(config.layers_pattern, Some(vec!["h".to_owned()]));
        assert_eq!(config.rank_pattern, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        let written = serde_json::to_string(&config).unwrap();
        assert!(
            written.contains(r#""lora_alpha":6,"#) && written.contains(r#""rank_pattern":{"b":1,"a":2}"#)
        );
        assert_eq!(serde_json::from_str::<LoraConfig>(&written).unwrap(), config);
        assert!(
            serde_json::from_str::<LoraConfig>(r#"{"rank":4}"#).unwrap_err().to_string().contains("rank")
        );
        assert!(serde_json::from_str::<LoraConfig>(r#"{"init_lora_weights":"gaussian"}"#).is_err());
    }
}
