//! Writes GGUF files, sound and unsound ones, for tests.

#![allow(dead_code)] // each test binary uses its own part

use std::path::{Path, PathBuf};

/// The parts of a file, each of which a test may spoil before `bytes`.
#[derive(Clone)]
pub struct GgufBuilder {
    pub magic: Vec<u8>,
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    /// Key, type number, encoded value.
    pub metadata: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Innermost first, as in the file.
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl GgufBuilder {
    pub fn empty() -> Self {
        Self {
            magic: b"GGUF".to_vec(),
            version: 3,
            tensor_count: None,
            key_count: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }

    /// One layer, hidden size 8, two heads, a vocabulary of 6 tokens; all weights 0.
    pub fn tiny_llama() -> Self {
        let mut file = Self::empty();
        file.set_str("general.architecture", "llama");
        for (key, value) in [
            ("context_length", 16),
            ("embedding_length", 8),
            ("block_count", 1),
            ("feed_forward_length", 16),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            file.set_u32(&format!("llama.{key}"), value);
        }
        file.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        file.set_str("tokenizer.ggml.model", "gpt2");
        file.set_str("tokenizer.ggml.pre", "gpt-2");
        file.set_strs("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "c", "ab", "abc"]);
        file.set_i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1]);
        file.set_strs("tokenizer.ggml.merges", &["a b", "ab c"]);
        file.set_u32("tokenizer.ggml.eos_token_id", 0);
        for (name, dimensions) in [
            ("token_embd", vec![8, 6]),
            ("output_norm", vec![8]),
            ("blk.0.attn_norm", vec![8]),
            ("blk.0.ffn_norm", vec![8]),
            ("blk.0.attn_q", vec![8, 8]),
            ("blk.0.attn_k", vec![8, 4]),
            ("blk.0.attn_v", vec![8, 4]),
            ("blk.0.attn_output", vec![8, 8]),
            ("blk.0.ffn_gate", vec![8, 16]),
            ("blk.0.ffn_up", vec![8, 16]),
            ("blk.0.ffn_down", vec![16, 8]),
        ] {
            file.add_f32(&format!("{name}.weight"), &dimensions);
        }
        file
    }

    pub fn set(&mut self, key: &str, type_id: u32, value: Vec<u8>) {
        self.remove(key);
        self.metadata.push((key.as_bytes().to_vec(), type_id, value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(found, ..)| found != key.as_bytes());
    }

    pub fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    pub fn set_f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, value.to_le_bytes().to_vec());
    }

    pub fn set_bool(&mut self, key: &str, value: bool) {
        self.set(key, 7, vec![u8::from(value)]);
    }

    pub fn set_str(&mut self, key: &str, value: &str) {
        self.set(key, 8, text(value));
    }

    pub fn set_list(&mut self, key: &str, item_type: u32, count: u64, items: &[u8]) {
        self.set(key, 9, [&item_type.to_le_bytes()[..], &count.to_le_bytes(), items].concat());
    }

    pub fn set_strs(&mut self, key: &str, values: &[&str]) {
        let items: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.set_list(key, 8, values.len() as u64, &items);
    }

    pub fn set_i32s(&mut self, key: &str, values: &[i32]) {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.set_list(key, 5, values.len() as u64, &items);
    }

    pub fn set_f32s(&mut self, key: &str, values: &[f32]) {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.set_list(key, 6, values.len() as u64, &items);
    }

    pub fn add_f32(&mut self, name: &str, dimensions: &[u64]) {
        let elements: u64 = dimensions.iter().product();
        self.add_f32_values(name, dimensions, &vec![0.0; elements as usize]);
    }

    pub fn add_f32_values(&mut self, name: &str, dimensions: &[u64], values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            type_id: 0,
            offset: None,
            data,
        });
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.clone();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.key_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, type_id, value) in &self.metadata {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key);
            bytes.extend(type_id.to_le_bytes());
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            bytes.extend(tensor.dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(data);
        bytes
    }

    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}
