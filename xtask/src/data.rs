//! `cargo xtask data`: instruction data from the documentation of Rust crates.
//!
//! An example asks for the summary line of an item; the answer is the first sentence of its doc comment. The crates are
//! frozen by a lock file, everything that is chosen is chosen by hashes, and the files are the same on every machine.

mod duplicate;
mod item;
mod sources;
mod split;
mod summary;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use self::sources::Package;
use crate::{digest, files, progress, setup, workspace};

/// The data set's name, and its folder in the cache.
const NAME: &str = "rustdoc-summaries";
const INSTRUCTION: &str = "Write the documentation summary line of this Rust item.";
/// Bytes of an item's code.
const CODE_BYTES: std::ops::RangeInclusive<usize> = 150..=800;
/// Examples taken from one crate of the frozen list.
const PER_CRATE: usize = 60;
/// A workspace of fewer crates is split by file: by crate, some split would be empty.
const CRATES_TO_SPLIT: usize = 20;
/// Deeply nested code needs a deep stack.
const STACK_BYTES: usize = 256 << 20;

/// An item that may become an example.
struct Candidate {
    krate: String,
    /// What is split as a whole.
    group: String,
    /// Where it is: file and path in it.
    item: String,
    code: String,
    summary: String,
}

/// The finished data set: the lines of each split, and how many examples each crate gave.
struct DataSet {
    splits: Vec<(&'static str, Vec<String>)>,
    per_crate: BTreeMap<String, usize>,
}

/// Builds the demo data in `output`, by default in the cache, and returns the folder.
///
/// # Errors
/// If the crates cannot be fetched, or the files are not the expected ones.
pub fn of_frozen_crates(output: Option<&Path>, record: bool) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let _lock = files::Lock::acquire(&cache, "data")?;
    let folder = match output {
        Some(folder) => std::path::absolute(folder)?,
        None => {
            setup::link_data(&cache)?;
            cache.join("data").join(NAME)
        }
    };
    if !record && is_expected(&folder) {
        println!("data: {} is up to date", folder.display());
        return Ok(folder);
    }
    let packages = sources::frozen()?;
    println!("data: reading {} crates", packages.len());
    let set = choose(candidates(&packages, |package, _| package.name.clone())?, PER_CRATE);
    let digests = digests(&set);
    if record {
        files::write(&digests_path(), digests.as_bytes())?;
    }
    write(&set, &packages, &folder)?;
    report(&set, &folder);
    let expected = fs::read_to_string(digests_path()).unwrap_or_default();
    if digests != expected {
        bail!(
            "the files in {} are not the ones to expect ({}); if rules or crates were changed on purpose, run \
             `cargo xtask data --record` and commit the digests",
            folder.display(),
            digests_path().display()
        );
    }
    Ok(folder)
}

/// Whether the demo data is in the cache, whole.
pub fn is_there(cache: &Path) -> bool {
    is_expected(&cache.join("data").join(NAME))
}

/// Builds the same kind of data from the workspace at `path`, whole: no limit for a crate.
///
/// # Errors
/// If there is no such workspace, or nothing in it makes an example.
pub fn of_workspace(path: &Path, output: &Path) -> Result<()> {
    let packages = sources::of_workspace(path)?;
    let by_crate = packages.len() >= CRATES_TO_SPLIT;
    let group = |package: &Package, file: &str| match by_crate {
        true => package.name.clone(),
        false => format!("{} {file}", package.name),
    };
    let set = choose(candidates(&packages, group)?, usize::MAX);
    if set.per_crate.is_empty() {
        bail!(
            "no item in {} makes an example: wanted are documented functions, methods, structs and enums with {} to {} \
             bytes of code",
            path.display(),
            CODE_BYTES.start(),
            CODE_BYTES.end()
        );
    }
    println!("data: {} crates, split by {}", packages.len(), if by_crate { "crate" } else { "file" });
    write(&set, &packages, &std::path::absolute(output)?)?;
    report(&set, output);
    Ok(())
}

/// Reads all files of all packages, on all cores.
fn candidates(
    packages: &[Package],
    group: impl Fn(&Package, &str) -> String + Sync,
) -> Result<Vec<Candidate>> {
    let bar = progress::items(packages.len() as u64, "reading crates".into());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
            for (name, path) in &package.files {
                let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                found.extend(of_file(&package.name, &group(package, name), name, &text));
            }
            bar.inc(1);
        }
        Ok(found)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(packages.len().max(1));
    let parts: Vec<Result<Vec<Candidate>>> = thread::scope(|scope| {
        let start = |_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let started: Vec<_> = (0..threads).map(start).collect();
        let join = |thread: std::io::Result<thread::ScopedJoinHandle<'_, _>>| {
            thread?.join().unwrap_or_else(|_| Err(anyhow!("a reading thread panicked")))
        };
        started.into_iter().map(join).collect()
    });
    bar.finish_and_clear();
    let mut all = Vec::new();
    for part in parts {
        all.append(&mut part?);
    }
    Ok(all)
}

/// The candidates of one file. A file that the parser does not take gives none: templates, code for other compilers.
fn of_file(krate: &str, group: &str, name: &str, text: &str) -> Vec<Candidate> {
    if sources::is_generated(text) {
        return Vec::new();
    }
    let items = item::items(text).unwrap_or_default();
    item::forget_spans();
    let candidate = |item: item::Item| {
        let summary = summary::first_sentence(&item.docs)?;
        let good =
            CODE_BYTES.contains(&item.code.len()) && item.code.is_ascii() && summary::is_good(&summary);
        let place = format!("{name}:{}", item.name);
        good.then(|| Candidate {
            krate: krate.into(),
            group: group.into(),
            item: place,
            code: item.code,
            summary,
        })
    };
    items.into_iter().filter_map(candidate).collect()
}

/// Takes candidates in the order of their hashes, without duplicates and at most `per_crate` of one crate.
fn choose(mut candidates: Vec<Candidate>, limit: usize) -> DataSet {
    candidates.sort_by_cached_key(|c| {
        digest::of_bytes([&c.krate, &c.item, &c.code, &c.summary].map(String::as_str).join("\0").as_bytes())
    });
    let mut taken = duplicate::Taken::default();
    let mut per_crate = BTreeMap::<String, usize>::new();
    let mut lines = HashMap::<&str, Vec<String>>::new();
    for candidate in candidates {
        let count = per_crate.get(&candidate.krate).copied().unwrap_or_default();
        if count >= limit || !taken.take(&candidate.code, &candidate.summary) {
            continue;
        }
        let line = json!({
            "instruction": format!("{INSTRUCTION}\n\n{}", candidate.code),
            "output": candidate.summary,
            "crate": candidate.krate,
            "item": candidate.item,
        });
        lines.entry(split::of(&candidate.group)).or_default().push(line.to_string());
        per_crate.insert(candidate.krate, count + 1);
    }
    let splits = split::names().map(|name| (name, lines.remove(name).unwrap_or_default()));
    DataSet { splits: splits.into(), per_crate }
}

fn contents(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

fn write(set: &DataSet, packages: &[Package], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Where every example comes from, and under which licence.
    let crates: Vec<_> = packages
        .iter()
        .filter_map(|package| {
            let examples = set.per_crate.get(&package.name)?;
            let (name, version, license) = (&package.name, &package.version, &package.license);
            Some(json!({ "name": name, "version": version, "license": license, "examples": examples }))
        })
        .collect();
    files::write(&folder.join("crates.json"), (serde_json::to_string_pretty(&crates)? + "\n").as_bytes())?;
    for (name, lines) in &set.splits {
        files::write(&folder.join(format!("{name}.jsonl")), contents(lines).as_bytes())?;
    }
    Ok(())
}

fn report(set: &DataSet, folder: &Path) {
    let counts: Vec<String> =
        set.splits.iter().map(|(name, lines)| format!("{name} {}", lines.len())).collect();
    let total: usize = set.per_crate.values().sum();
    println!("data: {total} examples of {} crates: {}", set.per_crate.len(), counts.join(", "));
    println!("data: in {}", folder.display());
}

/// The committed digests, in the form of sha256sum.
fn digests_path() -> PathBuf {
    workspace::root().join("xtask/data/SHA256SUMS")
}

fn digests(set: &DataSet) -> String {
    set.splits
        .iter()
        .map(|(name, lines)| format!("{}  {name}.jsonl\n", digest::of_bytes(contents(lines).as_bytes())))
        .collect()
}

/// Whether the folder already holds the files to expect.
fn is_expected(folder: &Path) -> bool {
    let Ok(expected) = fs::read_to_string(digests_path()) else { return false };
    !expected.is_empty()
        && expected.lines().all(|line| {
            let Some((digest, name)) = line.split_once("  ") else { return false };
            digest::of_file(&folder.join(name)).is_ok_and(|found| found == digest)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(krate: &str, index: usize) -> Candidate {
        let names: Vec<String> =
            (0..30).map(|i| digest::of_bytes(format!("{krate}{index}{i}").as_bytes())[..6].into()).collect();
        let marks = ["+", "-", "*", "/", "%", "&", "|"];
        let body: String = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                format!("x{name} {} ", marks[digest::number(&format!("{krate}{index}{i}")) as usize % 7])
            })
            .collect();
        Candidate {
            krate: krate.into(),
            group: krate.into(),
            item: format!("src/lib.rs:f{index}"),
            code: format!("fn f{index}() {{ {body} }}"),
            summary: names[..6].join(" "),
        }
    }

    fn all(crates: usize, each: usize) -> Vec<Candidate> {
        (0..crates).flat_map(|c| (0..each).map(move |i| candidate(&format!("crate{c}"), i))).collect()
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_reading() {
        let mut reversed = all(30, 8);
        reversed.reverse();
        let (one, other) = (choose(all(30, 8), 5), choose(reversed, 5));
        assert_eq!(digests(&one), digests(&other));
        assert_eq!(one.per_crate.len(), 30);
        assert!(one.per_crate.values().all(|&count| count == 5));
    }

    #[test]
    fn no_crate_is_in_two_splits() {
        let set = choose(all(60, 4), 60);
        let mut split_of = HashMap::new();
        for (name, lines) in &set.splits {
            for line in lines {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(*split_of.entry(value["crate"].to_string()).or_insert(name), name);
            }
        }
        assert_eq!(split_of.len(), 60);
        assert!(set.splits.iter().all(|(_, lines)| !lines.is_empty()));
    }

    #[test]
    fn a_file_gives_good_items_only() {
        let body = "    let mut total = 0;\n    for value in values {\n        total += value * value;\n    }\n    if total > limit {\n        return limit;\n    }\n    total\n";
        let long = format!(
            "/// Sums the squares of the values, up to a limit.\nfn f(values: &[u64], limit: u64) -> u64 {{\n{body}}}\n"
        );
        assert_eq!(of_file("a", "a", "src/lib.rs", &long).len(), 1);
        assert!(of_file("a", "a", "src/lib.rs", &format!("// @generated\n{long}")).is_empty());
        assert!(of_file("a", "a", "src/lib.rs", &long.replace(body, "    0\n")).is_empty(), "too short");
        assert!(of_file("a", "a", "src/lib.rs", &long.replace("Sums", "Sums [`all`]")).is_empty(), "a link");
        assert!(of_file("a", "a", "src/lib.rs", &long.replace("// ", "// T\u{f6}")).is_empty(), "not ASCII");
        assert!(of_file("a", "a", "src/lib.rs", "not rust").is_empty());
    }
}
