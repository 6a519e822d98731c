//! The minimum Rust version that the manifests state, against those that the dependencies state.
//!
//! What the standard library offers since when is clippy's part: its lint `incompatible_msrv` reads the same statement.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::none_wrong;

/// The oldest release that knows edition 2024, where no member states more.
const OLDEST: [u64; 3] = [1, 85, 0];

/// The version of the workspace, after a look at every package of the lock file.
pub fn check(metadata: &Value) -> Result<()> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let members = metadata["workspace_members"].as_array().context("cargo metadata has no members")?;
    let (ours, others): (Vec<&Value>, Vec<&Value>) =
        packages.iter().partition(|package| members.contains(&package["id"]));
    let stated: Vec<_> = ours.iter().map(|package| version(package)).collect();
    let stated =
        stated.first().copied().flatten().filter(|first| stated.iter().all(|it| *it == Some(*first)));
    let stated = stated.context("the members do not all state one rust-version")?;
    ensure!(stated >= OLDEST, "rust-version is {}, edition 2024 needs {}", shown(stated), shown(OLDEST));
    none_wrong(
        &format!("rust-version is {}, and these need more", shown(stated)),
        others
            .into_iter()
            .filter_map(|package| Some((package, version(package)?)))
            .filter(|(_, needed)| *needed > stated)
            .map(|(package, needed)| {
                format!("{} {} needs {}", package["name"], package["version"], shown(needed))
            })
            .collect(),
    )
}

/// `1.90` and `1.90.0` are the same; one that is not stated is not known.
fn version(package: &Value) -> Option<[u64; 3]> {
    let mut numbers = package["rust_version"].as_str()?.split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0)])
}

fn shown([major, minor, patch]: [u64; 3]) -> String {
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(ours: &[Option<&str>], others: &[Option<&str>]) -> Result<()> {
        let package = |kind: &'static str| move |(index, version): (usize, &Option<&str>)| json!({ "id": format!("{kind}{index}"), "name": kind, "version": "1.0.0", "rust_version": version });
        let members: Vec<String> = (0..ours.len()).map(|index| format!("our{index}")).collect();
        let ours = ours.iter().enumerate().map(package("our"));
        let packages: Vec<Value> = ours.chain(others.iter().enumerate().map(package("other"))).collect();
        check(&json!({ "packages": packages, "workspace_members": members }))
    }

    #[test]
    fn a_dependency_that_needs_more_is_named() {
        checked(&[Some("1.90")], &[Some("1.90.0"), Some("1.63"), None]).unwrap();
        let error = checked(&[Some("1.90")], &[Some("1.90.1")]).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("1.90.1"), "{error}");
        assert!(checked(&[Some("1.9")], &[]).is_err());
    }

    #[test]
    fn the_members_state_one_version() {
        for ours in [&[None][..], &[Some("1.90"), None], &[Some("1.90"), Some("1.91")]] {
            assert!(checked(ours, &[]).unwrap_err().to_string().contains("do not all state"));
        }
    }
}
