//! Noise on input embeddings.

use crate::error::Result;
use ferrotune_kernels::{RandomKey, SequenceLayout};
use tch::Tensor;

/// The embeddings with NEFTune's noise, uniform within `alpha / sqrt(length * width)` for a sequence of `length` rows.
///
/// Number `i` of the key's uniform stream makes the noise of element `i`.
///
/// # Shapes
/// - `embeddings`: `[total_tokens, width]`, as the result
pub(crate) fn with_noise(
    embeddings: &Tensor,
    alpha: f64,
    layout: &SequenceLayout,
    key: RandomKey,
) -> Result<Tensor> {
    let width = embeddings.size()[1];
    let bounds = layout.segments().iter().flat_map(|segment| {
        let length = segment.len();
        let bound = alpha / ((length * width) as f64).sqrt();
        std::iter::repeat_n(bound as f32, length as usize)
    });
    let bounds = Tensor::f_from_slice(&bounds.collect::<Vec<_>>())?.f_unsqueeze(1)?;
    let uniform = key.fold_name("neftune").uniform(embeddings.numel());
    let mut noise = Tensor::f_from_slice(&uniform)?.f_view_as(embeddings)?;
    let _ = noise.f_mul_scalar_(2.0)?.f_sub_scalar_(1.0)?.f_mul_(&bounds)?;
    Ok(embeddings.f_add(&noise.f_to_device(embeddings.device())?.f_to_kind(embeddings.kind())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn noise_is_uniform_within_the_bound_of_its_own_sequence() {
        let (width, alpha) = (64, 5.0);
        let layout = SequenceLayout::from_cu_seqlens(&[0, 400, 500, 501]).unwrap();
        let embeddings = Tensor::full([501, width], 2.0, (Kind::Float, Device::Cpu));
        let noise = with_noise(&embeddings, alpha, &layout, RandomKey::from_seed(7)).unwrap() - &embeddings;
        for segment in layout.segments() {
            let length = segment.len();
            let bound = alpha / ((length * width) as f64).sqrt();
            let own = noise.narrow(0, segment.rows.start, length) / bound;
            let (mean, least, most) = (own.mean(Kind::Double), own.min(), own.max());
            let count = (length * width) as f64;
            // Of a uniform distribution on [-1, 1): variance 1/3, that of the square 4/45.
            assert!(mean.double_value(&[]).abs() < 4.0 * (1.0 / 3.0 / count).sqrt(), "{mean}");
            let square = own.square().mean(Kind::Double).double_value(&[]);
            assert!((square - 1.0 / 3.0).abs() < 4.0 * (4.0 / 45.0 / count).sqrt(), "{square}");
            // The sum with an embedding is rounded.
            let (least, most) = (least.double_value(&[]), most.double_value(&[]));
            assert!((-1.0001..-0.8).contains(&least) && (0.8..1.0001).contains(&most), "{least} {most}");
        }
    }

    #[test]
    fn the_key_alone_decides() {
        let layout = SequenceLayout::from_cu_seqlens(&[0, 3, 8]).unwrap();
        let embeddings = Tensor::zeros([8, 4], (Kind::Float, Device::Cpu));
        let of = |seed| with_noise(&embeddings, 1.0, &layout, RandomKey::from_seed(seed)).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_eq!(embeddings.abs().max().double_value(&[]), 0.0, "the embeddings stay as they are");
        let half =
            with_noise(&embeddings.to_kind(Kind::BFloat16), 1.0, &layout, RandomKey::from_seed(1)).unwrap();
        assert_eq!(half, of(1).to_kind(Kind::BFloat16));
    }
}
