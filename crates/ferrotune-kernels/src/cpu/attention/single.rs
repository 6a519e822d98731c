//! Attention of a single token over a cache, as in decoding: each key and value is met once, where it lies.

use super::{
    Inputs, Task,
    block::multiply,
    forward::{Forward, weigh},
};
use crate::{
    cached_attention::Sequence,
    cpu::{
        LANES, largest,
        product::{Few, Rows, right_rows::DenseRows, tile, vector::Vector},
    },
};
use std::ops::Range;

/// Numbers of scratch for `heads` heads of queries that see `tokens` tokens.
pub(super) fn room(tokens: usize, heads: usize) -> usize {
    heads * tokens.next_multiple_of(LANES)
}

/// Writes the attention of the task's heads.
///
/// # Safety
/// The sequence's one new token, its rows and the heads exist, and no other task writes its part of the result; the machine has the
/// instructions of `V`; scratch has [`room`] for them.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector>(
    Forward { inputs, output, .. }: &Forward,
    sequence: &Sequence,
    task: &Task,
    scratch: &mut [f32],
) {
    let Inputs { q, k: cache, scale, window, .. } = inputs;
    let (token, first, heads) = (sequence.tokens.start, task.heads.start, task.heads.len());
    let unseen = sequence.len().saturating_sub(*window);
    let seen = sequence.len() - unseen;
    let width = seen.next_multiple_of(LANES);
    let scores = &mut scratch[..heads * width];
    // SAFETY: as the caller says; pieces are rows of the cache, and there is a place in the scores for each of these.
    unsafe {
        for (place, rows) in pieces(&sequence.rows, unseen) {
            tile::few::<V>(
                &Few {
                    rows: heads,
                    columns: rows.len(),
                    depth: q.head_dim,
                    left: q.at(token, first),
                    left_row_stride: q.head_stride,
                    target: scores.as_mut_ptr().add(place),
                    target_row_stride: width,
                    scale: *scale,
                    add: false,
                },
                DenseRows { start: cache.at(rows.start, task.kv_head), stride: cache.token_stride },
            );
        }
        for scores in scores.chunks_exact_mut(width) {
            scores[seen..].fill(f32::NEG_INFINITY);
            let sum = weigh(scores, largest(scores));
            scores.iter_mut().for_each(|weight| *weight /= sum);
        }
        for (place, rows) in pieces(&sequence.rows, unseen) {
            multiply::<V>(&Rows {
                rows: heads,
                columns: q.head_dim,
                depth: rows.len(),
                left: scores.as_ptr().add(place),
                left_row_stride: width,
                left_depth_stride: 1,
                panel: cache.at(rows.start, cache.heads / 2 + task.kv_head),
                panel_stride: cache.token_stride,
                target: output.at(token, first),
                target_row_stride: output.head_stride,
                add: place > 0,
            });
        }
    }
}

/// The pieces of the rows after the first `unseen`, each with the number of those that are seen before it.
fn pieces(rows: &[Range<usize>], unseen: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut passed = 0;
    rows.iter().filter_map(move |rows| {
        let skipped = unseen.saturating_sub(passed).min(rows.len());
        let place = (passed + skipped).saturating_sub(unseen);
        passed += rows.len();
        (skipped < rows.len()).then(|| (place, rows.start + skipped..rows.end))
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_from_the_first_row_that_is_seen() {
        let of = |rows: &[Range<usize>], unseen| Vec::from_iter(pieces(rows, unseen));
        let rows = [10..13, 40..41, 5..9];
        assert_eq!(of(&rows, 0), [(0, 10..13), (3, 40..41), (4, 5..9)]);
        assert_eq!(of(&rows, 2), [(0, 12..13), (1, 40..41), (2, 5..9)]);
        assert_eq!(of(&rows, 3), [(0, 40..41), (1, 5..9)]);
        assert_eq!(of(&rows, 7), [(0, 8..9)]);
        assert_eq!(of(&[0..1], 0), [(0, 0..1)]);
    }
}
