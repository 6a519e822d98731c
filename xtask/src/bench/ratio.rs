//! The time of a variant by that of the reference in its own comparison.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use super::estimates::Estimate;
use crate::peers::BadInput;

/// Variants that others are measured by.
const REFERENCES: [&str; 2] = ["libtorch", "frozen"];

/// A time by another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub value: f64,
    /// Half of its interval, by the value.
    pub noise: f64,
}

/// The parts of `kernel/pass/variant/shape`: what is compared, and by which variant.
fn parts(name: &str) -> Option<([&str; 3], &str)> {
    let mut parts = name.splitn(4, '/');
    let (kernel, pass, variant, shape) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(([kernel, pass, shape], variant))
}

/// The ratio of each variant to the reference of its comparison, by name.
///
/// # Errors
/// [`BadInput`] names what has no reference, or is not named as benchmarks are.
pub fn all(estimates: &[Estimate]) -> Result<BTreeMap<String, Ratio>> {
    let mut references = BTreeMap::new();
    let mut others = Vec::new();
    for estimate in estimates {
        let (comparison, variant) = parts(&estimate.name).ok_or_else(|| {
            bad(format!("the benchmark {:?} is not named kernel/pass/variant/shape", estimate.name))
        })?;
        if REFERENCES.contains(&variant) {
            references.insert(comparison, estimate);
        } else {
            others.push((comparison, estimate));
        }
    }
    let ratio = |(comparison, estimate): ([&str; 3], &Estimate)| {
        let reference = references.get(&comparison).ok_or_else(|| {
            let [kernel, pass, shape] = comparison;
            bad(format!(
                "{} was measured without a reference ({}): let the filter leave it in, such as '{kernel}/{pass}/.*/{shape}'",
                estimate.name,
                REFERENCES.join(" or "),
            ))
        })?;
        let ratio = Ratio {
            value: estimate.median / reference.median,
            // The two were measured one after the other, so their errors are independent.
            noise: estimate.noise.hypot(reference.noise),
        };
        Ok((estimate.name.clone(), ratio))
    };
    others.into_iter().map(ratio).collect()
}

/// The ratios of several rounds: of each its median, with a noise that covers what the rounds found.
///
/// Within a round criterion sees the noise of a second. What else a machine does, or the host of a virtual one, changes more slowly.
pub fn of_rounds(rounds: &[BTreeMap<String, Ratio>]) -> BTreeMap<String, Ratio> {
    let names = rounds.iter().flat_map(BTreeMap::keys);
    let over_rounds = |name: &String| {
        let mut found: Vec<Ratio> = rounds.iter().filter_map(|round| round.get(name).copied()).collect();
        found.sort_by(|a, b| a.value.total_cmp(&b.value));
        let value = (found[(found.len() - 1) / 2].value + found[found.len() / 2].value) / 2.0;
        let spread = (found[found.len() - 1].value - found[0].value) / 2.0 / value;
        let noise = found.iter().map(|ratio| ratio.noise).fold(spread, f64::max);
        (name.clone(), Ratio { value, noise })
    };
    names.map(over_rounds).collect()
}

/// A line for each ratio.
pub fn table(ratios: &BTreeMap<String, Ratio>) -> String {
    let width = ratios.keys().map(String::len).max().unwrap_or(0);
    let mut text = format!("{:width$}  ratio  noise\n", "benchmark");
    for (name, Ratio { value, noise }) in ratios {
        let _ = writeln!(text, "{name:width$}  {value:5.2}  ±{:.1} %", noise * 100.0);
    }
    text
}

fn bad(text: String) -> anyhow::Error {
    anyhow!(BadInput(text))
}

#[cfg(test)]
mod tests {
    use super::super::estimates;
    use super::*;

    fn estimate(name: &str, median: f64, noise: f64) -> Estimate {
        Estimate { name: name.into(), median, noise }
    }

    #[test]
    fn rounds_have_a_median_and_the_noise_of_the_noisiest_or_of_their_spread() {
        let round = |a, b, noise| {
            [("a", a), ("b", b)].map(|(name, value)| (name.to_owned(), Ratio { value, noise })).into()
        };
        let found = of_rounds(&[round(1.2, 2.0, 0.02), round(1.0, 2.02, 0.05), round(0.8, 1.98, 0.01)]);
        assert_eq!(found["a"].value, 1.0);
        assert!((found["a"].noise - 0.2).abs() < 1e-12, "{found:?}");
        assert_eq!(found["b"], Ratio { value: 2.0, noise: 0.05 });
    }

    #[test]
    fn each_variant_is_held_to_the_reference_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("lora_linear/forward/ours/576x576/r16", 110.0, 3.3),
            ("lora_linear/forward/peft_order/576x576/r16", 150.0, 0.0),
            ("lora_linear/forward/frozen/576x576/r16", 100.0, 4.0),
            ("lora_linear/forward/frozen/576x576/r8", 1.0, 0.0),
            ("swiglu/forward/ours/512x1536", 3.0, 0.0),
            ("swiglu/forward/libtorch/512x1536", 6.0, 0.0),
        ];
        for (name, median, half) in files {
            estimates::tests::write(folder.path(), name, median, half);
        }
        let ratios = all(&estimates::read(folder.path()).unwrap()).unwrap();
        assert_eq!(ratios.len(), 3);
        let lora = ratios["lora_linear/forward/ours/576x576/r16"];
        assert!((lora.value - 1.1).abs() < 1e-12);
        assert!((lora.noise - 0.05).abs() < 1e-12, "{lora:?}");
        assert_eq!(ratios["lora_linear/forward/peft_order/576x576/r16"].value, 1.5);
        assert_eq!(ratios["swiglu/forward/ours/512x1536"], Ratio { value: 0.5, noise: 0.0 });
        assert!(table(&ratios).contains("swiglu/forward/ours/512x1536 "));
    }

    #[test]
    fn a_missing_reference_is_bad_input() {
        let error = all(&[estimate("swiglu/forward/ours/512x1536", 1.0, 0.0)]).unwrap_err();
        assert!(error.is::<BadInput>());
        assert!(error.to_string().contains("'swiglu/forward/.*/512x1536'"), "{error}");
        let error = all(&[estimate("swiglu/forward", 1.0, 0.0)]).unwrap_err();
        assert!(error.is::<BadInput>());
    }
}
