//! Typed access to metadata, with errors that name the file and the key.

use crate::error::{Error, Result};
use crate::gguf::{Array, GgufFile, Value};

/// What a user can do about a file that this importer cannot take.
pub(super) const USE_HF_DIRECTORY: &str = "use the model's own Hugging Face directory instead";

/// The metadata of one file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a GgufFile);

impl<'a> Fields<'a> {
    pub(super) fn missing(self, key: &str) -> Error {
        Error::GgufKeyMissing {
            path: self.0.path().to_owned(),
            key: key.to_owned(),
            remedy: USE_HF_DIRECTORY,
        }
    }

    pub(super) fn invalid(self, key: &str, expected: impl ToString, found: impl ToString) -> Error {
        Error::GgufKeyInvalid {
            path: self.0.path().to_owned(),
            key: key.to_owned(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(super) fn unsupported(
        self,
        what: impl ToString,
        found: impl ToString,
        supported: impl ToString,
    ) -> Error {
        Error::GgufUnsupported {
            path: self.0.path().to_owned(),
            what: what.to_string(),
            found: found.to_string(),
            supported: supported.to_string(),
            remedy: USE_HF_DIRECTORY,
        }
    }

    fn optional<T>(
        self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.invalid(key, expected, value.describe()))
    }

    pub(super) fn optional_str(self, key: &str) -> Result<Option<&'a str>> {
        self.optional(key, "text", Value::as_str)
    }

    pub(super) fn optional_bool(self, key: &str) -> Result<Option<bool>> {
        self.optional(key, "a truth value", Value::as_bool)
    }

    pub(super) fn optional_usize(self, key: &str) -> Result<Option<usize>> {
        self.optional(key, "a number that is not negative", |value| value.as_u64()?.try_into().ok())
    }

    pub(super) fn optional_array(self, key: &str) -> Result<Option<&'a Array>> {
        self.optional(key, "a list", Value::as_array)
    }

    pub(super) fn optional_f64(self, key: &str) -> Result<Option<f64>> {
        self.optional(key, "a finite number with a fraction", |value| {
            value.as_f64().filter(|value| value.is_finite())
        })
    }

    /// A number above zero; a list of one number per layer counts as that number if all are the same.
    pub(super) fn optional_size(self, key: &str) -> Result<Option<usize>> {
        let size = self.optional(key, "a number above 0, the same for all layers", |value| match value {
            Value::Array(list) => {
                let first = list.get(0)?.as_u64()?;
                (1..list.len())
                    .all(|i| list.get(i).and_then(|value| value.as_u64()) == Some(first))
                    .then_some(first)
            }
            single => single.as_u64(),
        })?;
        match size {
            None => Ok(None),
            Some(size) => match u32::try_from(size) {
                Ok(size) if size > 0 => Ok(Some(size as usize)),
                _ => Err(self.invalid(key, format_args!("a number from 1 to {}", u32::MAX), size)),
            },
        }
    }

    pub(super) fn size(self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn strings(self, key: &str) -> Result<&'a [String]> {
        match self.optional_array(key)?.ok_or_else(|| self.missing(key))? {
            Array::String(list) => Ok(list),
            other => {
                Err(self.invalid(key, "a list of texts", format_args!("a list of {}", other.type_name())))
            }
        }
    }
}
