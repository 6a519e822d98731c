//! Some queries with some keys.

use super::{Heads, LANES, Task};
use crate::cpu::product::{
    Matrix, Rows, Term,
    panel::{WIDTH, pack},
    tile,
    vector::Vector,
};
use std::ops::Range;
use std::ptr::NonNull;

/// Queries of a block.
pub(super) const QUERIES: usize = 96;
/// Keys of a block, a whole number of panels; with the queries they fill a seventh of a megabyte.
pub(super) const KEYS: usize = 8 * WIDTH;
/// Queries or keys for which what is not seen is left out of a product.
pub(super) const STEP: usize = 16;

/// Queries and keys of a block, counted within their sequence.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Block {
    /// The blocks of some queries.
    pub(super) fn all(queries: Range<usize>, window: usize) -> impl Iterator<Item = Self> {
        // From the beginning of a panel.
        let first = (queries.start + 1).saturating_sub(window) / WIDTH * WIDTH;
        (first..queries.end)
            .step_by(KEYS)
            .map(move |start| Self { queries: queries.clone(), keys: start..(start + KEYS).min(queries.end) })
    }

    /// What a query sees of the keys, counted from the first of them.
    #[inline(always)]
    pub(super) fn seen(&self, query: usize, window: usize) -> Range<usize> {
        let position = self.queries.start + query;
        let end = (position + 1).saturating_sub(self.keys.start).min(self.keys.len());
        let start = (position + 1).saturating_sub(window).saturating_sub(self.keys.start);
        start.min(end)..end
    }

    /// Keys that any of [`STEP`] queries from `query` on may see, be it by their order alone.
    #[inline(always)]
    pub(super) fn depth(&self, query: usize) -> usize {
        (self.queries.start + query + STEP).saturating_sub(self.keys.start).min(self.keys.len())
    }

    /// `left keys^T` into the rows of `scores`, for the queries that may see a panel of keys: what was left elsewhere is of no meaning.
    ///
    /// # Safety
    /// `left` are rows of the queries, `copy` a copy of a head of the sequence (see [`copy`]), `scores` `QUERIES * KEYS` numbers.
    #[inline(always)]
    pub(super) unsafe fn products<V: Vector>(
        &self,
        left: *const f32,
        left_row_stride: usize,
        copy: *const f32,
        head_dim: usize,
        scores: *mut f32,
    ) {
        for first in (0..self.keys.len()).step_by(WIDTH) {
            let key = self.keys.start + first;
            let width = (self.keys.len() - first).min(WIDTH).next_multiple_of(LANES);
            let mut row = key.saturating_sub(self.queries.start);
            // The first queries that may see the panel see a step more of it each.
            let mut columns = if key < self.queries.start { width } else { STEP };
            while row < self.queries.len() {
                let rest = self.queries.len() - row;
                let rows = if columns < width { STEP.min(rest) } else { rest };
                // SAFETY: rows of the block's queries, and a panel of the copy; `columns` numbers of scores are there, KEYS being a
                // multiple of the panel's width.
                unsafe {
                    multiply::<V>(&Rows {
                        rows,
                        columns,
                        depth: head_dim,
                        left: left.add(row * left_row_stride),
                        left_row_stride,
                        left_depth_stride: 1,
                        panel: copy.add(key * head_dim),
                        panel_stride: WIDTH,
                        target: scores.add(row * KEYS + first),
                        target_row_stride: KEYS,
                        add: false,
                    });
                }
                row += rows;
                columns = (columns + STEP).min(width);
            }
        }
    }
}

/// Copies a head of some tokens, times `scale`: panels of [`WIDTH`] tokens, in each the tokens' first numbers side by side, then their
/// second ones.
///
/// # Safety
/// The tokens and the head exist; `copy` has room for whole panels; the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn copy<V: Vector>(
    x: &Heads,
    tokens: Range<usize>,
    head: usize,
    scale: f32,
    copy: &mut [f32],
) {
    // SAFETY: numbers of the head are dense, those of tokens `token_stride` apart.
    unsafe {
        let start = NonNull::new_unchecked(x.at(tokens.start, head));
        let matrix = Matrix::at(start, [x.head_dim, tokens.len()], [1, x.token_stride]);
        let terms = [Term { scale, ..Term::new(matrix, matrix) }];
        let panels = copy.chunks_exact_mut(WIDTH * x.head_dim).take(tokens.len().div_ceil(WIDTH));
        for (index, panel) in panels.enumerate() {
            pack::<V>(&terms, 0..x.head_dim, index * WIDTH..(index + 1) * WIDTH, panel);
        }
    }
}

/// A product in which columns are a multiple of [`LANES`], whatever is behind them.
///
/// # Safety
/// As [`tile::rows`].
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(block: &Rows) {
    let mut column = 0;
    while column < block.columns {
        let registers = ((block.columns - column) / LANES).min(4);
        // SAFETY: columns of the block.
        unsafe {
            let part = Rows {
                columns: registers * LANES,
                panel: block.panel.add(column),
                target: block.target.add(column),
                ..*block
            };
            match (V::LANES, registers) {
                (LANES, 1) => tile::rows::<V, 8, 1>(&part),
                (LANES, 2) => tile::rows::<V, 8, 2>(&part),
                (LANES, 3) => tile::rows::<V, 8, 3>(&part),
                (LANES, _) => tile::rows::<V, 6, 4>(&part),
                _ => tile::rows::<V, 6, 2>(&part),
            }
        }
        column += registers * LANES;
    }
}

impl Task {
    /// Its blocks of queries.
    pub(super) fn queries(&self) -> impl Iterator<Item = Range<usize>> {
        let tokens = self.tokens.len();
        (0..tokens).step_by(QUERIES).map(move |start| start..(start + QUERIES).min(tokens))
    }
}
