//! The order of the examples in an epoch, equal to PyTorch's.

/// The order in which an epoch visits `examples` examples.
///
/// Equal to `torch.randperm(examples, generator=torch.Generator().manual_seed(seed))` on the CPU: an
/// [`mt19937`](https://en.wikipedia.org/wiki/Mersenne_Twister) generator seeded with the low 32 bits of `seed` drives a
/// Fisher-Yates shuffle. The Hugging Face trainer visits the examples of epoch `e` in the order of seed `seed + e`; the
/// caller adds the epoch.
///
/// # Examples
/// ```
/// assert_eq!(ferrotune_data::epoch_order(11, 42), [6, 8, 9, 2, 1, 10, 0, 7, 3, 5, 4]);
/// ```
pub fn epoch_order(examples: usize, seed: u64) -> Vec<usize> {
    let mut random = MersenneTwister::new(seed as u32);
    let mut order: Vec<usize> = (0..examples).collect();
    for i in 0..examples.saturating_sub(1) {
        let offset = random.next() as usize % (examples - i);
        order.swap(i, i + offset);
    }
    order
}

const N: usize = 624;
const M: usize = 397;

/// The 32-bit Mersenne Twister of Matsumoto and Nishimura (1998).
struct MersenneTwister {
    state: [u32; N],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn next(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equals_torch_randperm() {
        assert_eq!(epoch_order(11, 42), [6, 8, 9, 2, 1, 10, 0, 7, 3, 5, 4]);
        assert_eq!(epoch_order(11, 43), [3, 9, 4, 2, 8, 7, 6, 10, 1, 5, 0]);
        assert!(epoch_order(0, 1).is_empty());
        assert_eq!(epoch_order(1, 1), [0]);
    }

    proptest! {
        #[test]
        fn is_a_permutation(examples in 0usize..2000, seed: u64) {
            let mut order = epoch_order(examples, seed);
            order.sort_unstable();
            prop_assert_eq!(order, (0..examples).collect::<Vec<_>>());
        }
    }
}
