//! One key of the recipe and the values that it takes.

use crate::{Error, Result};
use std::str::FromStr;

/// A key of the recipe and the values that are tried, written `training.learning_rate=1e-4,3e-4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// The key, as in `training.learning_rate`.
    pub key: String,
    /// The values as they are written in a recipe, or bare words for texts.
    pub values: Vec<String>,
}

impl FromStr for Axis {
    type Err = Error;

    /// Lists are written as in a recipe: `lora.target_modules=["q_proj", "v_proj"],"all-linear"`.
    ///
    /// # Errors
    /// [`Error::Sweep`] if the text is no key with values.
    fn from_str(text: &str) -> Result<Self> {
        let refused = |what: &str| Error::Sweep {
            reason: format!(
                "`{text}`: {what}; expected `key=value,value`, as in `training.learning_rate=1e-4,3e-4`"
            ),
        };
        let (key, values) = text.split_once('=').ok_or_else(|| refused("there is no `=`"))?;
        let (key, values) = (key.trim(), values.trim());
        if key.is_empty() {
            return Err(refused("there is no key before `=`"));
        }
        let values = if values.contains(['[', '"', '\'', '{']) {
            let table = format!("values = [{values}]").parse::<toml::Table>();
            let Ok(Some(toml::Value::Array(values))) = table.map(|mut table| table.remove("values")) else {
                return Err(refused("the values are no list of TOML; did the shell take quotes away?"));
            };
            values.iter().map(ToString::to_string).collect()
        } else {
            values.split(',').map(|value| value.trim().to_owned()).collect::<Vec<_>>()
        };
        if values.iter().any(String::is_empty) {
            return Err(refused("a value is missing"));
        }
        Ok(Self { key: key.to_owned(), values })
    }
}

impl Axis {
    /// The key without its section.
    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or(&self.key)
    }

    /// Whether it repeats a trial rather than changes it.
    pub(crate) fn is_seed(&self) -> bool {
        ["seed", "data_seed"].contains(&self.key.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bare_words_or_toml() {
        let values = |text: &str| text.parse::<Axis>().unwrap().values;
        assert_eq!(values("training.learning_rate=1e-4, 3e-4"), ["1e-4", "3e-4"]);
        assert_eq!(values("training.lr_scheduler_type=linear,cosine"), ["linear", "cosine"]);
        assert_eq!(
            values(r#"lora.target_modules=["q_proj", "v_proj"],"all-linear""#),
            [r#"["q_proj", "v_proj"]"#, r#""all-linear""#]
        );
        let axis: Axis = "seed=1,2".parse().unwrap();
        assert!(axis.is_seed() && axis.name() == "seed");
    }

    #[test]
    fn what_is_no_axis_is_refused() {
        for (text, words) in [
            ("training.learning_rate", "no `=`"),
            ("=1,2", "no key"),
            ("lora.r=8,,16", "a value is missing"),
            ("lora.r=", "a value is missing"),
            ("lora.target_modules=[q_proj]", "take quotes away"),
        ] {
            let error = text.parse::<Axis>().unwrap_err();
            let is_told = matches!(&error, Error::Sweep { reason } if reason.contains(words));
            assert!(is_told && error.is_bad_input(), "{error}");
        }
    }
}
