//! Perplexity of a corpus.

use crate::{Error, Result};

/// Perplexity from a summed negative log-likelihood (natural logarithm).
///
/// `exp(total_nll / target_tokens)`: sum both over the whole corpus first. A mean of the perplexities or of the mean
/// losses of batches is another number wherever batches differ in length.
///
/// # Errors
/// [`Error::NoTargetTokens`] if there are none.
///
/// # Examples
/// Choosing evenly among 50 tokens:
/// ```
/// let perplexity = ferrotune_metrics::perplexity(3.0 * 50_f64.ln(), 3)?;
/// assert!((perplexity - 50.0).abs() < 1e-9);
/// # Ok::<(), ferrotune_metrics::Error>(())
/// ```
pub fn perplexity(total_nll: f64, target_tokens: usize) -> Result<f64> {
    if target_tokens == 0 {
        return Err(Error::NoTargetTokens);
    }
    Ok((total_nll / target_tokens as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_targets_are_an_error() {
        assert!(matches!(perplexity(0.0, 0), Err(Error::NoTargetTokens)));
    }
}
