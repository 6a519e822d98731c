//! Rotary scaling.

use serde_json::{Value as Json, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;

/// Factors of llama3 scaling as Llama 3.1, 3.2 and 3.3 have them: low and high frequency factor, original context.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);
/// Two factors this close are the same factor, computed in f32 by two programs.
const RELATIVE_TOLERANCE: f64 = 1e-4;

/// Scaling of rotary frequencies, in the words of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeScaling {
    /// All positions divided by `factor`.
    Linear { factor: f64 },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// The scaling that a file asks for, or none.
    ///
    /// A file with llama3 scaling has no key for it: `rope_freqs.weight` holds the divisor of every frequency. The largest of
    /// them is the factor; the other parameters are taken to be those of the published models, and the import goes on only if
    /// they reproduce every divisor of the file.
    pub(super) fn from_gguf(file: &GgufFile, rope_theta: f64, head_dim: usize) -> Result<Option<Self>> {
        let fields = Fields(file);
        let declared = match fields.optional_str("llama.rope.scaling.type")? {
            None => match fields.optional_f64("llama.rope.scale_linear")? {
                Some(factor) if factor != 1.0 => Some(Self::Linear { factor }),
                _ => None,
            },
            Some("none") => None,
            Some("linear") => {
                let key = "llama.rope.scaling.factor";
                let factor = fields.optional_f64(key)?.ok_or_else(|| fields.missing(key))?;
                Some(Self::Linear { factor }).filter(|_| factor != 1.0)
            }
            Some(other) => return Err(fields.unsupported("llama.rope.scaling.type", other, "none, linear")),
        };
        let Some(tensor) = file.tensor("rope_freqs.weight") else { return Ok(declared) };
        if tensor.shape() != [head_dim / 2] {
            return Err(Error::GgufTensorShape {
                path: file.path().to_owned(),
                tensor: tensor.name().to_owned(),
                expected: vec![head_dim / 2],
                found: tensor.shape().to_vec(),
            });
        }
        let divisors = file.dequantize(tensor.name())?;
        if divisors.iter().all(|&divisor| divisor == 1.0) {
            return Ok(declared);
        }
        if let Some(declared) = declared {
            return Err(fields.unsupported(
                "tensor `rope_freqs.weight` beside scaling",
                format_args!("{declared:?}"),
                "one of them",
            ));
        }
        Self::llama3_from_divisors(&divisors, rope_theta).map(Some).ok_or_else(|| {
            let supported = "the llama3 scaling of Llama 3.1 to 3.3";
            fields.unsupported(
                "rotary scaling in tensor `rope_freqs.weight`",
                format_args!("{divisors:?}"),
                supported,
            )
        })
    }

    fn llama3_from_divisors(divisors: &[f32], rope_theta: f64) -> Option<Self> {
        let (low_freq_factor, high_freq_factor, original) = LLAMA3;
        let factor = f64::from(divisors.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let context = original as f64;
        let reproduced = divisors.iter().enumerate().all(|(i, &divisor)| {
            let frequency = rope_theta.powf(-(i as f64) / divisors.len() as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            let expected = if wavelength < context / high_freq_factor {
                1.0
            } else if wavelength > context / low_freq_factor {
                factor
            } else {
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (f64::from(divisor) - expected).abs() <= RELATIVE_TOLERANCE * expected
        });
        reproduced.then_some(Self::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        })
    }

    /// The dictionary of `config.json`, without `rope_theta`.
    pub(super) fn to_json(&self) -> Json {
        match self {
            Self::Linear { factor } => json!({ "factor": factor, "rope_type": "linear" }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "factor": factor,
                    "high_freq_factor": high_freq_factor,
                    "low_freq_factor": low_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                    "rope_type": "llama3",
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Divisors of the frequencies of Llama 3.2 (head dimension 16 here), from the frequencies that transformers computes.
    fn divisors(factor: f64) -> Vec<f32> {
        let scaled = match factor {
            // theta 5e5, factor 8, low 1, high 4, original context 8192
            8.0 => [
                1.0,
                0.193_922_758,
                0.037_606_030_7,
                0.007_292_665_08,
                5.248_460_22e-4,
                3.428_102_35e-5,
                6.647_869_67e-6,
                1.289_173_16e-6,
            ],
            _ => unreachable!(),
        };
        scaled
            .iter()
            .enumerate()
            .map(|(i, scaled)| (5e5_f64.powf(-(i as f64) / 8.0) / scaled) as f32)
            .collect()
    }

    #[test]
    fn llama3_scaling_is_recognised_from_its_divisors() {
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let mut found = divisors(8.0);
        found[7] = 8.0;
        assert_eq!(RopeScaling::llama3_from_divisors(&found, 5e5), Some(expected));
    }

    #[test]
    fn other_divisors_are_not_taken_for_llama3() {
        let mut other = divisors(8.0);
        other[7] = 8.0;
        other[4] *= 1.01;
        assert_eq!(RopeScaling::llama3_from_divisors(&other, 5e5), None);
        assert_eq!(RopeScaling::llama3_from_divisors(&[f32::NAN; 8], 5e5), None);
    }
}
