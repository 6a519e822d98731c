//! One run at a time in an output directory.

use crate::{Error, Result};
use ferrotune_precision::explain_write_error;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

const NAME: &str = ".ferrotune-lock";

/// A locked file in an output directory, removed with this. A dead process holds no lock: what it left is taken over.
#[derive(Debug)]
pub(crate) struct RunLock {
    path: PathBuf,
    /// Open as long as the lock is held.
    _file: File,
}

impl RunLock {
    /// Makes the directory if it is not there, and locks it. A directory that cannot be written to is found out by this too.
    ///
    /// # Errors
    /// [`Error::OutputBusy`] if another run has the lock; [`Error::Write`].
    pub fn take(directory: &Path) -> Result<Self> {
        let refused = |source| {
            let source = explain_write_error(directory, None, source);
            Error::Write { path: directory.to_owned(), source }
        };
        let path = directory.join(NAME);
        loop {
            fs::create_dir_all(directory).map_err(refused)?;
            // Read as well: opening a pipe of that name only to write would wait.
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = match file {
                // A run that ends takes the directory with it that it made.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => continue,
                file => file.map_err(refused)?,
            };
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(Error::OutputBusy { path: directory.to_owned() });
            }
            // On a file system without locks it goes without. One that was removed in the meantime locks nobody out.
            if is_at(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if identity(&a) == identity(&b))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_what_a_dead_process_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::take(folder.path()).unwrap();
        let error = RunLock::take(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::OutputBusy { .. }) && error.is_bad_input(), "{error}");
        drop(first);
        assert!(!folder.path().join(NAME).exists());
        fs::write(folder.path().join(NAME), "").unwrap();
        drop(RunLock::take(folder.path()).unwrap());
        assert!(!folder.path().join(NAME).exists());
    }

    #[test]
    fn never_two_at_once_though_the_file_comes_and_goes() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let Ok(lock) = RunLock::take(folder.path()) else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }
}
