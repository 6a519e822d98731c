//! GGUF files as model paths.

use std::fs;
use std::path::{Path, PathBuf};

use super::directory::{self, Finished};
use super::import_open_file;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::identify::{check_directory, check_file};

/// Hexadecimal digits of the hash in the name of a cached directory.
const SHORT_HASH: usize = 12;

/// The Hugging Face directory that stands for a model path.
///
/// A directory is returned as it is. A GGUF file is imported into `cache_dir/models/<file stem>-<start of its SHA-256>/`, once:
/// the next call with the same content, wherever the file lies, finds the directory there. A cached directory that is damaged
/// or was made by an older importer is made anew.
///
/// # Errors
/// As [`import_gguf`](super::import_gguf); [`Error::NotAModel`] and [`Error::GitLfsPointer`] for what is something else.
///
/// # Examples
/// ```no_run
/// use ferrotune_models::import::hf_dir_for;
///
/// let directory = hf_dir_for("model.gguf".as_ref(), "cache".as_ref())?;
/// assert!(directory.join("config.json").exists());
/// # Ok::<(), ferrotune_models::Error>(())
/// ```
pub fn hf_dir_for(path: &Path, cache_dir: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        check_directory(path)?;
        return Ok(path.to_owned());
    }
    check_file(path)?;
    let file = GgufFile::open(path)?;
    let sha256 = directory::sha256(file.bytes());
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let target = cache_dir.join("models").join(format!("{stem}-{}", &sha256[..SHORT_HASH]));
    match directory::inspect(&target, &sha256)? {
        Finished::Same => return Ok(target),
        Finished::Absent => {}
        Finished::Other(reason) => {
            tracing::warn!(directory = %target.display(), reason, "importing the model anew");
            fs::remove_dir_all(&target).map_err(Error::io("remove", &target))?;
        }
    }
    import_open_file(&file, sha256, &target, &|_| true)?;
    Ok(target)
}
