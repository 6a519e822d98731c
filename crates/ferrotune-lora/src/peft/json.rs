//! `adapter_config.json` to [`LoraConfig`] and back.

use crate::config::{Bias, InitLoraWeights, LoraConfig, NamesOrText, one_or_many, ordered_map};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Options that change what an adapter computes, what they do, and what helps. They may be off: null, false, `[]`, `{}`.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "it switches the adapter on only after certain tokens (activated LoRA)"),
    ("arrow_config", "it routes between several adapters (Arrow)"),
    ("enable_lora", "it adapts parts of a fused layer"),
    ("fan_in_fan_out", "it says that the base stores its weights as [in, out]"),
    ("kasa_config", "it truncates the base weights (KaSA)"),
    ("layer_replication", "it copies layers of the base model"),
    ("lora_bias", "it gives B a bias"),
    ("megatron_config", "it adapts Megatron's parallel layers"),
    ("modules_to_save", "it replaces whole modules of the base by trained copies"),
    ("monteclora_config", "it samples the adapter's weights (MonteCLoRA)"),
    ("target_parameters", "it adapts bare parameters"),
    ("trainable_token_indices", "it replaces rows of the embedding"),
    ("use_bdlora", "it makes A or B block-diagonal (BD-LoRA)"),
    ("use_dora", "it splits the weights into magnitude and direction (DoRA)"),
    ("use_qalora", "it pools the input of A (QA-LoRA)"),
    ("velora_config", "it compresses the activations kept for backward (VeLoRA)"),
];

/// Options without influence on what an adapter computes once its weights are there.
const INERT: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
];

const RETRAIN: &str =
    "train the adapter with it off, or merge it into the base in Python and save the whole model";

impl LoraConfig {
    /// Reads the text of an `adapter_config.json`.
    ///
    /// Options that have no influence on what the adapter computes are passed over (unknown ones with a warning); one that has, and that is
    /// not implemented here, is refused if it is on.
    ///
    /// # Errors
    /// [`Error::Json`] for a text that is not a JSON object, [`Error::Unsupported`] with the option's name and value,
    /// [`Error::InvalidValue`] and [`Error::Pattern`] for a value that is not possible.
    pub fn from_json(text: &str) -> Result<Self> {
        let map: Map<String, Value> = serde_json::from_str(text).map_err(|error| Error::Json {
            line: error.line(),
            column: error.column(),
            reason: error.to_string(),
        })?;
        refuse_unsupported(&map)?;

        let defaults = Self::default();
        let names = "a list of module names, a regular expression or null";
        let config = Self {
            rank: field(&map, "r", "a whole number")?.unwrap_or(defaults.rank),
            lora_alpha: field(&map, "lora_alpha", "a number")?.unwrap_or(defaults.lora_alpha),
            lora_dropout: field(&map, "lora_dropout", "a number")?.unwrap_or(defaults.lora_dropout),
            target_modules: field::<NamesOrText>(&map, "target_modules", names)?
                .map_or(defaults.target_modules, Into::into),
            exclude_modules: field::<NamesOrText>(&map, "exclude_modules", names)?.map(Into::into),
            use_rslora: field(&map, "use_rslora", "true or false")?.unwrap_or(defaults.use_rslora),
            bias: Bias::None,
            layers_to_transform: many(&map, "layers_to_transform", "a layer number or a list of them")?,
            layers_pattern: many(&map, "layers_pattern", "a string or a list of strings")?
                .filter(|words: &Vec<String>| words != &[""]),
            init_lora_weights: init_lora_weights(&map)?,
            task_type: field(&map, "task_type", "one of PEFT's task types, such as \"CAUSAL_LM\"")?,
            base_model_name_or_path: field(&map, "base_model_name_or_path", "a string")?,
            revision: field(&map, "revision", "a string")?,
            rank_pattern: ordered(&map, "rank_pattern", "a map of names or patterns to whole numbers")?,
            alpha_pattern: ordered(&map, "alpha_pattern", "a map of names or patterns to numbers")?,
        };
        config.validate()?;
        Ok(config)
    }

    /// The text of an `adapter_config.json`.
    ///
    /// The form is PEFT's: indented by 2, sorted, ASCII. Options that PEFT learned later than the rest (`use_rslora`, `exclude_modules`)
    /// are there only where they are in use, and its version is left out: PEFT before 0.14 takes an option that it does not know for an error.
    /// The entries of `rank_pattern` and `alpha_pattern` keep their order, for the first that matches counts.
    ///
    /// # Errors
    /// Whatever [`validate`](Self::validate) finds.
    pub fn to_json(&self) -> Result<String> {
        self.validate()?;
        let text = serde_json::to_value(self).and_then(|written| {
            let mut map = Map::new();
            let mut put = |key: &str, fallback: Value| {
                map.insert(key.to_owned(), written.get(key).cloned().unwrap_or(fallback));
            };
            put("alpha_pattern", Value::Object(Map::new()));
            put("auto_mapping", Value::Null);
            put("base_model_name_or_path", Value::Null);
            put("bias", Value::Null);
            if self.exclude_modules.is_some() {
                put("exclude_modules", Value::Null);
            }
            put("fan_in_fan_out", false.into());
            put("inference_mode", true.into());
            put("init_lora_weights", Value::Null);
            put("layers_pattern", Value::Null);
            put("layers_to_transform", Value::Null);
            put("lora_alpha", Value::Null);
            put("lora_dropout", Value::Null);
            put("modules_to_save", Value::Null);
            put("peft_type", "LORA".into());
            put("r", Value::Null);
            put("rank_pattern", Value::Object(Map::new()));
            put("revision", Value::Null);
            put("target_modules", Value::Null);
            put("task_type", Value::Null);
            if self.use_rslora {
                put("use_rslora", Value::Null);
            }
            if self.layers_pattern.as_deref().is_some_and(|words| words == [""]) {
                map.insert("layers_pattern".into(), Value::Null); // "" means any word, [""] would mean an empty one
            }
            serde_json::to_string_pretty(&map)
        });
        match text {
            Ok(text) => Ok(ascii(&text)),
            Err(error) => Err(Error::value("adapter_config.json", error, "values that JSON can hold")),
        }
    }
}

/// Readers in Python open the file with the machine's own encoding: only ASCII is safe.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text += &format!("\\u{unit:04x}");
            }
        }
    }
    text
}

fn refuse_unsupported(map: &Map<String, Value>) -> Result<()> {
    let unsupported = |key: &str, value: &Value, reason, remedy| Error::Unsupported {
        key: key.to_owned(),
        value: shown(value),
        reason,
        remedy,
    };
    match map.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        None => return Err(Error::value("peft_type", "absent", "\"LORA\"")),
        Some(kind) => {
            return Err(unsupported(
                "peft_type",
                kind,
                "it is another kind of adapter",
                "use a LoRA adapter",
            ));
        }
    }
    match map.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(bias) => return Err(unsupported("bias", bias, "it trains biases of the base", RETRAIN)),
    }
    for (key, value) in map.iter().filter(|(_, value)| !is_off(value)) {
        if let Some((_, reason)) = UNSUPPORTED.iter().find(|(name, _)| name == key) {
            return Err(unsupported(key, value, reason, RETRAIN));
        }
        if READ.contains(&key.as_str()) || INERT.contains(&key.as_str()) {
            continue;
        }
        // This is how PEFT names its variants of LoRA: a new one may change anything.
        if key.starts_with("use_") || key.ends_with("_config") {
            let reason = "it is not known here, and its name is that of a variant of LoRA";
            return Err(unsupported(key, value, reason, RETRAIN));
        }
        tracing::warn!(%key, %value, "an option of the adapter's configuration is not known and is passed over");
    }
    Ok(())
}

/// The options that a [`LoraConfig`] holds, and the two that are checked before.
const READ: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn init_lora_weights(map: &Map<String, Value>) -> Result<InitLoraWeights> {
    Ok(match map.get("init_lora_weights") {
        None | Some(Value::Bool(true)) => InitLoraWeights::Kaiming,
        Some(Value::Bool(false) | Value::Null) => InitLoraWeights::Random,
        Some(Value::String(name)) if name.eq_ignore_ascii_case("gaussian") => InitLoraWeights::Gaussian,
        Some(Value::String(name)) if name == "orthogonal" => InitLoraWeights::Orthogonal,
        Some(Value::String(name)) if name == "eva" => InitLoraWeights::Eva,
        Some(other) => {
            return Err(Error::Unsupported {
                key: "init_lora_weights".into(),
                value: shown(other),
                reason: "such an initialisation (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA and the like) changes the base weights or how they \
                         are trained, so that the adapter does not fit the base as it is",
                remedy: "convert it to a plain adapter in Python (PEFT: `save_pretrained(path_initial_model_for_weight_conversion=...)`)",
            });
        }
    })
}

fn field<T: DeserializeOwned>(map: &Map<String, Value>, key: &str, expected: &str) -> Result<Option<T>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|_| Error::value(key, shown(value), expected)),
    }
}

fn many<T: DeserializeOwned>(map: &Map<String, Value>, key: &str, expected: &str) -> Result<Option<Vec<T>>> {
    let Some(value) = map.get(key) else { return Ok(None) };
    one_or_many(value).map_err(|_| Error::value(key, shown(value), expected))
}

fn ordered<T: DeserializeOwned>(
    map: &Map<String, Value>,
    key: &str,
    expected: &str,
) -> Result<Vec<(String, T)>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => ordered_map::deserialize(value).map_err(|_| Error::value(key, shown(value), expected)),
    }
}

/// A value for an error message, cut if it is long.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 120;
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    text.chars().take(SHOWN).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TargetModules;

    fn error(text: &str) -> String {
        LoraConfig::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn options_that_change_the_computation_are_refused_with_their_value() {
        for (key, value) in [
            ("use_dora", "true"),
            ("fan_in_fan_out", "true"),
            ("lora_bias", "true"),
            ("bias", "\"all\""),
            ("bias", "\"lora_only\""),
            ("modules_to_save", "[\"lm_head\"]"),
            ("trainable_token_indices", "[1,2]"),
            ("target_parameters", "[\"experts.up\"]"),
            ("layer_replication", "[[0,4],[2,5]]"),
            ("alora_invocation_tokens", "[7]"),
            ("use_bdlora", "{\"nblocks\":2}"),
            ("use_qalora", "true"),
            ("arrow_config", "{\"top_k\":2}"),
            ("kasa_config", "{\"beta\":0.1}"),
            ("velora_config", "{\"a\":1}"),
            ("monteclora_config", "{\"a\":1}"),
            ("megatron_config", "{\"a\":1}"),
            ("init_lora_weights", "\"pissa_niter_4\""),
            ("init_lora_weights", "\"olora\""),
            ("use_something_new", "true"),
            ("new_config", "{\"a\":1}"),
        ] {
            let error = error(&format!(r#"{{"peft_type":"LORA","{key}":{value}}}"#));
            assert!(error.contains(&format!("`{key}` is {value}")), "{error}");
        }
        assert!(error(r#"{"peft_type":"IA3"}"#).contains("IA3"));
        assert!(error("{}").contains("peft_type"));
    }

    #[test]
    fn every_option_of_peft_is_read_refused_or_known_to_be_inert() {
        // The fields of peft 0.21's LoraConfig and of the classes that it extends.
        for key in [
            "alora_invocation_tokens",
            "alpha_pattern",
            "arrow_config",
            "auto_mapping",
            "base_model_name_or_path",
            "bias",
            "corda_config",
            "ensure_weight_tying",
            "eva_config",
            "exclude_modules",
            "fan_in_fan_out",
            "inference_mode",
            "init_lora_weights",
            "kasa_config",
            "layer_replication",
            "layers_pattern",
            "layers_to_transform",
            "loftq_config",
            "lora_alpha",
            "lora_bias",
            "lora_dropout",
            "lora_ga_config",
            "megatron_config",
            "megatron_core",
            "modules_to_save",
            "monteclora_config",
            "peft_type",
            "peft_version",
            "qalora_group_size",
            "r",
            "rank_pattern",
            "revision",
            "runtime_config",
            "target_modules",
            "target_parameters",
            "task_type",
            "trainable_token_indices",
            "use_bdlora",
            "use_dora",
            "use_qalora",
            "use_rslora",
            "velora_config",
        ] {
            let refused = UNSUPPORTED.iter().filter(|(name, _)| *name == key).count();
            let places = [READ, INERT].iter().filter(|names| names.contains(&key)).count() + refused;
            assert_eq!(places, 1, "{key}");
        }
    }

    #[test]
    fn options_that_are_off_or_inert_are_no_obstacle() {
        let text = r#"{"peft_type":"LORA","use_dora":false,"modules_to_save":null,"layer_replication":[],"loftq_config":{},
            "peft_version":"0.21.2","inference_mode":true,"eva_config":{"rho":2.0},"use_something_new":false,"a_new_note":"x",
            "runtime_config":{"ephemeral_gpu_offload":false},"qalora_group_size":16,"bias":null,"rank_pattern":null,
            "init_lora_weights":"GAUSSIAN","task_type":null,"layers_to_transform":3,"layers_pattern":""}"#;
        let config = LoraConfig::from_json(text).unwrap();
        assert_eq!(config.init_lora_weights, InitLoraWeights::Gaussian);
        assert_eq!((config.task_type, config.layers_to_transform), (None, Some(vec![3])));
        assert_eq!((config.rank, config.layers_pattern), (8, None));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named() {
        for (key, value) in [
            ("r", "8.5"),
            ("r", "-1"),
            ("r", "\"8\""),
            ("lora_alpha", "\"16\""),
            ("target_modules", "3"),
            ("layers_to_transform", "[\"a\"]"),
            ("rank_pattern", "{\"q_proj\":1.5}"),
            ("task_type", "\"DANCE\""),
            ("use_rslora", "1"),
        ] {
            let error = error(&format!(r#"{{"peft_type":"LORA","{key}":{value}}}"#));
            assert!(error.contains(&format!("`{key}` is {value}, expected")), "{error}");
        }
        assert!(error("{\n \"r\": }").contains("line 2, column"));
        assert!(error("[1]").contains("object"));
    }

    #[test]
    fn the_text_is_sorted_ascii_and_free_of_what_older_readers_refuse() {
        let config = LoraConfig {
            lora_alpha: 16.0,
            base_model_name_or_path: Some("modèle/𝔛".into()),
            rank_pattern: vec![("v_proj".into(), 4), ("a".into(), 2)],
            ..LoraConfig::default()
        };
        let text = config.to_json().unwrap();
        assert!(
            text.is_ascii() && text.contains("\"lora_alpha\": 16,") && text.contains("mod\\u00e8le"),
            "{text}"
        );
        assert!(
            !text.contains("use_rslora")
                && !text.contains("exclude_modules")
                && !text.contains("peft_version")
        );
        assert!(text.find("v_proj\": 4").unwrap() < text.find("\"a\": 2").unwrap(), "{text}");
        let map: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert!(map.keys().is_sorted());
        assert_eq!(LoraConfig::from_json(&text).unwrap(), config);
        let rslora = LoraConfig { use_rslora: true, target_modules: TargetModules::AllLinear, ..config };
        assert_eq!(LoraConfig::from_json(&rslora.to_json().unwrap()).unwrap(), rslora);
    }
}
