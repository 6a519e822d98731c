//! Rows for keys and values, lent in blocks.

use crate::{decoder::CausalLm, error::Result};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Tokens of a block.
const BLOCK: usize = 32;

/// The rows of a number of tokens; they may lie anywhere.
#[derive(Debug, Default)]
pub(super) struct Rows {
    blocks: Vec<usize>,
}

impl Rows {
    /// The rows of the first `tokens` tokens, after those in `rows`; neighbours become one range.
    pub fn extend(&self, rows: &mut Vec<Range<i64>>, tokens: usize) {
        for (index, &block) in self.blocks.iter().enumerate().take(tokens.div_ceil(BLOCK)) {
            let start = (block * BLOCK) as i64;
            let end = start + (tokens - index * BLOCK).min(BLOCK) as i64;
            match rows.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => rows.push(start..end),
            }
        }
    }
}

/// Keys and values of every layer, `[rows, 2 * kv_heads, head_dim]` each.
///
/// A sequence takes all the rows that it may come to need when it begins, and gives them back when it ends. What it takes is its own
/// length, however long others are.
pub(super) struct Cache {
    layers: Vec<Tensor>,
    /// Blocks that nobody has; the last is lent first.
    free: Vec<usize>,
    blocks: usize,
    options: (Kind, Device),
    /// Of a row.
    shape: [i64; 2],
}

impl Cache {
    /// One without rows.
    pub fn new(model: &CausalLm) -> Result<Self> {
        let config = model.config();
        let shape = [2 * config.num_key_value_heads, config.head_dim];
        let options = (model.kind(), model.device());
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok(Tensor::f_empty([0, shape[0], shape[1]], options)?))
            .collect::<Result<_>>()?;
        Ok(Self { layers, free: Vec::new(), blocks: 0, options, shape })
    }

    /// The keys and values of a layer.
    pub fn layer(&mut self, layer: usize) -> &mut Tensor {
        &mut self.layers[layer]
    }

    /// Makes room for sequences of these lengths.
    pub fn reserve(&mut self, lengths: impl Iterator<Item = usize>) -> Result<()> {
        let needed: usize = lengths.map(|tokens| tokens.div_ceil(BLOCK)).sum();
        let missing = needed.saturating_sub(self.free.len());
        if missing == 0 {
            return Ok(());
        }
        // By a quarter at least: a cache that grows with each sequence would be copied again and again.
        let blocks = self.blocks + missing.max(self.blocks / 4);
        for layer in &mut self.layers {
            // Not filled: attention reads the rows of tokens that it has seen, and no others.
            let grown =
                Tensor::f_empty([(blocks * BLOCK) as i64, self.shape[0], self.shape[1]], self.options)?;
            grown.f_narrow(0, 0, layer.size()[0])?.f_copy_(layer)?;
            *layer = grown;
        }
        // The first block is lent first, so that rows of one sequence tend to be neighbours.
        self.free.splice(0..0, (self.blocks..blocks).rev());
        self.blocks = blocks;
        Ok(())
    }

    /// Rows for `tokens` tokens.
    pub fn lend(&mut self, tokens: usize) -> Result<Rows> {
        self.reserve(std::iter::once(tokens))?;
        let blocks = self.free.drain(self.free.len() - tokens.div_ceil(BLOCK)..).rev().collect();
        Ok(Rows { blocks })
    }

    /// Takes rows back.
    pub fn give_back(&mut self, rows: Rows) {
        self.free.extend(rows.blocks.into_iter().rev());
    }

    /// Whether everything was given back.
    #[cfg(test)]
    pub fn is_whole(&self) -> bool {
        let mut free = self.free.clone();
        free.sort_unstable();
        free.into_iter().eq(0..self.blocks)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn rows_are_lent_once_and_a_larger_cache_holds_what_the_smaller_held() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder/llama_gqa_untied");
        let model = CausalLm::load(&directory, Device::Cpu, Kind::Float).unwrap();
        let mut cache = Cache::new(&model).unwrap();
        let ranges = |rows: &Rows, tokens: usize| {
            let mut ranges = Vec::new();
            rows.extend(&mut ranges, tokens);
            ranges
        };
        cache.reserve([70, 5].into_iter()).unwrap();
        assert_eq!(cache.layer(0).size()[0], 4 * BLOCK as i64);
        let (first, second) = (cache.lend(70).unwrap(), cache.lend(5).unwrap());
        assert_eq!((ranges(&first, 70), ranges(&second, 5)), (vec![0..70], vec![96..101]));
        let _ = cache.layer(1).narrow(0, 96, 5).fill_(3.0);
        let third = cache.lend(1).unwrap();
        assert_eq!(ranges(&third, 1), [128..129]);
        assert_eq!(cache.layer(1).narrow(0, 96, 5).mean(Kind::Float).double_value(&[]), 3.0);
        cache.give_back(first);
        cache.give_back(third);
        // What is free lies apart, in the order in which it came back.
        let fourth = cache.lend(90).unwrap();
        assert_eq!(ranges(&fourth, 90), [128..160, 0..58]);
        cache.give_back(second);
        cache.give_back(fourth);
        assert!(cache.is_whole());
    }
}
