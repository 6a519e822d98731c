//! The folders that a run replaces hold what a run puts there, or the run is refused; nothing else is ever removed.

use super::output::{REPLACED, UNFINISHED};
use crate::{Error, Result, recipe::RESULTS};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The folders of an output directory.
#[derive(Clone, Copy)]
enum Folder {
    Adapter,
    Unfinished,
    Replaced,
}

impl Folder {
    /// Which folder that is, by its name in the output directory.
    fn named(name: &str) -> Self {
        if name == UNFINISHED { Self::Unfinished } else { Self::Adapter }
    }

    /// What has that name in this folder: `Some(None)` is a file.
    fn entry(self, name: &str) -> Option<Option<Self>> {
        // `.NAME.NUMBERS.tmp`, left by a run that was killed while it wrote NAME.
        let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
        let unfinished = unfinished.map(|name| {
            name.trim_end_matches(|letter: char| letter.is_ascii_digit() || ".-".contains(letter))
        });
        match (self, unfinished.unwrap_or(name)) {
            (Self::Adapter, "adapter_config.json" | "adapter_model.safetensors") => Some(None),
            (Self::Adapter, _) => None,
            (Self::Unfinished, REPLACED) => Some(Some(Self::Replaced)),
            (_, name) if name == RESULTS[0] => Some(Some(Self::Adapter)),
            (_, name) => RESULTS.contains(&name).then_some(None),
        }
    }
}

/// Sees that the folder of that name in an output directory, if it is there, holds nothing but what a run puts there.
///
/// # Errors
/// [`Error::OutputInTheWay`] with the first entry that is something else; [`Error::Read`].
pub(super) fn check(directory: &Path, name: &str) -> Result<()> {
    list(&directory.join(name), Folder::named(name)).map(|_| ())
}

/// Removes the folder of that name from an output directory, if it is there.
///
/// # Errors
/// As [`check`], and then nothing is removed; [`Error::Write`].
pub(super) fn remove(directory: &Path, name: &str) -> Result<()> {
    for path in list(&directory.join(name), Folder::named(name))? {
        let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

/// A folder with all that is in it, what lies deepest first; nothing if it is not there.
fn list(path: &Path, folder: Folder) -> Result<Vec<PathBuf>> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let kind = entry.file_type().map_err(unreadable)?;
        match folder.entry(&entry.file_name().to_string_lossy()) {
            Some(None) if kind.is_file() => paths.push(entry.path()),
            Some(Some(folder)) if kind.is_dir() => paths.extend(list(&entry.path(), folder)?),
            _ => {
                let expected =
                    "nothing in this folder but what a run puts there, which the next one replaces";
                return Err(Error::OutputInTheWay { path: entry.path(), expected });
            }
        }
    }
    paths.push(path.to_owned());
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_leaves_wherever_it_is_killed_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "unfinished/.adapter.12.0.tmp/adapter_config.json",
            "unfinished/adapter/adapter_model.safetensors",
            "unfinished/.report.html.12-3.tmp",
            "unfinished/replaced/metrics.json",
            "unfinished/replaced/adapter/adapter_config.json",
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        check(folder.path(), UNFINISHED).unwrap();
        remove(folder.path(), UNFINISHED).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove(folder.path(), UNFINISHED).unwrap();
    }

    #[test]
    fn nothing_is_removed_beside_what_is_not_a_runs() {
        for foreign in [
            "adapter/precious.txt",
            "adapter/README.md",
            "adapter/adapter_config.json/mine",
            "unfinished/train.jsonl",
            "unfinished/adapter/config.json",
            "unfinished/replaced/adapter/.tmp",
            "unfinished/.notes.1.tmp",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(foreign);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "mine").unwrap();
            fs::write(folder.path().join(foreign.split('/').next().unwrap()).join("recipe.toml"), "")
                .unwrap();
            let name = foreign.split('/').next().unwrap();
            assert!(matches!(check(folder.path(), name), Err(Error::OutputInTheWay { .. })), "{foreign}");
            assert!(remove(folder.path(), name).is_err());
            assert!(path.exists() && folder.path().join(name).join("recipe.toml").exists(), "{foreign}");
        }
    }
}
