//! Longest common subsequence of two token sequences, 64 table cells to a machine operation.
//!
//! Neighbouring cells in a row of the table `t[i][j] = LCS(reference[..i], prediction[..j])` differ by 0 or 1, so a row is
//! kept as one bit a column: 0 where it grows. With `M` the columns that hold the current reference token, the next row is
//! `(V + (V & M)) | (V & !M)`, the sum carried from word to word, and `t[i][j]` is the number of zeros in the first `j` bits.
//!
//! # References
//! Hyyrö 2004, "Bit-parallel LCS-length computation revisited"; `rouge_score.rouge_scorer` for which of several longest
//! subsequences counts.

/// Length of the longest common subsequence, in linear memory.
pub(super) fn length(reference: &[u32], prediction: &[u32]) -> usize {
    let mut table = Table::new(prediction);
    let mut row = table.first_row();
    for &token in reference {
        table.advance(&mut row, token);
    }
    grown(&row, prediction.len())
}

/// Marks in `hits` the reference tokens of that longest common subsequence which rouge-score reads out of its table.
///
/// It walks back from the end: equal tokens are taken; else it gives up the prediction token only if that keeps strictly
/// more of the subsequence than giving up the reference token. Only every `sqrt(rows)`-th row is stored, and the rows
/// between are computed again when the walk gets there, so that two long texts cannot exhaust the memory.
pub(super) fn mark(reference: &[u32], prediction: &[u32], hits: &mut [bool]) {
    let mut table = Table::new(prediction);
    let words = table.matches.len();
    let stride = reference.len().isqrt().max(1);
    let mut row = table.first_row();
    let mut stored = Vec::new();
    for block in reference.chunks(stride) {
        stored.extend_from_slice(&row);
        block.iter().for_each(|&token| table.advance(&mut row, token));
    }
    let mut rows = Vec::with_capacity((stride + 1) * words);
    let mut column = prediction.len();
    for (index, block) in reference.chunks(stride).enumerate().rev() {
        row.copy_from_slice(&stored[index * words..][..words]);
        rows.clear();
        rows.extend_from_slice(&row);
        for &token in block {
            table.advance(&mut row, token);
            rows.extend_from_slice(&row);
        }
        let cell = |row: usize, column| grown(&rows[row * words..][..words], column);
        let mut i = block.len();
        while i > 0 && column > 0 {
            if block[i - 1] == prediction[column - 1] {
                hits[index * stride + i - 1] = true;
                i -= 1;
                column -= 1;
            } else if cell(i, column - 1) > cell(i - 1, column) {
                column -= 1;
            } else {
                i -= 1;
            }
        }
    }
}

/// The columns of the table: where each token stands in the prediction.
struct Table {
    /// (token, column), sorted.
    places: Vec<(u32, usize)>,
    /// `M`; all zero between two calls of [`Table::advance`].
    matches: Vec<u64>,
}

impl Table {
    fn new(prediction: &[u32]) -> Self {
        let mut places: Vec<_> = prediction.iter().copied().zip(0..).collect();
        places.sort_unstable();
        Self { places, matches: vec![0; prediction.len().div_ceil(64)] }
    }

    fn first_row(&self) -> Vec<u64> {
        vec![u64::MAX; self.matches.len()]
    }

    fn advance(&mut self, row: &mut [u64], token: u32) {
        let from = self.places.partition_point(|&(other, _)| other < token);
        let places = self.places[from..].iter().take_while(|&&(other, _)| other == token);
        for &(_, column) in places.clone() {
            self.matches[column / 64] |= 1 << (column % 64);
        }
        let mut carry = false;
        for (bits, matches) in row.iter_mut().zip(&self.matches) {
            let (sum, first) = bits.overflowing_add(*bits & matches);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first | second;
            *bits = sum | (*bits & !matches);
        }
        for &(_, column) in places {
            self.matches[column / 64] = 0;
        }
    }
}

/// `t[i][column]` from row `i`: how many of its first `column` bits are zero.
fn grown(row: &[u64], column: usize) -> usize {
    let whole: u32 = row[..column / 64].iter().map(|word| word.count_zeros()).sum();
    let rest = row.get(column / 64).map_or(0, |word| (!word & ((1 << (column % 64)) - 1)).count_ones());
    (whole + rest) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The textbook table and the walk back through it.
    fn by_table(reference: &[u32], prediction: &[u32]) -> (usize, Vec<bool>) {
        let mut t = vec![vec![0; prediction.len() + 1]; reference.len() + 1];
        for (i, a) in reference.iter().enumerate() {
            for (j, b) in prediction.iter().enumerate() {
                t[i + 1][j + 1] = if a == b { t[i][j] + 1 } else { t[i][j + 1].max(t[i + 1][j]) };
            }
        }
        let (mut i, mut j) = (reference.len(), prediction.len());
        let length = t[i][j];
        let mut hits = vec![false; i];
        while i > 0 && j > 0 {
            if reference[i - 1] == prediction[j - 1] {
                (i, j) = (i - 1, j - 1);
                hits[i] = true;
            } else if t[i][j - 1] > t[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        (length, hits)
    }

    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        (1_u32..9).prop_flat_map(|vocabulary| prop::collection::vec(0..vocabulary, 0..200))
    }

    proptest! {
        #[test]
        fn bits_equal_the_table(reference in tokens(), prediction in tokens()) {
            let (expected_length, expected_hits) = by_table(&reference, &prediction);
            prop_assert_eq!(length(&reference, &prediction), expected_length);
            let mut hits = vec![false; reference.len()];
            mark(&reference, &prediction, &mut hits);
            prop_assert_eq!(hits, expected_hits);
        }
    }
}
