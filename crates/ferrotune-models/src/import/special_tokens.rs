//! The tokens with a role.

use serde_json::{Map, Value as Json, json};

use super::fields::Fields;
use crate::error::Result;

/// Ids of the tokens with a role.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<usize>,
    pub(super) eos: Option<usize>,
    /// Ends a turn, where that is another token than `eos`.
    eot: Option<usize>,
    pub(super) unk: Option<usize>,
    pub(super) pad: Option<usize>,
}

impl SpecialTokens {
    pub(super) fn from_gguf(fields: Fields<'_>, vocabulary: usize) -> Result<Self> {
        let id = |name: &str| -> Result<Option<usize>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match fields.optional_usize(&key)? {
                Some(id) if id >= vocabulary => {
                    Err(fields.invalid(&key, format_args!("the id of one of {vocabulary} tokens"), id))
                }
                id => Ok(id),
            }
        };
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            unk: id("unknown")?,
            pad: id("padding")?,
        })
    }

    /// One id, or a list where a turn may end with either of two tokens.
    pub(super) fn eos_json(&self) -> Json {
        match (self.eos, self.eot) {
            (Some(eos), Some(eot)) if eos != eot => json!([eos, eot]),
            (eos, eot) => json!(eos.or(eot)),
        }
    }

    /// The content of `generation_config.json`.
    pub(super) fn generation_config(&self) -> Json {
        let mut config = Map::new();
        for (key, value) in [
            ("bos_token_id", json!(self.bos)),
            ("eos_token_id", self.eos_json()),
            ("pad_token_id", json!(self.pad)),
        ] {
            if !value.is_null() {
                config.insert(key.to_owned(), value);
            }
        }
        Json::Object(config)
    }
}
