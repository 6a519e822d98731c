//! The crate graph against the one that the architecture lays down: arrows point down only.

use anyhow::{Context, Result};
use serde_json::Value;

use super::none_wrong;
use crate::{process, workspace};

/// Members, and the members that each may depend on (for tests and builds too). Lower ones come first.
const ARROWS: [(&str, &[&str]); 12] = [
    ("ferrotune-data", &[]),
    ("ferrotune-metrics", &[]),
    ("ferrotune-autograd", &[]),
    ("ferrotune-kernels", &["ferrotune-autograd"]),
    ("ferrotune-precision", &["ferrotune-kernels"]),
    ("ferrotune-lora", &["ferrotune-kernels", "ferrotune-precision"]),
    (
        "ferrotune-models",
        &["ferrotune-autograd", "ferrotune-kernels", "ferrotune-lora", "ferrotune-precision"],
    ),
    ("ferrotune-trainer", &["ferrotune-kernels", "ferrotune-precision"]),
    ("ferrotune", LIBRARIES),
    ("ferrotune-benches", EVERYTHING),
    ("ferrotune-examples", EVERYTHING),
    ("xtask", &[]),
];
const EVERYTHING: &[&str] = &[
    "ferrotune",
    "ferrotune-autograd",
    "ferrotune-data",
    "ferrotune-kernels",
    "ferrotune-lora",
    "ferrotune-metrics",
    "ferrotune-models",
    "ferrotune-precision",
    "ferrotune-trainer",
];
/// All but the facade.
const LIBRARIES: &[&str] = EVERYTHING.split_at(1).1;

/// Members with nothing of libtorch anywhere below them.
const WITHOUT_LIBTORCH: [&str; 3] = ["ferrotune-data", "ferrotune-metrics", "xtask"];
const LIBTORCH_CRATES: [&str; 2] = ["tch", "torch-sys"];

pub fn check(metadata: &Value) -> Result<()> {
    let mut wrong = wrong_arrows(metadata)?;
    for member in WITHOUT_LIBTORCH {
        // `cargo tree` resolves the features of this member alone, as for someone who adds only it.
        let arguments =
            ["tree", "--package", member, "--edges", "all", "--prefix", "none", "--format", "{p}"];
        wrong.extend(libtorch_below(member, &process::output(&mut workspace::cargo(arguments))?));
    }
    none_wrong("the crate graph is not the one laid down in xtask/src/test/graph.rs", wrong)
}

fn wrong_arrows(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let members = metadata["workspace_members"].as_array().context("cargo metadata has no members")?;
    let mut wrong = Vec::new();
    let mut names = Vec::new();
    for package in packages.iter().filter(|package| members.contains(&package["id"])) {
        let name = package["name"].as_str().unwrap_or_default();
        names.push(name);
        let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == name) else {
            wrong.push(format!("{name} is a member that is not in the list"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let is_member = ARROWS.iter().any(|(member, _)| *member == target);
            if is_member && !allowed.contains(&target) {
                let kind = dependency["kind"].as_str().unwrap_or("normal");
                wrong.push(format!("{name} -> {target} ({kind} dependency)"));
            }
        }
    }
    let missing = ARROWS.iter().filter(|(member, _)| !names.contains(member));
    wrong.extend(missing.map(|(member, _)| format!("{member} is in the list and no member")));
    Ok(wrong)
}

fn libtorch_below(member: &str, tree: &str) -> Vec<String> {
    let found = tree.lines().filter_map(|line| line.split(' ').next());
    let mut found: Vec<&str> = found.filter(|name| LIBTORCH_CRATES.contains(name)).collect();
    found.dedup();
    found.into_iter().map(|name| format!("{member} has {name} below it")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(extra: &[(&str, &str, &str)]) -> Value {
        let names = ARROWS.iter().map(|(name, _)| *name);
        let package = |name: &str| {
            let own = extra.iter().filter(|(from, _, _)| *from == name);
            let dependencies: Vec<Value> =
                own.map(|(_, to, kind)| json!({ "name": to, "kind": kind })).collect();
            json!({ "id": format!("id {name}"), "name": name, "dependencies": dependencies })
        };
        let packages: Vec<Value> = names.clone().map(package).collect();
        let members: Vec<String> = names.map(|name| format!("id {name}")).collect();
        json!({ "packages": packages, "workspace_members": members })
    }

    #[test]
    fn arrows_down_are_fine_and_others_are_named() {
        let fine = [("ferrotune-lora", "ferrotune-kernels", "normal"), ("ferrotune-lora", "serde", "normal")];
        assert_eq!(wrong_arrows(&metadata(&fine)).unwrap(), Vec::<String>::new());
        let up = [
            ("ferrotune-kernels", "ferrotune-lora", "dev"),
            ("ferrotune-data", "ferrotune-metrics", "normal"),
        ];
        let wrong = wrong_arrows(&metadata(&up)).unwrap();
        assert_eq!(
            wrong,
            [
                "ferrotune-data -> ferrotune-metrics (normal dependency)",
                "ferrotune-kernels -> ferrotune-lora (dev dependency)"
            ]
        );
    }

    #[test]
    fn unknown_and_missing_members_are_named() {
        let mut metadata = metadata(&[]);
        metadata["packages"][0]["name"] = "ferrotune-new".into();
        let wrong = wrong_arrows(&metadata).unwrap();
        assert_eq!(
            wrong,
            [
                "ferrotune-new is a member that is not in the list",
                "ferrotune-data is in the list and no member"
            ]
        );
    }

    #[test]
    fn the_list_itself_has_no_cycle() {
        for (index, (member, allowed)) in ARROWS.iter().enumerate() {
            for target in *allowed {
                assert!(ARROWS[..index].iter().any(|(lower, _)| lower == target), "{member} -> {target}");
            }
        }
    }

    #[test]
    fn libtorch_is_seen_in_a_tree() {
        let tree = "ferrotune-data v0.1.0 (/x)\nserde v1.0.0\ntch v0.26.0\ntorch-sys v0.26.0\n";
        assert_eq!(libtorch_below("d", tree), ["d has tch below it", "d has torch-sys below it"]);
        assert!(libtorch_below("d", "d v1\ntchaikovsky v1.0.0\n").is_empty());
    }
}
