//! Ratios in a file, with the machine that they were taken on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::ratio::Ratio;
use crate::peers::BadInput;

/// Ratios of one run.
#[derive(Debug, PartialEq)]
pub struct Baseline {
    /// What a ratio depends on, and the date.
    pub machine: BTreeMap<String, String>,
    /// By the name of the benchmark.
    pub ratios: BTreeMap<String, Ratio>,
}

impl Baseline {
    /// # Errors
    /// [`BadInput`] if the file is not there, is no JSON or has other fields.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| {
            anyhow!(BadInput(format!("{} {what}: `cargo xtask bench --save` writes it", path.display())))
        };
        let text = fs::read_to_string(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|error| bad(format!("is no JSON: {error}")))?;
        let object = |key: &str| value[key].as_object().ok_or_else(|| bad(format!("has no object `{key}`")));
        let machine = object("machine")?
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().map_or(value.to_string(), str::to_owned)))
            .collect();
        let ratio = |(name, entry): (&String, &Value)| {
            let number =
                |key: &str| entry[key].as_f64().filter(|number| number.is_finite() && *number >= 0.0);
            match (number("ratio").filter(|ratio| *ratio > 0.0), number("noise")) {
                (Some(value), Some(noise)) => Ok((name.clone(), Ratio { value, noise })),
                _ => Err(bad(format!(
                    "has at `ratios` under {name:?} no positive `ratio` and `noise` but {entry}"
                ))),
            }
        };
        let ratios = object("ratios")?.iter().map(ratio).collect::<Result<_>>()?;
        Ok(Self { machine, ratios })
    }

    /// JSON with one ratio on a line, so that a change of the file reads well.
    pub fn text(&self) -> String {
        let lines = |lines: Vec<String>| lines.join(",\n    ");
        let machine = self.machine.iter().map(|(name, value)| format!("{}: {}", json!(name), json!(value)));
        let ratios = self.ratios.iter().map(|(name, Ratio { value, noise })| {
            format!("{}: {{ \"ratio\": {value:.4}, \"noise\": {noise:.4} }}", json!(name))
        });
        format!(
            "{{\n  \"machine\": {{\n    {}\n  }},\n  \"ratios\": {{\n    {}\n  }}\n}}\n",
            lines(machine.collect()),
            lines(ratios.collect()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let baseline = Baseline {
            machine: [("cpu".into(), "has avx2 \"and\" more".into()), ("date".into(), "2026-01-02".into())]
                .into(),
            ratios: [
                ("a/b/ours/c".into(), Ratio { value: 1.25, noise: 0.0125 }),
                ("a/b/peft_order/c".into(), Ratio { value: 0.5, noise: 0.0 }),
            ]
            .into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        fs::write(&path, baseline.text()).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline);
        assert!(
            baseline.text().contains("\n    \"a/b/ours/c\": { \"ratio\": 1.2500, \"noise\": 0.0125 },\n")
        );
    }

    #[test]
    fn what_cannot_be_used_is_said_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("baseline.json");
        let error = || {
            let error = Baseline::read(&path).unwrap_err();
            assert!(error.is::<BadInput>());
            assert!(error.to_string().contains("bench --save"), "{error}");
            error.to_string()
        };
        assert!(error().contains("cannot be read"));
        for (text, expected) in [
            ("{\n  \"machine\": {},", "is no JSON: EOF while parsing a value at line 2 column 16"),
            ("[]", "no object `machine`"),
            (r#"{"machine": {}}"#, "no object `ratios`"),
            (r#"{"machine": {}, "ratios": {"a": {"ratio": -1, "noise": 0}}}"#, "under \"a\""),
            (r#"{"machine": {}, "ratios": {"a": {"ratio": 1}}}"#, "under \"a\""),
        ] {
            fs::write(&path, text).unwrap();
            assert!(error().contains(expected), "{}", error());
        }
    }
}
