//! `tokenizer_config.json` and the files beside it, in the forms of transformers 4 and 5.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{Error, Result, file};

/// The largest of the other files that is read; those in use have up to 1 MB.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// The named special tokens that every tokenizer has.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What this crate needs of the files beside `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// Name, such as `eos_token`, to the token's text.
    pub special_tokens: BTreeMap<String, String>,
    /// Tokens of `added_tokens_decoder`, by id.
    pub added_tokens: Vec<AddedToken>,
    /// Named and extra special tokens.
    pub special_added_tokens: Vec<AddedToken>,
    pub chat_template: Option<TemplateSource>,
    pub clean_up_tokenization_spaces: bool,
    pub clean_up_even_for_bpe: bool,
}

/// A chat template and where it was found.
#[derive(Debug)]
pub(crate) struct TemplateSource {
    pub text: String,
    pub path: PathBuf,
    /// The field of the file, unless the file is the template.
    pub field: Option<&'static str>,
}

impl TokenizerConfig {
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer_config.json");
        let mut fields = read_object(&path)?.unwrap_or_default();
        let decoder = fields.remove("added_tokens_decoder");
        let added_tokens = match &decoder {
            Some(decoder) => added_tokens_decoder(decoder, &path)?,
            None => {
                // Without the decoder, the older file is read, and wins.
                let older = read_object(&directory.join("special_tokens_map.json"))?.unwrap_or_default();
                fields.extend(older);
                Vec::new()
            }
        };
        let mut config = Self {
            chat_template: chat_template(directory, &fields, &path)?,
            clean_up_tokenization_spaces: flag(&fields, "clean_up_tokenization_spaces"),
            clean_up_even_for_bpe: flag(
                &fields,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            ),
            added_tokens,
            ..Self::default()
        };
        config.collect_special_tokens(&fields, &path)?;
        Ok(config)
    }

    fn collect_special_tokens(&mut self, fields: &Map<String, Value>, path: &Path) -> Result<()> {
        let named = NAMED.iter().filter_map(|name| fields.get_key_value(*name));
        let own = fields.iter().filter(|(name, value)| {
            name.ends_with("_token")
                && !NAMED.contains(&name.as_str())
                && (value.is_string() || value.is_object())
        });
        for (name, value) in named.chain(own).filter(|(_, value)| !value.is_null()) {
            let token = added_token(value, name, path)?;
            self.special_tokens.insert(name.clone(), token.content.clone());
            self.special_added_tokens.push(token);
        }
        let extra = fields.get("extra_special_tokens").filter(|value| match value {
            Value::Array(items) => !items.is_empty(),
            other => !other.is_null(),
        });
        match extra.or_else(|| fields.get("additional_special_tokens")) {
            Some(Value::Array(tokens)) => {
                for value in tokens {
                    self.special_added_tokens.push(added_token(value, "extra_special_tokens", path)?);
                }
            }
            Some(Value::Object(tokens)) => {
                for (name, value) in tokens {
                    let token = added_token(value, name, path)?;
                    self.special_tokens.insert(name.clone(), token.content.clone());
                    self.special_added_tokens.push(token);
                }
            }
            _ => {}
        }
        // An entry of the decoder knows how its token treats the space around it; a bare string does not.
        for token in &mut self.special_added_tokens {
            if let Some(known) = self.added_tokens.iter().find(|known| known.content == token.content) {
                *token = AddedToken { special: true, ..known.clone() };
            }
        }
        Ok(())
    }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match file::read(path, MAX_CONFIG_BYTES) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|error| {
                bad(
                    path,
                    "valid UTF-8",
                    &format!("another byte after {} bytes", error.utf8_error().valid_up_to()),
                )
            });
            text.map(Some)
        }
        Err(Error::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(bad(path, "a JSON object", "another JSON value")),
        Err(error) => Err(bad(path, "a JSON object", &error.to_string())),
    }
}

fn bad(path: &Path, expected: &str, found: &str) -> Error {
    Error::BadTokenizerFile {
        path: path.to_path_buf(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn flag(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn added_tokens_decoder(decoder: &Value, path: &Path) -> Result<Vec<AddedToken>> {
    let Value::Object(entries) = decoder else {
        return Err(bad(path, "an object in `added_tokens_decoder`", "another JSON value"));
    };
    let mut tokens = Vec::new();
    for (id, value) in entries {
        let id: u32 = id
            .parse()
            .map_err(|_| bad(path, "token ids as keys of `added_tokens_decoder`", &format!("`{id}`")))?;
        let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
        tokens.push((id, AddedToken { special, ..added_token(value, "added_tokens_decoder", path)? }));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

/// A token given as a string or as an object with `content`.
fn added_token(value: &Value, name: &str, path: &Path) -> Result<AddedToken> {
    let shape =
        || bad(path, &format!("a string, or an object with `content`, in `{name}`"), "another JSON value");
    let content = match value {
        Value::String(text) => return Ok(AddedToken::from(text.clone(), true).normalized(false)),
        Value::Object(fields) => fields.get("content").and_then(Value::as_str).ok_or_else(shape)?,
        _ => return Err(shape()),
    };
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let token = AddedToken::from(content, true).single_word(flag("single_word")).lstrip(flag("lstrip"));
    Ok(token.rstrip(flag("rstrip")).normalized(flag("normalized")))
}

/// The template file, else the field: a string, or a list of named ones.
fn chat_template(
    directory: &Path,
    fields: &Map<String, Value>,
    path: &Path,
) -> Result<Option<TemplateSource>> {
    let file = directory.join("chat_template.jinja");
    if let Some(text) = read_text(&file)? {
        return Ok(Some(TemplateSource { text, path: file, field: None }));
    }
    let in_field = |text: &str| {
        Some(TemplateSource {
            text: text.to_string(),
            path: path.to_path_buf(),
            field: Some("chat_template"),
        })
    };
    match fields.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(in_field(text)),
        Some(Value::Array(entries)) => {
            let default =
                entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            match default.and_then(|entry| entry.get("template")).and_then(Value::as_str) {
                Some(text) => Ok(in_field(text)),
                None => Err(bad(path, "a template named `default` in `chat_template`", "none")),
            }
        }
        Some(_) => Err(bad(path, "a string or a list in `chat_template`", "another JSON value")),
    }
}
