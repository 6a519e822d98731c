//! `model.safetensors`.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::{Dtype, SafeTensorError, View};

use super::ImportProgress;
use super::config::ModelConfig;
use super::fields::Fields;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, TensorInfo, dequantize_blocks};

/// Which tensor of the file becomes which tensor of the checkpoint.
#[derive(Debug)]
pub(super) struct WeightPlan {
    tensors: Vec<PlannedTensor>,
    pub(super) vocab_size: usize,
    /// Whether the output head is the embedding matrix.
    pub(super) tied: bool,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
}

#[derive(Debug)]
struct PlannedTensor {
    name: String,
    source: TensorInfo,
    /// Heads whose rows are interleaved in the file and have to be put back into halves.
    interleaved_heads: Option<usize>,
}

/// The part of a layer in the file, in the checkpoint, its shape `[out, in]` by name, and whether rotary pairs are in its rows.
struct Module {
    gguf: &'static str,
    hf: &'static str,
    out_features: usize,
    in_features: usize,
    interleaved_heads: Option<usize>,
}

impl WeightPlan {
    /// Looks up every tensor of the architecture and checks its shape.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the metadata imply, or has no counterpart in the checkpoint.
    pub(super) fn new(file: &GgufFile, config: &ModelConfig) -> Result<Self> {
        let mut planner = Planner { file, tensors: Vec::new(), used: HashSet::new() };
        let hidden = config.hidden_size;
        let vocab_size = planner.embedding(hidden)?;
        let modules = modules(config);
        let attention_bias = file.tensor("blk.0.attn_output.bias").is_some();
        let mlp_bias = file.tensor("blk.0.ffn_down.bias").is_some();
        for layer in 0..config.num_hidden_layers {
            for (gguf, hf) in [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")] {
                planner.require(
                    &format!("blk.{layer}.{gguf}.weight"),
                    format!("model.layers.{layer}.{hf}.weight"),
                    &[hidden],
                    None,
                )?;
            }
            for Module { gguf, hf, out_features, in_features, interleaved_heads } in &modules {
                let (source, target) = (format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{hf}"));
                planner.require(
                    &format!("{source}.weight"),
                    format!("{target}.weight"),
                    &[*out_features, *in_features],
                    *interleaved_heads,
                )?;
                let bias = if gguf.starts_with("attn") { attention_bias } else { mlp_bias };
                if bias {
                    planner.require(
                        &format!("{source}.bias"),
                        format!("{target}.bias"),
                        &[*out_features],
                        *interleaved_heads,
                    )?;
                }
            }
        }
        planner.require("output_norm.weight", "model.norm.weight".to_owned(), &[hidden], None)?;
        let tied = file.tensor("output.weight").is_none();
        if !tied {
            planner.require("output.weight", "lm_head.weight".to_owned(), &[vocab_size, hidden], None)?;
        }
        planner.refuse_unused(config)?;
        Ok(Self { tensors: planner.tensors, vocab_size, tied, attention_bias, mlp_bias })
    }

    pub(super) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    pub(super) fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.source.elements() as u64).sum()
    }

    /// Writes the checkpoint to `path`, which will become `target`, decoding one tensor at a time. Whether it came to its end: if not,
    /// what is there is worth nothing.
    pub(super) fn write(
        &self,
        file: &GgufFile,
        path: &Path,
        target: &Path,
        progress: &dyn Fn(ImportProgress<'_>) -> bool,
    ) -> Result<bool> {
        let total_bytes = self.parameters() * size_of::<f32>() as u64;
        let writer = Writer { file, progress, going: Cell::new(true), done_bytes: Cell::new(0), total_bytes };
        let views =
            self.tensors.iter().map(|tensor| (tensor.name.as_str(), Decoded { tensor, writer: &writer }));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(metadata), path)
            .map_err(|error| match error {
                SafeTensorError::IoError(error) => error,
                error => std::io::Error::other(error),
            })
            .map_err(Error::io("write", target))?;
        Ok(writer.going.get())
    }
}

fn modules(config: &ModelConfig) -> [Module; 7] {
    let hidden = config.hidden_size;
    let (query_heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let (query, key) = (query_heads * config.head_dim, key_heads * config.head_dim);
    let module = |gguf, hf, out_features, in_features, interleaved_heads| Module {
        gguf,
        hf,
        out_features,
        in_features,
        interleaved_heads,
    };
    [
        module("attn_q", "self_attn.q_proj", query, hidden, Some(query_heads)),
        module("attn_k", "self_attn.k_proj", key, hidden, Some(key_heads)),
        module("attn_v", "self_attn.v_proj", key, hidden, None),
        module("attn_output", "self_attn.o_proj", hidden, query, None),
        module("ffn_gate", "mlp.gate_proj", config.intermediate_size, hidden, None),
        module("ffn_up", "mlp.up_proj", config.intermediate_size, hidden, None),
        module("ffn_down", "mlp.down_proj", hidden, config.intermediate_size, None),
    ]
}

struct Planner<'a> {
    file: &'a GgufFile,
    tensors: Vec<PlannedTensor>,
    used: HashSet<String>,
}

impl<'a> Planner<'a> {
    fn find(&self, name: &str) -> Result<&'a TensorInfo> {
        self.file.tensor(name).ok_or_else(|| Error::GgufTensorMissing {
            path: self.file.path().to_owned(),
            tensor: name.to_owned(),
        })
    }

    fn embedding(&mut self, hidden: usize) -> Result<usize> {
        let name = "token_embd.weight";
        let rows = self.find(name)?.shape()[0];
        self.require(name, "model.embed_tokens.weight".to_owned(), &[rows, hidden], None)?;
        Ok(rows)
    }

    fn require(
        &mut self,
        source: &str,
        name: String,
        shape: &[usize],
        interleaved_heads: Option<usize>,
    ) -> Result<()> {
        let info = self.find(source)?;
        if info.shape() != shape {
            return Err(Error::GgufTensorShape {
                path: self.file.path().to_owned(),
                tensor: source.to_owned(),
                expected: shape.to_vec(),
                found: info.shape().to_vec(),
            });
        }
        self.used.insert(source.to_owned());
        self.tensors.push(PlannedTensor { name, source: info.clone(), interleaved_heads });
        Ok(())
    }

    /// A tensor that was not asked for would be lost, and the model with it.
    fn refuse_unused(&self, config: &ModelConfig) -> Result<()> {
        let fields = Fields(self.file);
        for tensor in self.file.tensors() {
            let name = tensor.name();
            // Read as rotary scaling; a cache of frequencies that old files carry.
            let known = self.used.contains(name)
                || name == "rope_freqs.weight"
                || name.ends_with(".attn_rot_embd.weight");
            if !known {
                return Err(fields.unsupported("tensor", name, "the tensors of a Llama decoder"));
            }
            if config.has_sliding_window() && name.ends_with(".bias") {
                return Err(fields.unsupported("tensor", name, "no biases beside a sliding window"));
            }
        }
        Ok(())
    }
}

struct Writer<'a> {
    file: &'a GgufFile,
    progress: &'a dyn Fn(ImportProgress<'_>) -> bool,
    going: Cell<bool>,
    done_bytes: Cell<u64>,
    total_bytes: u64,
}

/// A tensor that is decoded when the writer asks for its bytes.
struct Decoded<'a> {
    tensor: &'a PlannedTensor,
    writer: &'a Writer<'a>,
}

impl View for Decoded<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.tensor.source.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Writer { file, progress, going, done_bytes, total_bytes } = self.writer;
        let now = ImportProgress {
            tensor: &self.tensor.name,
            done_bytes: done_bytes.get(),
            total_bytes: *total_bytes,
        };
        if !going.get() || !progress(now) {
            // The library that writes cannot be stopped from here: it gets nothing more to write.
            going.set(false);
            return Cow::Borrowed(&[]);
        }
        let bytes = self.tensor.decode(file.raw(&self.tensor.source));
        done_bytes.set(done_bytes.get() + bytes.len() as u64);
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.source.elements() * size_of::<f32>()
    }
}

impl PlannedTensor {
    /// Little-endian f32, row by row in the order of the checkpoint.
    fn decode(&self, raw: &[u8]) -> Vec<u8> {
        let shape = self.source.shape();
        // A vector (a norm, a bias) is a column here: its rows may have to change places as those of its matrix do.
        let row_elements = if shape.len() == 1 && self.interleaved_heads.is_some() {
            1
        } else {
            shape.last().copied().unwrap_or(1)
        };
        let rows = self.source.elements() / row_elements;
        let row_bytes = raw.len() / rows;
        let mut row = vec![0.0_f32; row_elements];
        let mut bytes = Vec::with_capacity(self.source.elements() * size_of::<f32>());
        for index in 0..rows {
            let from = self.interleaved_heads.map_or(index, |heads| interleaved_row(index, rows / heads));
            dequantize_blocks(
                self.source.ggml_type(),
                &raw[from * row_bytes..(from + 1) * row_bytes],
                &mut row,
            );
            for value in &row {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }
}

/// The row of the file that is row `index` of the checkpoint.
///
/// A rotary pair is rows `i` and `i + head_dim / 2` of a head in the checkpoint and rows `2 i` and `2 i + 1` in the file.
fn interleaved_row(index: usize, head_dim: usize) -> usize {
    let (head, row) = (index / head_dim, index % head_dim);
    let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
    head * head_dim + 2 * pair + half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_go_back_into_halves() {
        // llama.cpp writes the rows of a head of 8 in the order 0 4 1 5 2 6 3 7.
        let file_order = [0, 4, 1, 5, 2, 6, 3, 7];
        for index in 0..16 {
            let from = interleaved_row(index, 8);
            assert_eq!(from / 8 * 8 + file_order[from % 8], index);
        }
    }
}
