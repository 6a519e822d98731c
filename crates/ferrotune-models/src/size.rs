//! What a model will take, from a look at its files.

use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::Result,
    layer::{NORMS, Stacked},
};
use std::path::Path;
use tch::Kind;

/// The size of a model whose weights have not been read.
///
/// ```no_run
/// let size = ferrotune_models::ModelSize::of("model".as_ref())?;
/// println!("{} parameters, {} bytes in f32", size.parameters, size.weight_bytes(ferrotune_models::tch::Kind::Float));
/// # Ok::<(), ferrotune_models::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSize {
    /// Shape and constants.
    pub config: ModelConfig,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Numbers of the largest tensor.
    pub largest: u64,
    /// Bytes of memory of the weights in the fewest bits that hold them, for products in f32 on the CPU; see
    /// [`FrozenWeight::in_fewest_bits`](ferrotune_kernels::FrozenWeight::in_fewest_bits).
    pub fewest_bytes: u64,
    /// Whether a weight is converted when it is read for products in f32.
    converts: bool,
}

impl ModelSize {
    /// Reads `config.json`, the headers of the weights and two rows of each matrix, and holds the one to the other.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_dir`] and [`Checkpoint::open`]; [`Error::TensorMissing`](crate::Error::TensorMissing),
    /// [`Error::TensorShape`](crate::Error::TensorShape), [`Error::TensorDtype`](crate::Error::TensorDtype) and
    /// [`Error::TensorNotFinite`](crate::Error::TensorNotFinite).
    pub fn of(directory: &Path) -> Result<Self> {
        let config = ModelConfig::from_dir(directory)?;
        let checkpoint = Checkpoint::open(directory)?;
        check(&config, &checkpoint)?;
        let elements = || checkpoint.elements();
        let (parameters, largest) = (elements().sum::<u64>(), elements().max().unwrap_or(0));
        let (mut fewest_bytes, mut converts, mut in_stacks) = (0u64, false, 0u64);
        for (parts, columns) in stacks(&config, &checkpoint) {
            let stack = checkpoint.stack(&parts, columns)?;
            let [rows, columns] = stack.shape.map(|size| size as u64);
            let of_a_row = stack.fewest_row_bytes()?;
            fewest_bytes = fewest_bytes.saturating_add(rows.saturating_mul(of_a_row));
            in_stacks = in_stacks.saturating_add(rows.saturating_mul(columns));
            converts |= stack.converts_to_f32();
        }
        // Norms and biases, and what nobody will ask for.
        let others = parameters.saturating_sub(in_stacks).saturating_mul(size_of::<f32>() as u64);
        fewest_bytes = fewest_bytes.saturating_add(others);
        Ok(Self { config, parameters, largest, fewest_bytes, converts })
    }

    /// Bytes of the weights on the CPU, for products in that kind.
    pub fn weight_bytes(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Float => self.fewest_bytes,
            _ => self.parameters.saturating_mul(kind.elt_size_in_bytes() as u64),
        }
    }

    /// Bytes that loading takes for a while besides the weights, at the most: where they are converted, the largest tensor as it is read and,
    /// on each thread, a tensor of a layer and the parts of a stack beside it.
    pub fn loading_bytes(&self, kind: Kind) -> u64 {
        if kind == Kind::Float && !self.converts {
            return 0;
        }
        let matrix = self.config.hidden_size as u64 * self.config.intermediate_size as u64;
        let threads = u64::try_from(tch::get_num_threads()).unwrap_or(1);
        let beside = matrix.saturating_mul(3).saturating_mul(threads).saturating_add(self.largest);
        beside.saturating_mul(kind.elt_size_in_bytes() as u64)
    }
}

/// Matrices by their names and rows, which are kept below each other, and the columns of all.
type Stack = (Vec<(String, i64)>, i64);

/// Before the names of all tensors but the head's.
pub(crate) fn prefix(checkpoint: &Checkpoint) -> &'static str {
    // Saved from the decoder without its head.
    let is_bare =
        !checkpoint.contains("model.embed_tokens.weight") && checkpoint.contains("embed_tokens.weight");
    if is_bare { "" } else { "model." }
}

/// All matrices.
fn stacks(config: &ModelConfig, checkpoint: &Checkpoint) -> impl Iterator<Item = Stack> {
    let prefix = prefix(checkpoint);
    let matrix = |name: String| (vec![(name, config.vocab_size)], config.hidden_size);
    let ends = [format!("{prefix}embed_tokens.weight"), "lm_head.weight".to_owned()];
    let ends = ends.into_iter().filter(|name| checkpoint.contains(name)).map(matrix);
    let layers = (0..config.num_hidden_layers).flat_map(move |layer| {
        Stacked::of_layer(config).map(|Stacked { parent, parts, in_features, .. }| {
            let named = |(name, rows)| (format!("{prefix}layers.{layer}.{parent}.{name}.weight"), rows);
            (parts.into_iter().map(named).collect(), in_features)
        })
    });
    ends.chain(layers)
}

/// Holds the headers to the configuration: a tensor that is missing, or of another shape or dtype, is found before the first is read.
pub(crate) fn check(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<()> {
    let prefix = prefix(checkpoint);
    let hidden = config.hidden_size;
    // The first layer that is missing ends it, however many the configuration asks for.
    for layer in 0..config.num_hidden_layers {
        let layer = format!("{prefix}layers.{layer}");
        for norm in NORMS {
            checkpoint.check(&format!("{layer}.{norm}.weight"), &[hidden])?;
        }
        for Stacked { parent, parts, in_features, bias } in Stacked::of_layer(config) {
            for (name, out_features) in parts {
                let module = format!("{layer}.{parent}.{name}");
                checkpoint.check(&format!("{module}.weight"), &[out_features, in_features])?;
                if bias {
                    checkpoint.check(&format!("{module}.bias"), &[out_features])?;
                }
            }
        }
    }
    checkpoint.check(&format!("{prefix}norm.weight"), &[hidden])?;
    let (embed, head) = (format!("{prefix}embed_tokens.weight"), "lm_head.weight");
    for (name, needed) in [
        (embed.as_str(), !config.tie_word_embeddings || !checkpoint.contains(head)),
        (head, !config.tie_word_embeddings),
    ] {
        if needed || checkpoint.contains(name) {
            checkpoint.check(name, &[config.vocab_size, hidden])?;
        }
    }
    Ok(())
}
