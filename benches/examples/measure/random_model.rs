//! A Hugging Face directory of a Llama-shaped model that has learnt nothing: for its time and memory alone.

use crate::Result;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};
use tch::{Device, Kind, Tensor};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    hidden_size: i64,
    #[arg(long)]
    intermediate_size: i64,
    #[arg(long)]
    layers: usize,
    /// Query heads of 64 numbers are `hidden_size / 64`; these are those of keys and values.
    #[arg(long)]
    key_value_heads: i64,
    #[arg(long)]
    vocabulary: i64,
    #[arg(long)]
    output: PathBuf,
}

const HEAD_DIM: i64 = 64;

pub fn run(arguments: &Arguments) -> Result<Value> {
    let &Arguments {
        hidden_size: hidden, intermediate_size: inner, layers, key_value_heads, vocabulary, ..
    } = arguments;
    let key_value = key_value_heads * HEAD_DIM;
    fs::create_dir_all(&arguments.output)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden / HEAD_DIM,
        "num_key_value_heads": key_value_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": true,
        "vocab_size": vocabulary,
    });
    fs::write(arguments.output.join("config.json"), format!("{config:#}\n"))?;

    // Half the bytes on the disk; they are read into f32.
    tch::manual_seed(0);
    let random = |rows: i64, columns: i64| -> Result<Tensor> {
        Ok((Tensor::f_randn([rows, columns], (Kind::Float, Device::Cpu))? * 0.02)
            .f_to_kind(Kind::BFloat16)?)
    };
    let ones = || Tensor::f_ones([hidden], (Kind::BFloat16, Device::Cpu));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), random(vocabulary, hidden)?),
        ("model.norm.weight".to_owned(), ones()?),
    ];
    for layer in 0..layers {
        let mut add =
            |name: &str, tensor| tensors.push((format!("model.layers.{layer}.{name}.weight"), tensor));
        add("input_layernorm", ones()?);
        add("post_attention_layernorm", ones()?);
        for (name, rows, columns) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", key_value, hidden),
            ("self_attn.v_proj", key_value, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ] {
            add(name, random(rows, columns)?);
        }
    }
    let parameters: usize = tensors.iter().map(|(_, tensor)| tensor.numel()).sum();
    Tensor::write_safetensors(&tensors, arguments.output.join("model.safetensors"))?;
    Ok(json!({ "parameters": parameters }))
}
