//! The crates to read: the frozen list, or the members of a workspace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::test::spdx;
use crate::{process, workspace};

/// One crate and its source files.
pub struct Package {
    pub name: String,
    pub version: String,
    pub license: String,
    /// Path of each file, relative to the package and absolute; sorted.
    pub files: Vec<(String, PathBuf)>,
}

/// Folders that hold no code of the crate itself.
const SKIPPED_FOLDERS: [&str; 12] = [
    "tests",
    "test",
    "testing",
    "benches",
    "bench",
    "examples",
    "fuzz",
    "target",
    "vendor",
    "third_party",
    "generated",
    "node_modules",
];
/// Larger files are tables, in practice.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Read for a note that the file is generated.
const HEAD_LINES: usize = 25;

/// The frozen list: `data/Cargo.toml` and `data/Cargo.lock`. Cargo fetches it and holds it to the lock's checksums.
pub fn frozen() -> Result<Vec<Package>> {
    let manifest = workspace::root().join("xtask/data/Cargo.toml");
    let manifest = manifest.to_str().context("the path of the checkout is not UTF-8")?;
    // One target for every machine: dependencies of other systems are no part of the data.
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let fetch = ["fetch", "--locked", "--target", TARGET, "--manifest-path", manifest];
    process::run(&mut workspace::cargo(fetch)).context(
        "the crates of the demo data were not fetched: check the connection to the crate registry and start again",
    )?;
    let arguments = [
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        TARGET,
        "--manifest-path",
        manifest,
    ];
    let metadata: Value = serde_json::from_str(&process::output(&mut workspace::cargo(arguments))?)?;
    // Of several versions the newest: the others are near duplicates.
    let mut newest = BTreeMap::<String, Package>::new();
    for package in packages(&metadata)? {
        // The list itself has no source; everything else must come from a registry, where the lock has its checksum.
        let Some(source) = package["source"].as_str() else { continue };
        let (name, version) = (text(package, "name")?, text(package, "version")?);
        ensure!(
            source.starts_with("registry+") || source.starts_with("sparse+"),
            "{name} comes from {source}"
        );
        let license = package["license"].as_str().unwrap_or_default();
        if !spdx::is_permissive(license) {
            bail!(
                "{name} {version} has the licence {license:?}, which is not on the list of permissive ones"
            );
        }
        if newest.get(name).is_some_and(|other| version_key(&other.version) > version_key(version)) {
            continue;
        }
        newest.insert(name.into(), read(package, name, version, license)?);
    }
    Ok(newest.into_values().collect())
}

/// The members of the workspace at `path`.
pub fn of_workspace(path: &Path) -> Result<Vec<Package>> {
    let manifest = if path.is_dir() { path.join("Cargo.toml") } else { path.to_path_buf() };
    ensure!(
        manifest.is_file(),
        "there is no {}: --path wants a Cargo workspace or package",
        manifest.display()
    );
    let manifest = std::path::absolute(manifest)?;
    let manifest = manifest.to_str().context("the path of the workspace is not UTF-8")?;
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--manifest-path", manifest];
    let metadata: Value = serde_json::from_str(&process::output(&mut workspace::cargo(arguments))?)?;
    let mut members = Vec::new();
    for package in packages(&metadata)? {
        let license = package["license"].as_str().unwrap_or_default();
        members.push(read(package, text(package, "name")?, text(package, "version")?, license)?);
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

fn packages(metadata: &Value) -> Result<&Vec<Value>> {
    metadata["packages"].as_array().context("cargo metadata has no packages")
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no {key} for a package"))
}

/// Numbers of a version; a pre-release counts as older than its release.
fn version_key(version: &str) -> (Vec<u64>, bool, String) {
    let version = version.split('+').next().unwrap_or_default();
    let (numbers, pre) = version.split_once('-').unwrap_or((version, ""));
    (numbers.split('.').filter_map(|number| number.parse().ok()).collect(), pre.is_empty(), pre.into())
}

fn read(package: &Value, name: &str, version: &str, license: &str) -> Result<Package> {
    let root = Path::new(text(package, "manifest_path")?).parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut files = BTreeMap::new();
    for target in package["targets"].as_array().into_iter().flatten() {
        let kinds: Vec<&str> =
            target["kind"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !kinds.iter().any(|kind| kind.ends_with("lib") || ["bin", "proc-macro"].contains(kind)) {
            continue;
        }
        let Some(folder) = Path::new(text(target, "src_path")?).parent() else { continue };
        if folder.starts_with(&root) {
            walk(&root, folder, &mut files)?;
        }
    }
    Ok(Package {
        name: name.into(),
        version: version.into(),
        license: license.into(),
        files: files.into_iter().collect(),
    })
}

fn walk(root: &Path, folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // A member of a workspace may lie in the folder of another one.
            if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name) && !path.join("Cargo.toml").exists()
            {
                walk(root, &path, files)?;
            }
        } else if kind.is_file() && is_source(name) && entry.metadata()?.len() <= MAX_FILE_BYTES {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(relative, path);
        }
    }
    Ok(())
}

fn is_source(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".rs") else { return false };
    !["build", "test", "tests", "bench", "benches"].contains(&stem)
        && !stem.ends_with("_test")
        && !stem.ends_with("_tests")
        && !stem.starts_with("test_")
        && !stem.contains("generated")
}

/// Whether a comment at the head of the file says that a program wrote it.
pub fn is_generated(text: &str) -> bool {
    text.lines().take(HEAD_LINES).filter(|line| line.trim_start().starts_with(['/', '*'])).any(|line| {
        let line = line.to_ascii_lowercase();
        let notes = [
            "@generated",
            "generated by",
            "generated from",
            "automatically generated",
            "auto-generated",
            "autogenerated",
        ];
        notes.iter().any(|note| line.contains(note)) || (line.contains("do not") && line.contains("edit"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let mut versions = ["0.10.0", "0.9.1", "1.0.0", "1.0.0-rc.1", "0.9.1+build"];
        versions.sort_by_key(|version| version_key(version));
        assert_eq!(versions, ["0.9.1", "0.9.1+build", "0.10.0", "1.0.0-rc.1", "1.0.0"]);
    }

    #[test]
    fn generated_files_and_tests_are_recognised() {
        assert!(is_generated("// This file is @generated by x\n"));
        assert!(is_generated("//! Tables.\n\n// DO NOT EDIT: see tables.py\n"));
        assert!(!is_generated("/// Plain.\nfn generated_by() {}\n"));
        assert!(is_source("lib.rs") && is_source("testing.rs"));
        assert!(
            !is_source("build.rs")
                && !is_source("tests.rs")
                && !is_source("lexer_tests.rs")
                && !is_source("a.py")
        );
    }

    #[test]
    fn a_workspace_is_read_without_its_tests() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "Cargo.toml",
            "[package]\nname = \"mine\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
        );
        write("src/lib.rs", "");
        write("src/a/b.rs", "");
        write("src/a/tests/c.rs", "");
        write("build.rs", "fn main() {}");
        write("tests/it.rs", "");
        let packages = of_workspace(root.path()).unwrap();
        let files: Vec<&str> = packages[0].files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!((packages.len(), files), (1, vec!["src/a/b.rs", "src/lib.rs"]));
        assert!(of_workspace(&root.path().join("absent")).is_err());
    }
}
