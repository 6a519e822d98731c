//! Writing a directory so that it is there whole or not at all.

use crate::error::{Error, Result};
use ferrotune_precision::sync_directory;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Fills a new directory beside `directory` by `fill`, flushes it to the disk and puts it in the place of `directory`.
///
/// An existing directory is replaced in one step, if it holds nothing but files with the names in `known`; on a file system that cannot
/// exchange two directories the old one is moved aside first, so that for an instant there is none.
pub(crate) fn replace_directory(
    directory: &Path,
    known: &[&str],
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    // A link keeps its place, what it leads to is replaced.
    let (directory, exists) = match fs::canonicalize(directory) {
        Ok(real) => (real, true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (directory.to_owned(), false),
        Err(error) => return Err(Error::io("find", directory)(error)),
    };
    let Some(name) = directory.file_name() else {
        return Err(Error::io("replace", directory)(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if exists {
        check_replaceable(&directory, known)?;
    } else {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }

    let temporary = Temporary::create(parent, &name.to_string_lossy())?;
    fill(&temporary.0)?;
    for entry in fs::read_dir(&temporary.0).map_err(Error::io("read", &temporary.0))? {
        let path = entry.map_err(Error::io("read", &temporary.0))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("flush", &path))?;
    }
    sync_directory(&temporary.0).map_err(Error::io("flush", &temporary.0))?;
    if exists {
        // Again: filling may have taken a while.
        check_replaceable(&directory, known)?;
        exchange(&temporary.0, &directory).map_err(Error::io("replace", &directory))?;
    } else {
        fs::rename(&temporary.0, &directory).map_err(Error::io("create", &directory))?;
    }
    sync_directory(parent).map_err(Error::io("flush", parent))
}

fn check_replaceable(directory: &Path, known: &[&str]) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let entry = entry.map_err(Error::io("read", directory))?;
        let name = entry.file_name();
        let is_file = entry.file_type().map_err(Error::io("read", directory))?.is_file();
        if !is_file || !known.iter().any(|known| name == *known) {
            return Err(Error::ForeignFile {
                path: directory.to_owned(),
                found: format!("`{}`", name.to_string_lossy()),
            });
        }
    }
    Ok(())
}

/// A new directory that goes when this goes, with whatever lies at its path by then.
struct Temporary(PathBuf);

impl Temporary {
    fn create(parent: &Path, name: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let process = std::process::id();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!(".{name}.{process}.{count}.tmp"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a temporary directory could not be removed");
            }
            _ => {}
        }
    }
}

#[cfg(target_os = "linux")]
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => move_aside(new, old),
        result => Ok(result?),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    move_aside(new, old)
}

/// Swaps two directories by three renames.
fn move_aside(new: &Path, old: &Path) -> io::Result<()> {
    let aside = new.with_extension("old");
    fs::rename(old, &aside)?;
    if let Err(error) = fs::rename(new, old) {
        fs::rename(&aside, old)?;
        return Err(error);
    }
    fs::rename(&aside, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |directory| fs::write(directory.join("a"), text).map_err(Error::io("write", directory))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_is_made_and_replaced_and_nothing_stays_behind() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("runs/adapter");
        replace_directory(&target, &["a", "b"], write("one")).unwrap();
        fs::write(target.join("b"), "").unwrap();
        replace_directory(&target, &["a", "b"], write("two")).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "two");
        assert_eq!(names(&target), ["a"]);
        assert_eq!(names(target.parent().unwrap()), ["adapter"]);
    }

    #[test]
    fn a_failure_leaves_the_old_directory() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("adapter");
        replace_directory(&target, &["a"], write("one")).unwrap();
        let fails = |directory: &Path| {
            write("half")(directory)?;
            Err(Error::value("x", "y", "z"))
        };
        assert!(replace_directory(&target, &["a"], fails).is_err());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "one");
        assert_eq!(names(root.path()), ["adapter"]);
    }

    #[test]
    fn a_directory_with_other_files_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "").unwrap();
        let error = replace_directory(root.path(), &["a"], write("one")).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
        assert_eq!(names(root.path()), ["thesis.tex"]);
    }

    #[test]
    fn directories_can_be_swapped_by_renames() {
        let root = tempfile::tempdir().unwrap();
        let (new, old) = (root.path().join(".x.tmp"), root.path().join("x"));
        for (directory, text) in [(&new, "new"), (&old, "old")] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("a"), text).unwrap();
        }
        move_aside(&new, &old).unwrap();
        assert_eq!(fs::read_to_string(old.join("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(new.join("a")).unwrap(), "old");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_keeps_its_place() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
        replace_directory(&root.path().join("link"), &["a"], write("one")).unwrap();
        assert!(root.path().join("link").is_symlink());
        assert_eq!(fs::read_to_string(root.path().join("real/a")).unwrap(), "one");
    }
}
