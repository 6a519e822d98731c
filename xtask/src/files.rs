//! Files that are whole or absent: everything is made beside its place and renamed into it, under a lock.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A lock among processes, held until dropped. The file stays; the lock goes with the process, however it ends.
pub struct Lock(#[allow(dead_code, reason = "dropping it unlocks")] File);

impl Lock {
    /// Waits for the lock `name` in `folder`, and says so when it has to wait.
    pub fn acquire(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.lock"));
        let context = || {
            format!(
                "cannot lock {}: set XDG_CACHE_HOME to a folder that you can write, and start again",
                path.display()
            )
        };
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("waiting for another process that holds {}", path.display());
                file.lock().with_context(context)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        Ok(Self(file))
    }
}

/// `path` with `suffix` appended to its name.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a file, a link or a whole folder, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    let done = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match done {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Builds the folder `path` in a temporary sibling and renames it into place when `build` has succeeded. Hold a lock.
pub fn make_folder(path: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = sibling(path, ".partial");
    let context = || format!("cannot make {}", path.display());
    remove(&partial).with_context(context)?; // what an interrupted run left
    fs::create_dir_all(&partial).with_context(context)?;
    if let Err(error) = build(&partial) {
        let _ = remove(&partial);
        return Err(storage_remedy(error, path));
    }
    flush_file_system(&partial);
    let replaced = sibling(path, ".replaced");
    remove(&replaced).with_context(context)?;
    if fs::symlink_metadata(path).is_ok() {
        fs::rename(path, &replaced).with_context(context)?;
    }
    fs::rename(&partial, path).with_context(context)?;
    sync_parent(path).with_context(context)?;
    remove(&replaced).with_context(context)
}

/// Writes a file through a temporary sibling.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let partial = sibling(path, &format!(".{}.partial", std::process::id()));
    let written = (|| {
        let mut file = File::create(&partial)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_parent(path)
    })();
    if let Err(error) = written {
        let _ = remove(&partial);
        return Err(storage_remedy(error.into(), path).context(format!("cannot write {}", path.display())));
    }
    Ok(())
}

/// Points the link `link` to `target`. Something else than a link in its place is left alone and reported.
pub fn link(link: &Path, target: &Path) -> Result<()> {
    let context = || format!("cannot link {} to {}", link.display(), target.display());
    match fs::symlink_metadata(link) {
        Ok(metadata) if !metadata.is_symlink() => {
            bail!("{} is in the way of a link to {}: move it", link.display(), target.display())
        }
        Ok(_) if fs::read_link(link).with_context(context)? == target => return Ok(()),
        _ => {}
    }
    let partial = sibling(link, &format!(".{}.partial", std::process::id()));
    symlink(target, &partial).with_context(context)?;
    if let Err(error) = fs::rename(&partial, link) {
        let _ = remove(&partial);
        return Err(error).with_context(context);
    }
    Ok(())
}

/// Adds the remedy when the disk is full.
fn storage_remedy(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    });
    if full { error.context(disk_full(path)) } else { error }
}

pub fn disk_full(path: &Path) -> String {
    format!(
        "the disk of {} is full: free some space, or set XDG_CACHE_HOME to a folder on another disk, and start again",
        path.display()
    )
}

/// Bytes free on the disk of `path`, where `df` tells.
pub fn free_space(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kibibytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// One flush for a folder of ten thousand headers, where a flush for each would take minutes. Best effort: without
/// it a power cut right after the rename could leave empty files.
fn flush_file_system(path: &Path) {
    let _ = Command::new("sync").arg("--file-system").arg(path).stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_the_old_folder() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("made");
        make_folder(&path, |folder| Ok(fs::write(folder.join("a"), "1")?)).unwrap();
        let failed = make_folder(&path, |folder| {
            fs::write(folder.join("a"), "2")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_an_interrupted_run_do_not_matter() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("made");
        fs::create_dir_all(root.path().join("made.partial/deep")).unwrap();
        fs::create_dir_all(root.path().join("made.replaced")).unwrap();
        fs::create_dir_all(&path).unwrap();
        make_folder(&path, |folder| Ok(fs::write(folder.join("a"), "2")?)).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_repointed_and_a_folder_in_its_place_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("link");
        link(&place, Path::new("/one")).unwrap();
        link(&place, Path::new("/two")).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/two"));
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        assert!(link(&folder, Path::new("/one")).is_err());
        assert!(folder.is_dir());
    }

    #[test]
    fn a_full_disk_comes_with_its_remedy() {
        let full = anyhow::Error::new(io::Error::from(ErrorKind::StorageFull)).context("unpacking");
        let text = format!("{:#}", storage_remedy(full, Path::new("/c")));
        assert!(text.contains("XDG_CACHE_HOME"), "{text}");
        let other = anyhow::Error::new(io::Error::from(ErrorKind::NotFound));
        assert!(!format!("{:#}", storage_remedy(other, Path::new("/c"))).contains("XDG_CACHE_HOME"));
    }

    #[test]
    fn a_lock_excludes_and_is_released() {
        let root = tempfile::tempdir().unwrap();
        let lock = Lock::acquire(root.path(), "setup").unwrap();
        let other = File::options().write(true).open(root.path().join("setup.lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        other.try_lock().unwrap();
    }
}
