//! Which rows of a packed tensor belong together.

use crate::error::{Error, Result};
use std::ops::Range;

/// One sequence of a packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// Its rows in tensors of shape `[total_tokens, ...]`.
    pub rows: Range<i64>,
    /// Number of its tokens that came before these rows: their keys and values lie in a cache. Zero in training.
    pub past: i64,
    /// Index of the adapter that this sequence uses; `None` is the bare base model.
    pub adapter: Option<usize>,
}

impl Segment {
    /// Number of rows.
    pub fn len(&self) -> i64 {
        self.rows.end - self.rows.start
    }

    /// Whether the segment has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Layout of a batch without padding: sequences lie one after another along the first dimension.
///
/// The same value describes training (every sequence starts at position 0) and decoding against a ragged cache of keys and values
/// (each sequence brings its next tokens and has `past` behind it). Attention never crosses a border.
///
/// ```
/// use ferrotune_kernels::SequenceLayout;
/// let layout = SequenceLayout::from_cu_seqlens(&[0, 3, 5])?;
/// assert_eq!(layout.total_tokens(), 5);
/// assert_eq!(layout.position_ids(), [0, 1, 2, 0, 1]);
/// # Ok::<(), ferrotune_kernels::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceLayout {
    segments: Vec<Segment>,
}

impl SequenceLayout {
    /// Whole sequences with the cumulative lengths `cu_seqlens` (`[0, len_0, len_0 + len_1, ...]`), all using adapter 0 where the
    /// model has one.
    ///
    /// # Errors
    /// [`Error::Layout`] unless the borders start at 0 and rise strictly.
    pub fn from_cu_seqlens(cu_seqlens: &[i64]) -> Result<Self> {
        if cu_seqlens.first() != Some(&0) {
            return Err(Error::Layout { reason: "cu_seqlens must start with 0", found: cu_seqlens.to_vec() });
        }
        if cu_seqlens.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::Layout {
                reason: "cu_seqlens must rise strictly",
                found: cu_seqlens.to_vec(),
            });
        }
        let segments = cu_seqlens
            .windows(2)
            .map(|pair| Segment { rows: pair[0]..pair[1], past: 0, adapter: Some(0) })
            .collect();
        Ok(Self { segments })
    }

    /// The next tokens of sequences that have a cache: `(number of new tokens, number of tokens before them)` for each.
    ///
    /// # Errors
    /// [`Error::Layout`] if a sequence brings no token, or a negative number lies behind it.
    pub fn continuing(new_and_past: &[(i64, i64)]) -> Result<Self> {
        let mut start = 0;
        let mut segments = Vec::with_capacity(new_and_past.len());
        for &(new, past) in new_and_past {
            if new < 1 || past < 0 {
                return Err(Error::Layout {
                    reason: "each sequence brings at least one token and has none or more behind it",
                    found: vec![new, past],
                });
            }
            segments.push(Segment { rows: start..start + new, past, adapter: Some(0) });
            start += new;
        }
        Ok(Self { segments })
    }

    /// The same layout with every sequence on adapter `adapter`; `None` is the bare base model.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<usize>) -> Self {
        for segment in &mut self.segments {
            segment.adapter = adapter;
        }
        self
    }

    /// The same layout with an adapter index for each sequence, in order.
    ///
    /// # Errors
    /// [`Error::Layout`] if there is not exactly one index for each sequence.
    pub fn with_adapters(mut self, adapters: &[Option<usize>]) -> Result<Self> {
        if adapters.len() != self.segments.len() {
            return Err(Error::Layout {
                reason: "one adapter index for each sequence is needed (adapters, sequences)",
                found: vec![adapters.len() as i64, self.segments.len() as i64],
            });
        }
        for (segment, &adapter) in self.segments.iter_mut().zip(adapters) {
            segment.adapter = adapter;
        }
        Ok(self)
    }

    /// The sequences, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of rows of the tensors that this layout describes.
    pub fn total_tokens(&self) -> i64 {
        self.segments.last().map_or(0, |segment| segment.rows.end)
    }

    /// Position of each row within its own sequence.
    pub fn position_ids(&self) -> Vec<i64> {
        self.segments.iter().flat_map(|segment| segment.past..segment.past + segment.len()).collect()
    }

    /// Runs of rows that use the same adapter, merged across neighbouring sequences.
    pub fn adapter_rows(&self) -> Vec<(Range<i64>, Option<usize>)> {
        let mut runs: Vec<(Range<i64>, Option<usize>)> = Vec::new();
        for segment in &self.segments {
            match runs.last_mut() {
                Some((rows, adapter)) if *adapter == segment.adapter => rows.end = segment.rows.end,
                _ => runs.push((segment.rows.clone(), segment.adapter)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_with_each_sequence_and_go_on_after_a_cache() {
        let layout = SequenceLayout::continuing(&[(2, 5), (1, 0), (1, 9)]).unwrap();
        assert_eq!(layout.position_ids(), [5, 6, 0, 9]);
        assert_eq!(layout.total_tokens(), 4);
    }

    #[test]
    fn neighbours_on_one_adapter_form_one_run() {
        let layout = SequenceLayout::from_cu_seqlens(&[0, 2, 3, 7])
            .unwrap()
            .with_adapters(&[Some(0), Some(0), None])
            .unwrap();
        assert_eq!(layout.adapter_rows(), [(0..3, Some(0)), (3..7, None)]);
    }

    #[test]
    fn senseless_borders_are_refused() {
        for borders in [&[][..], &[1, 2], &[0, 0], &[0, 3, 2]] {
            assert!(
                matches!(SequenceLayout::from_cu_seqlens(borders), Err(Error::Layout { .. })),
                "{borders:?}"
            );
        }
        assert!(SequenceLayout::continuing(&[(0, 3)]).is_err());
        assert!(SequenceLayout::from_cu_seqlens(&[0, 2]).unwrap().with_adapters(&[]).is_err());
    }
}
