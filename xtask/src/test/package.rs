//! What a registry would be given: the metadata of each library, the files in its package, and a dry run of publishing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{PROFILE, cargo, metadata, none_wrong};
use crate::{process, workspace};

/// Libraries that depend on no other of ours: their packages are built from what is in them alone. The others need a
/// registry that has these; the step `alone` builds them.
const LEAVES: [&str; 3] = ["ferrotune-autograd", "ferrotune-data", "ferrotune-metrics"];
/// Slugs of the registry that fit what we do.
const CATEGORIES: [&str; 6] =
    ["algorithms", "concurrency", "encoding", "external-ffi-bindings", "science", "text-processing"];
/// The registry takes 10 MiB, compressed; a golden file has at most 200 KiB.
const PACKAGE_LIMIT: u64 = 10 << 20;
const FILE_LIMIT: u64 = 200 << 10;

pub fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let members = metadata["workspace_members"].as_array().context("cargo metadata has no members")?;
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|package| members.contains(&package["id"])) {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().context("a manifest has no folder")?;
        let mut faults = metadata_faults(package, folder.starts_with(workspace::root().join("crates")));
        if is_published(package) {
            let list = ["--list", "--allow-dirty", "--package", name];
            let list = process::output(&mut cargo("package", &list))?;
            faults.extend(file_faults(folder, &list.lines().collect::<Vec<_>>())?);
        }
        wrong.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
    }
    none_wrong("not fit to be published", wrong)?;
    dry_run()
}

fn is_published(package: &Value) -> bool {
    package["publish"].is_null()
}

/// What the manifest lacks. A package outside `crates` is not for publishing.
fn metadata_faults(package: &Value, is_library: bool) -> Vec<String> {
    if is_published(package) != is_library {
        return vec!["libraries are published, and nothing else is: see `publish`".into()];
    }
    if !is_library {
        return Vec::new();
    }
    let keys = ["description", "license", "repository", "documentation", "readme", "rust_version"];
    let lacks = keys.iter().filter(|key| package[**key].as_str().is_none_or(|text| text.trim().is_empty()));
    let mut faults: Vec<String> = lacks.map(|key| format!("`{key}` is missing")).collect();
    let words = |key: &str| package[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    for (key, fits) in
        [("keywords", is_keyword as fn(&str) -> bool), ("categories", |it| CATEGORIES.contains(&it))]
    {
        if !(1..=5).contains(&words(key).count()) {
            faults.push(format!("`{key}` has {} entries, expected 1 to 5", words(key).count()));
        }
        faults
            .extend(words(key).filter(|word| !fits(word)).map(|word| format!("{word:?} is none of `{key}`")));
    }
    let reaches_tch = package["dependencies"].as_array().into_iter().flatten().any(|it| it["name"] == "tch");
    let on_docs_rs = package["metadata"]["docs"]["rs"]["features"] == serde_json::json!(["doc-only"]);
    if reaches_tch != (on_docs_rs && package["features"]["doc-only"].is_array()) {
        faults.push(
            "a crate that uses tch, and no other, has a feature `doc-only` and names it for docs.rs".into(),
        );
    }
    faults
}

/// The rule of the registry.
fn is_keyword(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_+".contains(c);
    word.len() <= 20 && word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(plain)
}

/// What is missing in the package of the crate in `folder`, or too large.
fn file_faults(folder: &Path, list: &[&str]) -> Result<Vec<String>> {
    let mut needed = vec!["Cargo.toml".to_string(), "README.md".into(), "LICENSE".into()];
    source_files(folder, Path::new("src"), &mut needed)?;
    if folder.join("build.rs").exists() {
        needed.push("build.rs".into());
    }
    let missing = needed.iter().filter(|file| !list.contains(&file.as_str()));
    let mut faults: Vec<String> = missing.map(|file| format!("{file} is not in the package")).collect();
    let mut total = 0;
    for file in list {
        // Cargo adds files of its own that are not in the folder.
        let size = fs::metadata(folder.join(file)).map_or(0, |it| it.len());
        total += size;
        if size > FILE_LIMIT {
            faults.push(format!("{file} has {size} bytes, more than {FILE_LIMIT}"));
        }
    }
    if total > PACKAGE_LIMIT {
        faults.push(format!("its files have {total} bytes, more than {PACKAGE_LIMIT}"));
    }
    Ok(faults)
}

fn source_files(folder: &Path, below: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            source_files(folder, &path, files)?;
        } else {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Packs all libraries as publishing would, and builds the leaves from their packages. Publishing asks the registry; where
/// it is not reached, the packages are made and built without it.
fn dry_run() -> Result<()> {
    let errors = pack(&["publish", "--dry-run"])?;
    if errors.is_empty() {
        return Ok(());
    }
    ensure!(is_unreached(&errors), "publishing would fail, see above");
    println!(
        "  the package registry is not reached: only making and building the packages, without its word"
    );
    ensure!(pack(&["package", "--offline"])?.is_empty(), "the packages cannot be made or built, see above");
    Ok(())
}

/// What cargo says where it fails; nothing where all is well.
fn pack(subcommand: &[&str; 2]) -> Result<String> {
    let all = ["--no-verify", "--workspace"];
    let others = ["xtask", "ferrotune-benches", "ferrotune-examples"].map(|other| ["--exclude", other]);
    let leaves = LEAVES.map(|leaf| ["--package", leaf]);
    for packages in [[&all, others.as_flattened()].concat(), [leaves.as_flattened(), &PROFILE].concat()] {
        let mut command = cargo(subcommand[0], &[&subcommand[1..], &["--allow-dirty"], &packages].concat());
        println!("  {}", process::shown(&command));
        let (status, errors) = process::run_keeping_errors(&mut command)?;
        if !status.success() {
            return Ok(errors);
        }
    }
    Ok(String::new())
}

fn is_unreached(errors: &str) -> bool {
    let signs = ["failed to download", "Could not connect", "Could not resolve", "HTTP request"];
    signs.iter().any(|sign| errors.contains(sign))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn library() -> Value {
        json!({
            "publish": null, "description": "d", "license": "MIT", "repository": "r", "documentation": "d",
            "readme": "README.md", "rust_version": "1.90", "keywords": ["lora"], "categories": ["science"],
            "dependencies": [{ "name": "tch" }], "features": { "doc-only": ["tch/doc-only"] },
            "metadata": { "docs": { "rs": { "features": ["doc-only"] } } },
        })
    }

    #[test]
    fn each_lack_of_a_manifest_is_named() {
        assert_eq!(metadata_faults(&library(), true), Vec::<String>::new());
        for (key, value, said) in [
            ("description", json!(" "), "`description` is missing"),
            ("license", json!(null), "`license` is missing"),
            ("documentation", json!(null), "`documentation` is missing"),
            ("rust_version", json!(null), "`rust_version` is missing"),
            ("keywords", json!([]), "0 entries"),
            ("keywords", json!(["a", "b", "c", "d", "e", "f"]), "6 entries"),
            ("keywords", json!(["two words"]), "\"two words\""),
            ("keywords", json!(["abcdefghijklmnopqrstu"]), "abcdefghijklmnopqrstu"),
            ("categories", json!(["magic"]), "\"magic\""),
            ("metadata", json!(null), "doc-only"),
            ("features", json!({}), "doc-only"),
            ("dependencies", json!([]), "doc-only"),
            ("publish", json!([]), "published"),
        ] {
            let mut package = library();
            package[key] = value;
            let faults = metadata_faults(&package, true);
            assert!(faults.len() == 1 && faults[0].contains(said), "{key}: {faults:?}");
        }
        assert_eq!(metadata_faults(&library(), false).len(), 1);
        assert!(metadata_faults(&json!({ "publish": [] }), false).is_empty());
    }

    #[test]
    fn missing_and_large_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("src/cpp")).unwrap();
        fs::write(folder.path().join("src/cpp/shim.cpp"), "").unwrap();
        fs::write(folder.path().join("big.bin"), vec![0; FILE_LIMIT as usize + 1]).unwrap();
        let whole = ["Cargo.toml", "Cargo.lock", "README.md", "LICENSE", "src/cpp/shim.cpp"];
        assert!(file_faults(folder.path(), &whole).unwrap().is_empty());
        let faults = file_faults(folder.path(), &["Cargo.toml", "README.md", "big.bin"]).unwrap();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains("LICENSE") && faults[1].contains("shim.cpp") && faults[2].contains("big.bin")
        );
    }

    #[test]
    fn an_unreached_registry_is_told_from_other_faults() {
        assert!(is_unreached("error: failed to download from `x`"));
        assert!(is_unreached("error: attempting to make an HTTP request, but --offline was specified"));
        assert!(!is_unreached("error[E0425]: cannot find value"));
    }
}
