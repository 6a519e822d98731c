//! PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors of the layer at `model.layers.0.self_attn.q_proj` are `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`,
//! `[rank, in_features]`, and the same with `lora_B`, `[out_features, rank]`.

mod directory;
mod json;
mod read;
mod write;

pub use read::{AdapterFile, load_adapter, load_config};
pub use write::save_adapter;

use tch::Tensor;

/// The file of the configuration.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the weights.
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The file of the weights in older adapters.
pub(crate) const PICKLE_FILE: &str = "adapter_model.bin";

/// What stands before the path of a module of the base model in a tensor's key.
const PREFIX: &str = "base_model.model.";

/// The two matrices of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// `lora_A`, `[rank, in_features]`.
    A,
    /// `lora_B`, `[out_features, rank]`.
    B,
}

impl Half {
    /// The other matrix.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
        }
    }
}

/// The key under which PEFT stores one half of the adapter at `module_path`.
///
/// ```
/// use ferrotune_lora::peft::{Half, parse_key, tensor_key};
/// let key = tensor_key("model.layers.0.mlp.up_proj", Half::A);
/// assert_eq!(key, "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight");
/// assert_eq!(parse_key(&key), Some(("model.layers.0.mlp.up_proj", Half::A)));
/// ```
pub fn tensor_key(module_path: &str, half: Half) -> String {
    format!("{PREFIX}{module_path}{}", half.suffix())
}

/// The matrices of modules under the names that PEFT has for them in memory, `<path>.lora_A.weight`.
pub(crate) fn named_parameters<'a>(
    modules: impl Iterator<Item = (&'a String, &'a Tensor, &'a Tensor)>,
) -> Vec<(String, Tensor)> {
    let named = |path: &str, half: Half, tensor: &Tensor| {
        (format!("{path}{}", half.suffix()), tensor.shallow_clone())
    };
    modules.flat_map(|(path, a, b)| [named(path, Half::A, a), named(path, Half::B, b)]).collect()
}

/// The module path and the half that a key of [`tensor_key`]'s form names.
pub fn parse_key(key: &str) -> Option<(&str, Half)> {
    let rest = key.strip_prefix(PREFIX)?;
    [Half::A, Half::B].into_iter().find_map(|half| {
        let path = rest.strip_suffix(half.suffix())?;
        (!path.is_empty()).then_some((path, half))
    })
}
