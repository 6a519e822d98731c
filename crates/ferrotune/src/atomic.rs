//! Files that are there whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ferrotune_precision::explain_write_error;

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, whenever the program is killed.
///
/// The bytes go into a temporary file in the same folder, which is flushed to the disk and renamed over
/// `path`; then the folder is flushed. Missing parent folders are made. A link keeps its place: what it leads to is
/// replaced. What is no file, such as `/dev/null` or a named pipe, is written to and not replaced.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("metrics.json");
/// ferrotune::atomic::write_atomically(&path, b"{}\n")?;
/// assert_eq!(std::fs::read(&path)?, b"{}\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Write`] with the path and what the operating system says, and for a full disk how much room is missing; the old file,
/// if any, is then untouched and no temporary file stays behind.
pub fn write_atomically(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let (path, bytes) = (path.as_ref(), bytes.as_ref());
    write(path, bytes).map_err(|source| {
        let source = explain_write_error(path, Some(bytes.len() as u64), source);
        Error::Write { path: path.to_owned(), source }
    })
}

/// Sees that [`write_atomically`] can write to `path`, before the work whose result goes there. Nothing is left behind, and missing
/// folders are not made.
///
/// # Errors
/// [`Error::Write`] if `path` is a folder or a link that leads nowhere, leads through a file, or lies where nothing can be written.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let refused = |source| Error::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(refused(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file")));
    }
    file_name(path).map_err(refused)?;
    if is_special(path) {
        return Ok(());
    }
    let path = target(path).map_err(refused)?;
    let folder = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let (file, temporary) = create_sibling(folder, "probe").map_err(refused)?;
    drop(file);
    fs::remove_file(&temporary).map_err(refused)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = file_name(path)?;
    if is_special(path) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let path = &target(path)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;

    let (mut file, temporary) = create_sibling(folder, &name.to_string_lossy())?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // Without this a power cut may undo the rename. Not every platform can open a folder.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Where a link leads, or the path itself.
fn target(path: &Path) -> io::Result<PathBuf> {
    if !path.is_symlink() {
        return Ok(path.to_owned());
    }
    fs::canonicalize(path).map_err(|error| {
        let what = "it is a link that leads nowhere; remove it, or name the file that it should lead to";
        io::Error::new(error.kind(), what)
    })
}

fn file_name(path: &Path) -> io::Result<&OsStr> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a file name");
    path.file_name().ok_or_else(nameless)
}

/// Whether something is there that is neither file nor folder: it stands for a reader, which a rename would cut off.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Creates a new file beside the target; a name that is taken is never reused. It is locked, so that others can tell it from what a
/// killed program left; that is removed.
fn create_sibling(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // A file name may have 255 bytes; the temporary one must not be the longer for it.
    let stem: String = name.chars().take(40).collect();
    remove_abandoned(folder, &format!(".{stem}."));
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".{stem}.{}-{count}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            // Before it was locked another program may have taken it for abandoned.
            Ok(file) if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !path.exists() => {}
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes the temporary files of that beginning that no program holds a lock on.
fn remove_abandoned(folder: &Path, beginning: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // `.NAME.PID-COUNT.tmp`
        let number = name.strip_prefix(beginning).and_then(|rest| rest.strip_suffix(".tmp"));
        let is_temporary = number.is_some_and(|number| {
            number.contains('-') && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
        });
        if is_temporary
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        write_atomically(&path, "old").unwrap();
        write_atomically(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(dir.path()), ["report.html"]);
    }

    #[test]
    fn what_a_killed_program_left_goes_and_what_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".f.1-0.tmp", ".g.1-0.tmp", ".f.notes.tmp"] {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        let (_file, path) = create_sibling(dir.path(), "f").unwrap();
        write_atomically(dir.path().join("f"), "whole").unwrap();
        let in_use = path.file_name().unwrap().to_str().unwrap();
        let mut expected = vec![".f.notes.tmp", ".g.1-0.tmp", "f", in_use];
        expected.sort_unstable();
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn makes_missing_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/recipe.toml");
        write_atomically(&path, "x = 1").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x = 1");
    }

    #[test]
    fn a_failed_write_names_the_file_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomically(&path, "x").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(names(dir.path()), ["taken"]);
        assert!(write_atomically("/", "x").is_err());
    }

    #[test]
    fn says_before_the_work_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for path in ["file", "new", "deep/er/new"] {
            check_writable(dir.path().join(path)).unwrap();
        }
        for path in ["", "file/new", "file/deep/new"] {
            let error = check_writable(dir.path().join(path)).unwrap_err();
            assert!(error.is_bad_input(), "{error}");
        }
        check_writable("a-file-of-this-folder").unwrap();
        check_writable("").unwrap_err();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_keep_their_place_and_what_is_no_file_is_not_replaced() {
        use std::os::unix::{fs::FileTypeExt, fs::symlink, net::UnixListener};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_atomically(path("real"), "old").unwrap();
        symlink("real", path("link")).unwrap();
        write_atomically(path("link"), "new").unwrap();
        assert!(path("link").is_symlink());
        assert_eq!(fs::read_to_string(path("real")).unwrap(), "new");

        symlink("nowhere", path("dangling")).unwrap();
        for error in [write_atomically(path("dangling"), "x"), check_writable(path("dangling"))] {
            assert!(error.unwrap_err().to_string().contains("leads nowhere"));
        }
        fs::remove_file(path("dangling")).unwrap();

        // Writing to a socket by its path fails: what matters is that it is still one.
        let _listener = UnixListener::bind(path("socket")).unwrap();
        assert!(write_atomically(path("socket"), "x").is_err());
        assert!(fs::metadata(path("socket")).unwrap().file_type().is_socket());
        assert_eq!(names(dir.path()), ["link", "real", "socket"]);
        check_writable("/dev/null").unwrap();
        write_atomically("/dev/null", "x").unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named_with_the_room_that_is_missing() {
        // The one device that is always full.
        let error = write_atomically("/dev/full", "12345678").unwrap_err();
        assert!(matches!(&error, Error::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert!(error.is_bad_input() && error.to_string().contains("8 bytes are to be written"), "{error}");
    }

    #[test]
    fn takes_the_longest_file_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n".repeat(255));
        write_atomically(&path, "x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }

    #[test]
    fn a_reader_never_sees_half_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomically(&path, vec![b'0'; 1 << 20]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..20_u8 {
                    write_atomically(&path, vec![b'0' + round; 1 << 20]).unwrap();
                }
            });
            for _ in 0..50 {
                let bytes = fs::read(&path).unwrap();
                assert_eq!(bytes.len(), 1 << 20);
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            }
        });
    }
}
