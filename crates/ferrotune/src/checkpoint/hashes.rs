//! What a run was made from, and what a checkpoint holds, by content.

use crate::{
    Error, Result,
    recipe::{Recipe, inputs},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// A file that a run reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InputFile {
    /// The recipe's key of it, or of the folder that it lies in.
    pub key: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
    pub sha256: String,
}

/// `hashes.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hashes {
    /// Data, model and tokenizer.
    pub inputs: Vec<InputFile>,
    /// The other files of the checkpoint.
    pub files: BTreeMap<String, String>,
}

impl InputFile {
    /// The data files, and the model's files with those of its tokenizer. A file that has the size and the time of one in `known` is taken to
    /// be that one and not read.
    pub fn all(recipe: &Recipe, known: &[Self]) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for (key, path) in inputs(recipe) {
            if path.is_dir() {
                let entries =
                    fs::read_dir(path).map_err(|source| Error::Read { path: path.into(), source })?;
                let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
                files.retain(|path| path.is_file() && is_of_model(path));
                files.sort();
                for file in files {
                    found.push(Self::new(key, &file, known)?);
                }
            } else {
                found.push(Self::new(key, path, known)?);
            }
        }
        Ok(found)
    }

    fn new(key: &str, path: &Path, known: &[Self]) -> Result<Self> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |time| time.as_nanos() as u64);
        let bytes = metadata.len();
        let same = |file: &&Self| {
            file.path == path && file.bytes == bytes && file.modified == modified && modified != 0
        };
        let sha256 = match known.iter().find(same) {
            Some(file) => file.sha256.clone(),
            None => sha256(path)?,
        };
        Ok(Self { key: key.to_owned(), path: path.to_owned(), bytes, modified, sha256 })
    }
}

/// Whether a file of a model's folder is part of what the run computes with.
fn is_of_model(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("json" | "safetensors" | "jinja" | "gguf" | "model"))
}

/// The SHA-256 of a file, in hexadecimal.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let (mut digest, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => break,
            read => digest.update(&piece[..read]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_only_if_its_size_or_time_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        fs::write(&path, "abc").unwrap();
        let file = InputFile::new("data.train", &path, &[]).unwrap();
        assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let known = InputFile { sha256: "known".into(), ..file.clone() };
        assert_eq!(InputFile::new("data.train", &path, std::slice::from_ref(&known)).unwrap(), known);
        fs::write(&path, "abcd").unwrap();
        assert_ne!(InputFile::new("data.train", &path, &[known]).unwrap().sha256, "known");
    }
}
