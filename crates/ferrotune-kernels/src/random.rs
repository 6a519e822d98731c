//! Randomness as a function of where it is used, never of what was drawn before.
//!
//! A [`RandomKey`] is derived by folding in the coordinates of its use (epoch, step, micro-batch, layer); the same coordinates
//! always give the same numbers, so an interrupted run that goes on draws what the unbroken one would have drawn, with no generator
//! state to save. The numbers come from SplitMix64's output function over `key + counter * increment`.
//!
//! # References
//! Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", section 4 (the mixing function and its increment).

const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// Key of a stream of random numbers.
///
/// ```
/// use ferrotune_kernels::RandomKey;
/// let step = RandomKey::from_seed(42).fold(3); // step 3
/// assert_ne!(step.fold(0).uniform(4), step.fold(1).uniform(4)); // two layers
/// assert_eq!(step.fold(1).uniform(4), RandomKey::from_seed(42).fold(3).fold(1).uniform(4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomKey(u64);

impl RandomKey {
    /// The root key of a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(INCREMENT)))
    }

    /// The key of coordinate `coordinate` below this key.
    #[must_use]
    pub fn fold(self, coordinate: u64) -> Self {
        Self(mix(self.0 ^ mix(coordinate.wrapping_mul(INCREMENT).wrapping_add(INCREMENT))))
    }

    /// The key of a name below this key (FNV-1a of its bytes is the coordinate).
    #[must_use]
    pub fn fold_name(self, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        self.fold(hash)
    }

    /// Number `counter` of this key's stream: 64 random bits.
    #[inline(always)] // into loops that are compiled for several instruction sets
    pub fn bits(self, counter: u64) -> u64 {
        mix(self.0.wrapping_add(counter.wrapping_mul(INCREMENT)))
    }

    /// The first `count` numbers of the stream, uniform in `[0, 1)` with 24 bits each.
    pub fn uniform(self, count: usize) -> Vec<f32> {
        (0..count as u64)
            .map(|counter| (self.bits(counter) >> 40) as f32 * (1.0 / (1u32 << 24) as f32))
            .collect()
    }
}

#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether a forward pass trains (dropout acts, drawn from the key) or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Training, with the randomness of this forward pass.
    Train(RandomKey),
    /// Evaluation and generation: nothing is random.
    Eval,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_have_the_mean_and_variance_of_the_unit_interval() {
        let numbers = RandomKey::from_seed(7).uniform(100_000);
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 4e-3, "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 2e-3, "{variance}");
        assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
    }

    #[test]
    fn folding_is_not_commutative_and_streams_differ() {
        let root = RandomKey::from_seed(1);
        assert_ne!(root.fold(1).fold(2), root.fold(2).fold(1));
        assert_ne!(root.fold(0), root);
        assert_ne!(root.fold_name("q_proj"), root.fold_name("v_proj"));
        assert_ne!(RandomKey::from_seed(1).uniform(8), RandomKey::from_seed(2).uniform(8));
    }
}
