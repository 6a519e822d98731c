//! A directory that appears whole or not at all.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImportSummary;
use crate::error::{Error, Result};
use crate::regular_file;
use ferrotune_precision::sync_directory;

/// Written last into the directory; says what it was made from.
const RECORD: &str = "import.json";
/// Rises when the importer writes other files for the same input.
pub(super) const REVISION: u32 = 1;

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of `import.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    importer: String,
    revision: u32,
    source_file: String,
    source_bytes: u64,
    source_sha256: String,
    files: Vec<RecordedFile>,
}

#[derive(Serialize, Deserialize)]
struct RecordedFile {
    name: String,
    bytes: u64,
}

/// What is at the place where an import should go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// Nothing, or an empty directory.
    Absent,
    /// A finished import of the same file by the same revision of the importer.
    Same,
    /// Something else, described.
    Other(String),
}

/// Looks at the place where an import of the file with this hash should go.
pub(super) fn inspect(directory: &Path, source_sha256: &str) -> Result<Finished> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Finished::Absent),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Ok(Finished::Other("is not a directory".to_owned()));
        }
        Err(error) => return Err(Error::io("list", directory)(error)),
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(Finished::Absent);
            }
        }
    }
    let other = |reason: &str| Ok(Finished::Other(reason.to_owned()));
    let Ok(text) = regular_file::read_json(&directory.join(RECORD)) else {
        return other("was not made by an import");
    };
    let Ok(record) = serde_json::from_str::<Record>(&text) else {
        return other("has an `import.json` that cannot be read");
    };
    if record.source_sha256 != source_sha256 {
        return Ok(Finished::Other(format!("was imported from another file, {}", record.source_file)));
    }
    if record.revision != REVISION {
        return other("was imported by another version of this program");
    }
    for file in record.files {
        let bytes = fs::metadata(directory.join(&file.name)).map_or(0, |metadata| metadata.len());
        if bytes != file.bytes {
            let RecordedFile { name, bytes: expected } = file;
            return Ok(Finished::Other(format!(
                "is damaged: {name} has {bytes} bytes instead of {expected}"
            )));
        }
    }
    Ok(Finished::Same)
}

/// A directory under a temporary name beside its final place; removed again unless it is finished.
pub(super) struct Staging {
    temporary: PathBuf,
    target: PathBuf,
    files: Vec<RecordedFile>,
    /// The directory, locked where the file system can: the lock goes with this process, however that ends.
    _lock: Option<File>,
}

impl Staging {
    pub(super) fn new(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.importing-");
        remove_abandoned(parent, &prefix);
        loop {
            let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
            let temporary = parent.join(format!("{prefix}{}-{unique}", std::process::id()));
            match fs::create_dir(&temporary) {
                Ok(()) => {}
                // Left by a process of the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create", temporary)(error)),
            }
            // Before it is locked another import may take it for abandoned; then the next name is tried.
            let lock = File::open(&temporary).ok();
            let taken =
                lock.as_ref().is_some_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
            if !taken && temporary.exists() {
                return Ok(Self { temporary, target: target.to_owned(), files: Vec::new(), _lock: lock });
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    pub(super) fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::io("write", self.target.join(name))(error.into()))?;
        text.push(b'\n');
        self.bytes(name, &text)
    }

    pub(super) fn bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let target = self.target.join(name);
        let mut file = File::create_new(self.path(name)).map_err(Error::io("create", &target))?;
        file.write_all(content).map_err(Error::io("write", &target))?;
        self.adopt(name)
    }

    /// Takes a file of the temporary directory into the record, once it is safely on the disk.
    pub(super) fn adopt(&mut self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.share(&path)?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        file.sync_all().map_err(Error::io("flush", &path))?;
        let bytes = file.metadata().map_err(Error::io("read the size of", &path))?.len();
        self.files.push(RecordedFile { name: name.to_owned(), bytes });
        Ok(())
    }

    /// Gives a file that another library made for its owner alone the permissions of our own files.
    fn share(&self, path: &Path) -> Result<()> {
        if let Some(ours) = self.files.first().map(|file| self.path(&file.name)) {
            let permissions =
                fs::metadata(&ours).map_err(Error::io("read the permissions of", &ours))?.permissions();
            fs::set_permissions(path, permissions).map_err(Error::io("set the permissions of", path))?;
        }
        Ok(())
    }

    /// Writes the record and gives the directory its name. False if another process got there first with the same import.
    pub(super) fn finish(mut self, source: &Path, summary: &ImportSummary) -> Result<bool> {
        let record = Record {
            importer: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
            revision: REVISION,
            source_file: source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            source_bytes: summary.source_bytes,
            source_sha256: summary.source_sha256.clone(),
            files: std::mem::take(&mut self.files),
        };
        self.json(RECORD, &record)?;
        sync_directory(&self.temporary).map_err(Error::io("flush", &self.temporary))?;
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            return match inspect(&self.target, &summary.source_sha256)? {
                Finished::Same => Ok(false),
                Finished::Absent | Finished::Other(_) => {
                    Err(Error::io("rename a finished import to", &self.target)(error))
                }
            };
        }
        sync_directory(parent(&self.target)).map_err(Error::io("flush", parent(&self.target)))?;
        Ok(true)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `finish` there is nothing under this name any more.
        if let Err(error) = fs::remove_dir_all(&self.temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.temporary.display(), %error, "cannot remove a temporary directory");
        }
    }
}

/// Removes what imports to the same place left that were killed: directories of that prefix that nobody holds a lock on.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        // Where directories cannot be locked, nobody knows whether it is in use: it stays.
        if let Ok(directory) = File::open(&path)
            && directory.try_lock().is_ok()
        {
            tracing::info!(directory = %path.display(), "removing what an interrupted import left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_import_left_goes_and_what_another_one_uses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let left = folder.path().join(".model.importing-1-0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("model.safetensors"), "half").unwrap();
        let used = Staging::new(&target).unwrap();
        assert!(!left.exists());
        let another = Staging::new(&target).unwrap();
        assert!(used.temporary.exists() && another.temporary.exists());
        // Another model's, or a file of somebody's.
        fs::create_dir(folder.path().join(".other.importing-1-0")).unwrap();
        drop((used, another));
        let _third = Staging::new(&target).unwrap();
        assert!(folder.path().join(".other.importing-1-0").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
