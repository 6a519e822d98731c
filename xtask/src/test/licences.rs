//! The licences of everything that the lock file holds.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{none_wrong, spdx};

pub fn check(metadata: &Value) -> Result<()> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    none_wrong("not under a licence that xtask/src/test/spdx.rs permits", offenders(packages))
}

fn offenders(packages: &[Value]) -> Vec<String> {
    let offends = |package: &Value| {
        let licence = package["license"].as_str();
        if licence.is_some_and(spdx::is_permissive) {
            return None;
        }
        let text = |key: &str| package[key].as_str().unwrap_or("?").to_string();
        let licence =
            licence.map_or_else(|| format!("no expression (file {})", text("license_file")), str::to_string);
        Some(format!("{} {}: {licence}", text("name"), text("version")))
    };
    packages.iter().filter_map(offends).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn offenders_are_named_with_their_licence() {
        let packages = [
            json!({ "name": "good", "version": "1.0.0", "license": "MIT OR GPL-3.0-only" }),
            json!({ "name": "bad", "version": "1.0.0", "license": "GPL-3.0-only" }),
            json!({ "name": "own", "version": "2.0.0", "license": null, "license_file": "LICENCE" }),
        ];
        assert_eq!(
            offenders(&packages),
            ["bad 1.0.0: GPL-3.0-only", "own 2.0.0: no expression (file LICENCE)"]
        );
    }
}
