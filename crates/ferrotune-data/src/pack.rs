//! Batches without padding: rows laid end to end.

use crate::{Source, Tokenized};

/// Several rows laid end to end, with the borders between them. There is no padding.
///
/// # Shapes
/// - `input_ids`, `position_ids`, `labels`: `[total_tokens]`
/// - `cu_seqlens`: `[rows + 1]`, from 0 to `total_tokens`; row `i` is `cu_seqlens[i]..cu_seqlens[i + 1]`
/// - `sources`: `[rows]`
///
/// `labels` stand beside their own token (unshifted, as Hugging Face has them); see [`PackedBatch::targets`].
///
/// # Examples
/// ```
/// use ferrotune_data::{PackedBatch, Source, Tokenized};
/// # let source = |line| Source { file: std::path::Path::new("train.jsonl").into(), line };
///
/// let a = Tokenized { input_ids: vec![5, 6, 7], labels: vec![-100, 6, 7], source: source(1) };
/// let b = Tokenized { input_ids: vec![8, 9], labels: vec![-100, 9], source: source(2) };
/// let batch = PackedBatch::pack(&[&a, &b]);
/// assert_eq!(batch.input_ids, [5, 6, 7, 8, 9]);
/// assert_eq!(batch.position_ids, [0, 1, 2, 0, 1]);
/// assert_eq!(batch.cu_seqlens, [0, 3, 5]);
/// let targets = batch.targets();
/// assert_eq!(targets.rows, [0, 1, 3]);
/// assert_eq!(targets.ids, [6, 7, 9]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// Position of each token within its row.
    pub position_ids: Vec<i64>,
    /// Borders of the rows.
    pub cu_seqlens: Vec<i64>,
    /// The token itself where it is a target, else -100.
    pub labels: Vec<i64>,
    /// Where each row came from.
    pub sources: Vec<Source>,
}

/// What a batch predicts: the hidden state at `rows[k]` predicts the token `ids[k]`, which stands one place further.
///
/// # Shapes
/// - `rows`, `ids`: `[targets]`; `rows` ascends
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Index into the tokens of the batch.
    pub rows: Vec<i64>,
    /// The token to predict there.
    pub ids: Vec<i64>,
}

impl PackedBatch {
    /// Lays rows end to end, in the order given. Nothing is dropped: a row without tokens stays as an empty row.
    pub fn pack(rows: &[&Tokenized]) -> Self {
        let total = rows.iter().map(|row| row.input_ids.len()).sum();
        let mut batch = Self {
            input_ids: Vec::with_capacity(total),
            position_ids: Vec::with_capacity(total),
            cu_seqlens: Vec::with_capacity(rows.len() + 1),
            labels: Vec::with_capacity(total),
            sources: Vec::with_capacity(rows.len()),
        };
        batch.cu_seqlens.push(0);
        for row in rows {
            batch.input_ids.extend(row.input_ids.iter().map(|id| i64::from(*id)));
            batch.position_ids.extend(0..row.input_ids.len() as i64);
            batch.labels.extend_from_slice(&row.labels);
            batch.cu_seqlens.push(batch.input_ids.len() as i64);
            batch.sources.push(row.source.clone());
        }
        batch
    }

    /// Number of tokens, prompts and completions.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// The targets, shifted: hidden row `t` predicts `labels[t + 1]`, within the same row. The first token of a row is
    /// never a target, for nothing stands before it.
    pub fn targets(&self) -> Targets {
        let mut targets = Targets::default();
        for t in self.target_positions() {
            targets.rows.push(t as i64 - 1);
            targets.ids.push(self.labels[t]);
        }
        targets
    }

    /// How many targets [`targets`](Self::targets) has.
    pub fn target_tokens(&self) -> usize {
        self.target_positions().count()
    }

    /// Places whose label is a target and that have a token before them in their row.
    fn target_positions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.labels.len()).filter(|t| self.labels[*t] != crate::IGNORE && self.position_ids[*t] > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn row(line: usize, tokens: &[(u32, bool)]) -> Tokenized {
        Tokenized {
            input_ids: tokens.iter().map(|(id, _)| *id).collect(),
            labels: tokens.iter().map(|(id, on)| if *on { i64::from(*id) } else { crate::IGNORE }).collect(),
            source: Source { file: Path::new("x").into(), line },
        }
    }

    #[test]
    fn the_first_token_of_a_row_is_never_a_target() {
        let (a, b) = (row(1, &[(1, true), (2, true)]), row(2, &[(3, true), (4, false), (5, true)]));
        let batch = PackedBatch::pack(&[&a, &b]);
        assert_eq!(batch.targets(), Targets { rows: vec![0, 3], ids: vec![2, 5] });
        assert_eq!(batch.target_tokens(), 2);
    }

    proptest! {
        #[test]
        fn neither_drops_nor_invents_tokens(
            rows in proptest::collection::vec(proptest::collection::vec((0u32..50_000, any::<bool>()), 0..20), 0..8)
        ) {
            let rows: Vec<Tokenized> = rows.iter().enumerate().map(|(line, tokens)| row(line, tokens)).collect();
            let batch = PackedBatch::pack(&rows.iter().collect::<Vec<_>>());
            prop_assert_eq!(batch.cu_seqlens.len(), rows.len() + 1);
            prop_assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.tokens());
            for (i, row) in rows.iter().enumerate() {
                let range = batch.cu_seqlens[i] as usize..batch.cu_seqlens[i + 1] as usize;
                let ids: Vec<i64> = row.input_ids.iter().map(|id| i64::from(*id)).collect();
                prop_assert_eq!(&batch.input_ids[range.clone()], &ids[..]);
                prop_assert_eq!(&batch.labels[range.clone()], &row.labels[..]);
                prop_assert_eq!(&batch.position_ids[range], &(0..ids.len() as i64).collect::<Vec<_>>()[..]);
                prop_assert_eq!(&batch.sources[i], &row.source);
            }
        }

        #[test]
        fn targets_stay_within_their_row(
            rows in proptest::collection::vec(proptest::collection::vec((0u32..50_000, any::<bool>()), 0..20), 0..8)
        ) {
            let rows: Vec<Tokenized> = rows.iter().enumerate().map(|(line, tokens)| row(line, tokens)).collect();
            let batch = PackedBatch::pack(&rows.iter().collect::<Vec<_>>());
            let targets = batch.targets();
            let expected: usize = rows.iter().map(Tokenized::target_tokens).sum();
            prop_assert_eq!(targets.rows.len(), expected);
            prop_assert_eq!(batch.target_tokens(), expected);
            for (t, id) in targets.rows.iter().zip(&targets.ids) {
                prop_assert_eq!(batch.input_ids[*t as usize + 1], *id);
                prop_assert!(!batch.cu_seqlens.contains(&(t + 1)), "crosses a border");
            }
        }
    }
}
