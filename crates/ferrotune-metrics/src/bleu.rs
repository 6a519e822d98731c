//! Corpus BLEU, equal to sacrebleu's `corpus_bleu` with its defaults (13a tokens, case kept, `exp` smoothing).
//!
//! `BLEU = BP exp(mean over n = 1..4 of ln p_n)`: `p_n` is the share of the predictions' n-grams, over all examples, that
//! their references have; `BP = exp(1 - r / c)` if the predictions' `c` tokens are fewer than the references' `r`, else 1.
//!
//! # References
//! Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Post 2018, "A call for clarity in
//! reporting BLEU scores"; `sacrebleu.metrics.bleu`, `sacrebleu.tokenizers.tokenizer_13a` 2.6.0.

use crate::overlap::{clipped_matches, ngram_count};
use crate::python::is_space;

/// Longest n-grams that count.
const MAX_ORDER: usize = 4;

/// Tokens of the predictions and of the references, then matching and all n-grams of the predictions by order.
pub(crate) type Statistics = [f64; 2 + 2 * MAX_ORDER];

/// What an example adds to the sums.
pub(crate) fn statistics(reference: &str, prediction: &str) -> Statistics {
    let (reference, prediction) = (separate(reference), separate(prediction));
    let reference: Vec<&str> = tokens(&reference).collect();
    let prediction: Vec<&str> = tokens(&prediction).collect();
    let mut statistics = [0.0; 2 + 2 * MAX_ORDER];
    statistics[0] = prediction.len() as f64;
    statistics[1] = reference.len() as f64;
    for order in 1..=MAX_ORDER {
        statistics[1 + order] = clipped_matches(&reference, &prediction, order) as f64;
        statistics[1 + MAX_ORDER + order] = ngram_count(prediction.len(), order) as f64;
    }
    statistics
}

/// BLEU times 100, from the sums over a corpus.
pub(crate) fn score(sums: &Statistics) -> f64 {
    let [predicted, expected, counts @ ..] = sums;
    let (matches, totals) = counts.split_at(MAX_ORDER);
    // Also where there are no predicted tokens at all.
    if matches.iter().all(|&count| count == 0.0) {
        return 0.0;
    }
    let brevity_penalty = if predicted < expected { (1.0 - expected / predicted).exp() } else { 1.0 };
    let mut halvings = 1.0;
    let mut log_precisions = 0.0;
    for (&matches, &total) in matches.iter().zip(totals) {
        // No prediction is long enough for this order: BLEU counts as 0.
        if total == 0.0 {
            return 0.0;
        }
        // Smoothing: the k-th order without a match counts as 1 / 2^k of a match.
        let matches = if matches == 0.0 {
            halvings *= 2.0;
            1.0 / halvings
        } else {
            matches
        };
        log_precisions += (100.0 * matches / total).ln();
    }
    brevity_penalty * (log_precisions / MAX_ORDER as f64).exp()
}

fn tokens(separated: &str) -> impl Iterator<Item = &str> {
    separated.split(is_space).filter(|token| !token.is_empty())
}

/// Puts spaces where the 13a tokenizer separates.
fn separate(text: &str) -> String {
    let mut text =
        text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let mut spaced = String::with_capacity(text.len() + text.len() / 4);
    spaced.push(' ');
    for character in text.chars() {
        if is_symbol(character) {
            spaced.extend([' ', character, ' ']);
        } else {
            spaced.push(character);
        }
    }
    spaced.push(' ');
    let stop_or_comma = |character| matches!(character, '.' | ',');
    let digit = |character: char| character.is_ascii_digit();
    let spaced = rewrite_pairs(&spaced, |a, b| !digit(a) && stop_or_comma(b), |a, b| [a, ' ', b, ' ']);
    let spaced = rewrite_pairs(&spaced, |a, b| stop_or_comma(a) && !digit(b), |a, b| [' ', a, ' ', b]);
    rewrite_pairs(&spaced, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' '])
}

/// ASCII punctuation but apostrophe, comma, hyphen and full stop; and the space.
fn is_symbol(character: char) -> bool {
    matches!(character, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/')
}

/// Rewrites pairs of neighbours from left to right; a character belongs to one pair at most, as in a regular expression.
fn rewrite_pairs(
    text: &str,
    matches: impl Fn(char, char) -> bool,
    rewrite: impl Fn(char, char) -> [char; 4],
) -> String {
    let mut rewritten = String::with_capacity(text.len() + text.len() / 4);
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        match characters.next_if(|&second| matches(first, second)) {
            Some(second) => rewritten.extend(rewrite(first, second)),
            None => rewritten.push(first),
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenized(text: &str) -> String {
        tokens(&separate(text)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn numbers_keep_their_points_and_words_do_not() {
        assert_eq!(tokenized("It's 3.5-fold, e.g. 1,000"), "It's 3.5 - fold , e . g . 1,000");
        assert_eq!(tokenized("a.,.b"), "a . , . b");
        assert_eq!(tokenized("&quot;x&amp;lt;y&quot; (z)/w"), "\" x < y \" ( z ) / w");
        assert_eq!(tokenized("well-\nknown<skipped>\nend \u{1F}\n"), "wellknown end");
    }

    #[test]
    fn predictions_too_short_for_four_grams_score_0() {
        assert_eq!(score(&statistics("hello world", "hello world")), 0.0);
        assert_eq!(score(&statistics("a b c d", "")), 0.0);
        assert!((score(&statistics("a b c d", "a b c d")) - 100.0).abs() < 1e-9);
    }
}
