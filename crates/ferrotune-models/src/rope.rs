//! Rotary frequencies and their tables.

use crate::{
    config::{ModelConfig, RopeScaling},
    error::Result,
};
use std::f32::consts::PI;
use tch::{Device, Kind, Tensor};

/// Inverse frequencies of the head's pairs: `theta^(-2i / head_dim)`, scaled as the configuration says; computed in f32.
///
/// # References
/// Su et al. 2021, arXiv:2104.09864; for `llama3` the scaling of Llama 3.1, as Hugging Face computes it.
pub(crate) fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    let plain = (0..pairs).map(|pair| {
        let exponent = (2 * pair) as f32 / config.head_dim as f32;
        1.0 / (config.rope_theta as f32).powf(exponent)
    });
    match config.rope_scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let original = original_max_position_embeddings as f32;
            plain
                .map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect()
        }
    }
}

/// Cosines and sines of the given positions, `[positions, head_dim / 2]` each, in f32.
pub(crate) fn tables(
    inverse_frequencies: &Tensor,
    positions: &[i64],
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?.f_to_kind(Kind::Float)?;
    let angles = positions.f_unsqueeze(1)?.f_mul(&inverse_frequencies.f_unsqueeze(0)?)?;
    Ok((angles.f_cos()?, angles.f_sin()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_equals_transformers() {
        let config = ModelConfig::from_json(
            r#"{"model_type": "llama", "hidden_size": 16, "num_attention_heads": 1, "rope_parameters":
            {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
        )
        .unwrap();
        // transformers 5.23, modeling_rope_utils, in f32
        let expected: [f64; 8] = [
            1.0,
            0.193922758,
            0.0376060307,
            0.00729266508,
            5.24846022e-4,
            3.42810235e-5,
            6.64786967e-6,
            1.28917316e-6,
        ];
        for (ours, expected) in inverse_frequencies(&config).iter().zip(expected) {
            assert!((f64::from(*ours) - expected).abs() / expected < 3e-7, "{ours} {expected}");
        }
    }
}
