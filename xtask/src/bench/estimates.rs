//! What criterion wrote: for each benchmark a folder `new` with its name and the estimates of its time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::peers::BadInput;

/// The time of one benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// `kernel/pass/variant/shape`
    pub name: String,
    /// Nanoseconds.
    pub median: f64,
    /// Half of the 95 % interval of the median, by the median.
    pub noise: f64,
}

/// All estimates below a folder, sorted by name.
///
/// # Errors
/// [`BadInput`] names the file that cannot be used and what is wrong with it.
pub fn read(folder: &Path) -> Result<Vec<Estimate>> {
    let mut estimates = Vec::new();
    collect(folder, &mut estimates)?;
    estimates.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(estimates)
}

fn collect(folder: &Path, estimates: &mut Vec<Estimate>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "new") {
            estimates.push(estimate(&path)?);
        } else if path.is_dir() {
            collect(&path, estimates)?;
        }
    }
    Ok(())
}

fn estimate(folder: &Path) -> Result<Estimate> {
    let (path, benchmark) = json(folder, "benchmark.json")?;
    let name = benchmark["full_id"].as_str().ok_or_else(|| bad(&path, "has no `full_id`"))?;
    let (path, estimates) = json(folder, "estimates.json")?;
    let number = |pointer: &str| {
        let number = estimates.pointer(pointer).and_then(Value::as_f64).filter(|number| *number > 0.0);
        number.ok_or_else(|| bad(&path, &format!("has no positive number at `{pointer}`")))
    };
    let median = number("/median/point_estimate")?;
    let lower = number("/median/confidence_interval/lower_bound")?;
    let upper = number("/median/confidence_interval/upper_bound")?;
    Ok(Estimate { name: name.to_owned(), median, noise: (upper - lower) / 2.0 / median })
}

fn json(folder: &Path, name: &str) -> Result<(std::path::PathBuf, Value)> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).map_err(|error| bad(&path, &format!("cannot be read: {error}")))?;
    let value = serde_json::from_str(&text).map_err(|error| bad(&path, &format!("is no JSON: {error}")))?;
    Ok((path, value))
}

fn bad(path: &Path, what: &str) -> anyhow::Error {
    anyhow!(BadInput(format!("{} {what}: run the benchmarks again", path.display())))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What criterion would have written.
    pub fn write(folder: &Path, name: &str, median: f64, half: f64) {
        let folder = folder.join(name.replace('/', "_")).join("new");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("benchmark.json"), format!(r#"{{"full_id": "{name}"}}"#)).unwrap();
        let (lower, upper) = (median - half, median + half);
        let estimates = format!(
            r#"{{"median": {{"confidence_interval": {{"lower_bound": {lower}, "upper_bound": {upper}}}, "point_estimate": {median}}}}}"#
        );
        fs::write(folder.join("estimates.json"), estimates).unwrap();
    }

    #[test]
    fn all_benchmarks_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "rms_norm/forward/ours/512x576", 50.0, 5.0);
        write(&folder.path().join("deeper"), "a/b/c/d/e", 1.0, 0.0);
        let estimates = read(folder.path()).unwrap();
        assert_eq!(estimates[0], Estimate { name: "a/b/c/d/e".into(), median: 1.0, noise: 0.0 });
        assert_eq!(estimates[1].name, "rms_norm/forward/ours/512x576");
        assert!((estimates[1].noise - 0.1).abs() < 1e-12);
        assert!(read(&folder.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a/b/c/d", 1.0, 0.0);
        let file = folder.path().join("a_b_c_d/new/estimates.json");
        for (text, expected) in [
            ("{", "is no JSON: EOF while parsing an object at line 1 column 1"),
            ("{}", "no positive number at `/median/point_estimate`"),
            (r#"{"median": {"point_estimate": 0}}"#, "no positive number at `/median/point_estimate`"),
            (r#"{"median": {"point_estimate": 1}}"#, "`/median/confidence_interval/lower_bound`"),
        ] {
            fs::write(&file, text).unwrap();
            let error = read(folder.path()).unwrap_err();
            assert!(error.is::<BadInput>());
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.to_string().contains("estimates.json"), "{error}");
        }
        fs::remove_file(&file).unwrap();
        assert!(read(folder.path()).unwrap_err().is::<BadInput>());
    }
}
