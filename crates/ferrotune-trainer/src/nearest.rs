//! The nearest known name to a misspelt one.

/// The candidate that was probably meant by `name`.
///
/// That is the one with the smallest edit distance, if it is small enough to be a slip of the hand: at most a
/// third of the longer name's length; else one that holds `name` as whole words, as `lora_alpha` holds `alpha`.
/// The earliest candidate wins a tie.
///
/// ```
/// assert_eq!(ferrotune_trainer::nearest("lerning_rate", ["seed", "learning_rate"]), Some("learning_rate"));
/// ```
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names come from the user; the distance is quadratic in their length.
    if name.len() > 100 {
        return None;
    }
    let name = name.to_lowercase();
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let near = candidates
        .iter()
        .map(|candidate| (distance(&name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= name.chars().count().max(candidate.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate);
    let words = format!("_{name}_");
    near.or_else(|| candidates.into_iter().find(|candidate| format!("_{candidate}_").contains(&words)))
}

/// Edits between two names: insert, delete, replace or swap two neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = vec![];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let replace = last[j] + usize::from(a[i] != b[j]);
            row[j + 1] = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                row[j + 1] = row[j + 1].min(before_last[j - 1] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("seed", "sede"), 1);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn suggests_slips_and_nothing_far_fetched() {
        let known = ["learning_rate", "weight_decay", "r"];
        assert_eq!(nearest("learning_rat", known), Some("learning_rate"));
        assert_eq!(nearest("Learning_Rate", known), Some("learning_rate"));
        assert_eq!(nearest("lerning-rate", known), Some("learning_rate"));
        assert_eq!(nearest("decay", known), Some("weight_decay"));
        assert_eq!(nearest("rate", known), Some("learning_rate"));
        assert_eq!(nearest("ecay", known), None);
        assert_eq!(nearest("optimizer", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }
}
