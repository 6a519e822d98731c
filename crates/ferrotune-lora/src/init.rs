//! How the weights of a new adapter start.

use crate::error::{Error, Result};
use ferrotune_kernels::RandomKey;
use tch::Tensor;

/// A new A: uniform in `[-1/sqrt(in_features), 1/sqrt(in_features))`, which is Kaiming's initialisation with `a = sqrt(5)`, f32, on the CPU.
/// B starts at zero, so that a new adapter leaves the base's output as it is.
///
/// The numbers are a function of the key alone; give each module its own: `key.fold_name(module_path)`.
///
/// # Shapes
/// returns `[rank, in_features]`
///
/// # Errors
/// [`Error::InvalidValue`] for sizes that are not positive or too large, [`Error::Torch`] if libtorch fails.
///
/// # References
/// He et al. 2015, arXiv:1502.01852; `peft.tuners.lora.layer.LoraLayer.reset_lora_parameters`.
pub fn init_a(rank: usize, in_features: i64, key: RandomKey) -> Result<Tensor> {
    let columns = usize::try_from(in_features).unwrap_or_default();
    let count = rank.checked_mul(columns).filter(|&count| count > 0 && i64::try_from(count).is_ok());
    let Some(count) = count else {
        return Err(Error::value(
            "r, in_features",
            format!("{rank}, {in_features}"),
            "two positive sizes whose product is a tensor's",
        ));
    };
    let bound = 1.0 / (columns as f32).sqrt();
    let mut values = key.uniform(count);
    for value in &mut values {
        *value = (2.0 * *value - 1.0) * bound;
    }
    Ok(Tensor::f_from_slice(&values)?.f_view([rank as i64, in_features])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_is_uniform_in_the_bound_and_its_own_for_each_module() {
        let key = RandomKey::from_seed(1);
        let a = init_a(64, 400, key.fold_name("model.layers.0.self_attn.q_proj")).unwrap();
        assert_eq!(a.size(), [64, 400]);
        let (low, high) = (a.min().double_value(&[]), a.max().double_value(&[]));
        assert!((-0.05..-0.0499).contains(&low) && (0.0499..0.05).contains(&high), "{low} {high}");
        assert!((a.std(false).double_value(&[]) - 0.05 / 3.0_f64.sqrt()).abs() < 2e-4);
        assert_ne!(a, init_a(64, 400, key.fold_name("model.layers.1.self_attn.q_proj")).unwrap());
        assert_eq!(a, init_a(64, 400, key.fold_name("model.layers.0.self_attn.q_proj")).unwrap());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (rank, in_features) in [(0, 4), (4, 0), (4, -1), (usize::MAX, 4)] {
            assert!(init_a(rank, in_features, RandomKey::from_seed(1)).is_err());
        }
    }
}
