//! Clipped n-gram overlap, the count that ROUGE-N, BLEU and chrF share.

use std::cmp::Ordering;

/// `sum over n-grams g of min(count of g in a, count of g in b)`.
pub(crate) fn clipped_matches<T: Ord>(a: &[T], b: &[T], order: usize) -> usize {
    let (a, b) = (sorted_ngrams(a, order), sorted_ngrams(b, order));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut matches = 0;
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        match left.cmp(right) {
            Ordering::Less => _ = a.next(),
            Ordering::Greater => _ = b.next(),
            Ordering::Equal => {
                matches += 1;
                _ = (a.next(), b.next());
            }
        }
    }
    matches
}

/// Number of n-grams in a sequence of this length.
pub(crate) fn ngram_count(length: usize, order: usize) -> usize {
    (length + 1).saturating_sub(order)
}

fn sorted_ngrams<T: Ord>(tokens: &[T], order: usize) -> Vec<&[T]> {
    let mut ngrams: Vec<&[T]> = tokens.windows(order).collect();
    ngrams.sort_unstable();
    ngrams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_count_as_often_as_both_sides_have_them() {
        assert_eq!(clipped_matches(b"aaab", b"aac", 1), 2);
        assert_eq!(clipped_matches(b"abab", b"babab", 2), 3);
        assert_eq!(clipped_matches(b"ab", b"ab", 3), 0);
        assert_eq!(ngram_count(2, 3), 0);
        assert_eq!(ngram_count(5, 3), 3);
    }
}
