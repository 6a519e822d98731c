//! A directory that appears whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImportSummary;
use crate::error::{Error, Result};

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
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Finished::Absent),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
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
    let Ok(text) = fs::read(directory.join(RECORD)) else { return other("was not made by an import") };
    let Ok(record) = serde_json::from_slice::<Record>(&text) else {
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
}

impl Staging {
    pub(super) fn new(target: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = parent.join(format!(".{name}.importing-{}-{unique}", std::process::id()));
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        Ok(Self { temporary, target: target.to_owned(), files: Vec::new() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    pub(super) fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|source| Error::JsonWrite { path: self.target.join(name), source })?;
        text.push(b'\n');
        self.bytes(name, &text)
    }

    pub(super) fn bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path(name);
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(content).map_err(Error::io("write", &path))?;
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
        sync_directory(&self.temporary)?;
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            return match inspect(&self.target, &summary.source_sha256)? {
                Finished::Same => Ok(false),
                Finished::Absent | Finished::Other(_) => {
                    Err(Error::io("rename a finished import to", &self.target)(error))
                }
            };
        }
        sync_directory(parent(&self.target))?;
        Ok(true)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `finish` there is nothing under this name any more.
        if let Err(error) = fs::remove_dir_all(&self.temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.temporary.display(), %error, "cannot remove a temporary directory");
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename durable. Only Unix lets a directory be opened for this.
fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(directory).and_then(|file| file.sync_all()).map_err(Error::io("flush", directory))?;
    }
    Ok(())
}
