//! Blocks of a sequence's queries, for libtorch's attention.

use crate::error::Result;
use std::ops::Range;
use tch::Tensor;

/// Queries that are computed in one go, and the keys that at least one of them sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) queries: Range<i64>,
    pub(super) keys: Range<i64>,
}

/// Most queries of a block.
const MOST_QUERIES: i64 = 512;
/// Fewest queries of a block that is not the last: with fewer the products are too small to run well.
const FEWEST_QUERIES: i64 = 128;

impl Block {
    /// The blocks of a sequence.
    pub(super) fn all(tokens: i64, window: Option<i64>) -> Vec<Self> {
        let Some(window) = window.filter(|&window| window < tokens) else {
            // Plain causality: libtorch goes through it in tiles by itself.
            return vec![Self { queries: 0..tokens, keys: 0..tokens }];
        };
        // Half of the scores of a block lie outside of the window if it has as many queries as the window has keys.
        let step = window.clamp(FEWEST_QUERIES, MOST_QUERIES);
        let mut blocks = Vec::new();
        let mut start = 0;
        while start < tokens {
            let end = (start + step).min(tokens);
            blocks.push(Self { queries: start..end, keys: (start - window + 1).max(0)..end });
            start = end;
        }
        blocks
    }

    /// What of the keys a query of the block sees.
    pub(super) fn visibility(&self, window: Option<i64>) -> Visibility {
        let (queries, keys) = (self.queries.end - self.queries.start, self.keys.end - self.keys.start);
        let window = window.filter(|&window| window < keys);
        match (queries, window) {
            (1, None) => Visibility::All,
            (_, None) if queries == keys => Visibility::Causal,
            _ => Visibility::Band { queries, keys, window: window.unwrap_or(keys) },
        }
    }
}

/// Which of the keys of a block its queries see; the last query stands at the last key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visibility {
    All,
    Causal,
    Band { queries: i64, keys: i64, window: i64 },
}

impl Visibility {
    /// Additive mask `[queries, keys]`, where one is needed.
    fn mask(self, like: &Tensor) -> Result<Option<Tensor>> {
        let Self::Band { queries, keys, window } = self else { return Ok(None) };
        let hidden = || Tensor::f_full([queries, keys], f64::NEG_INFINITY, (like.kind(), like.device()));
        // Query i stands at key `first + i`.
        let first = keys - queries;
        let mut mask = hidden()?.f_triu(first + 1)?;
        if window < keys {
            mask = mask.f_add_(&hidden()?.f_tril(first - window)?)?;
        }
        Ok(Some(mask))
    }
}

/// The mask of the block before, which most often serves the next one too.
#[derive(Default)]
pub(super) struct LastMask(Option<(Visibility, Option<Tensor>)>);

impl LastMask {
    pub(super) fn of(&mut self, visibility: Visibility, like: &Tensor) -> Result<Option<&Tensor>> {
        if self.0.as_ref().is_none_or(|(last, _)| *last != visibility) {
            self.0 = None; // never two at a time
            self.0 = Some((visibility, visibility.mask(like)?));
        }
        Ok(self.0.as_ref().and_then(|(_, mask)| mask.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;
    use tch::Kind;

    #[test]
    fn blocks_cover_what_each_query_sees_and_no_mask_is_larger_than_a_block() {
        for tokens in [1, 2, 128, 512, 513, 700, 3000] {
            for window in [None, Some(1), Some(2), Some(100), Some(512), Some(1000), Some(5000)] {
                let mut next = 0;
                for block in Block::all(tokens, window) {
                    assert_eq!(block.queries.start, next);
                    next = block.queries.end;
                    let first_seen = |query: i64| window.map_or(0, |window| (query - window + 1).max(0));
                    assert_eq!(block.keys, first_seen(block.queries.start)..block.queries.end);
                    let mask = block.visibility(window).mask(&noise(1, &[1])).unwrap();
                    if let Some(mask) = &mask {
                        let [rows, columns] = mask.size()[..] else { panic!("a matrix") };
                        assert!(rows <= MOST_QUERIES && columns < window.unwrap() + rows);
                    } else {
                        let single = block.queries.end - block.queries.start == 1;
                        assert!(single || (block.queries.start == 0 && block.keys == block.queries));
                    }
                }
                assert_eq!(next, tokens, "{tokens} {window:?}");
            }
        }
    }

    #[test]
    fn a_mask_hides_what_comes_after_and_what_the_window_has_left() {
        let mask =
            Visibility::Band { queries: 3, keys: 5, window: 2 }.mask(&noise(1, &[1])).unwrap().unwrap();
        let visible = Vec::<i64>::try_from(mask.eq(0.0).to_kind(Kind::Int64).reshape([-1])).unwrap();
        assert_eq!(visible, [0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]);
        let hidden = mask.eq(f64::NEG_INFINITY).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(hidden, 9);
    }
}
