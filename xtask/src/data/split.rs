//! Which split a group of examples belongs to: a function of its name alone, so that no group is in two.

use crate::digest;

/// Share of the groups in per cent, in the order of the file names.
const SHARES: [(&str, u64); 4] = [("train", 80), ("validation", 6), ("test", 8), ("reserve", 6)];

/// Names of the splits, in order.
pub fn names() -> [&'static str; 4] {
    SHARES.map(|(name, _)| name)
}

/// The split of a group (a crate, or a file of one's own workspace).
pub fn of(group: &str) -> &'static str {
    let mut place = digest::number(&format!("split {group}")) % 100;
    for (name, share) in SHARES {
        if place < share {
            return name;
        }
        place -= share;
    }
    SHARES[0].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met_and_stable() {
        assert_eq!(SHARES.iter().map(|(_, share)| share).sum::<u64>(), 100);
        let groups: Vec<String> = (0..10_000).map(|i| format!("crate-{i}")).collect();
        for (name, share) in SHARES {
            let count = groups.iter().filter(|group| of(group) == name).count() as f64 / 100.0;
            assert!((count - share as f64).abs() < 1.0, "{name}: {count}");
        }
        assert_eq!(of("serde"), of("serde"));
    }
}
