//! What a path is that should lead to a model, before anything in it is read.

use crate::{
    error::{Error, Result},
    regular_file::is_there,
};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// The first line of what Git leaves in place of a large file that it has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Sees that a directory looks like a Hugging Face model with safetensors weights.
///
/// # Errors
/// [`Error::GitLfsPointer`] for a file that Git has not fetched; [`Error::NotAModel`] for a directory that is something else (a LoRA adapter,
/// a folder around GGUF files, weights as pickle), with what it is and what to do.
pub(crate) fn check_directory(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    if let Some(path) = files.iter().find(|path| is_lfs_pointer(path)) {
        return Err(Error::GitLfsPointer { path: path.clone() });
    }
    let has = |name: &str| is_there(&directory.join(name));
    let of_kind = |wanted: &[&str]| {
        files.iter().find(|path| {
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            wanted.contains(&extension.as_str()) && path.is_file()
        })
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_not =
        |found: String, remedy: String| Err(Error::NotAModel { path: directory.to_owned(), found, remedy });
    if has("adapter_config.json") && !has("config.json") {
        return is_not(
            "a LoRA adapter".to_owned(),
            "give the directory of its base model as the model, and this one as the adapter".to_owned(),
        );
    }
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return Ok(());
    }
    if let Some(path) = of_kind(&["gguf"]) {
        let remedy = format!("give the file itself, {}", path.display());
        return is_not(format!("a folder around {}", name(path)), remedy);
    }
    if let Some(path) = of_kind(&["bin", "pth", "pt", "ckpt"]) {
        return is_not(
            format!("weights as pickle ({}), which can run code when they are read", name(path)),
            "convert them where you trust them: load the model in Python with transformers and save it with \
             `save_pretrained` (safetensors)"
                .to_owned(),
        );
    }
    Ok(())
}

/// Sees that a file may be a GGUF file.
///
/// # Errors
/// [`Error::NotAModel`] for weights that are part of a directory, which should have been given; [`Error::GitLfsPointer`].
pub(crate) fn check_file(path: &Path) -> Result<()> {
    if is_lfs_pointer(path) {
        return Err(Error::GitLfsPointer { path: path.to_owned() });
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if !["safetensors", "bin", "pth", "pt", "json"].contains(&extension.as_str()) {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Err(Error::NotAModel {
        path: path.to_owned(),
        found: "one file of a model directory".to_owned(),
        remedy: format!("give the directory, {}", parent.display()),
    })
}

/// Whether Git has left a pointer in place of this file.
pub(crate) fn is_lfs_pointer(path: &Path) -> bool {
    // Anything larger is a file; a pipe or a device is not opened.
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1024) {
        return false;
    }
    let mut start = Vec::with_capacity(LFS_POINTER.len());
    let read = File::open(path).and_then(|file| file.take(LFS_POINTER.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == LFS_POINTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn not_a_model(files: &[(&str, &str)], words: &[&str]) {
        let error = check_directory(directory(files).path()).unwrap_err();
        assert!(matches!(error, Error::NotAModel { .. }), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word} is not in: {error}");
        }
    }

    #[test]
    fn a_directory_that_is_something_else_is_told_what_it_is() {
        not_a_model(
            &[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")],
            &["LoRA adapter", "base model"],
        );
        not_a_model(&[("x.Q4_1.gguf", "GGUF"), ("config.json", "{}")], &["x.Q4_1.gguf", "the file itself"]);
        not_a_model(
            &[("config.json", "{}"), ("pytorch_model.bin", "")],
            &["pickle", "pytorch_model.bin", "save_pretrained"],
        );
        for files in
            [&[("model.safetensors", "")][..], &[("model.safetensors.index.json", ""), ("old.bin", "")], &[]]
        {
            check_directory(directory(files).path()).unwrap();
        }
        for name in ["model.safetensors", "config.json"] {
            let error = check_file(&Path::new("models/x").join(name)).unwrap_err().to_string();
            assert!(error.contains("give the directory, models/x"), "{error}");
        }
        check_file(Path::new("x.gguf")).unwrap();
    }

    #[test]
    fn what_git_has_not_fetched_is_named() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        let folder = directory(&[("config.json", "{}"), ("model.safetensors", pointer)]);
        let error = check_directory(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::GitLfsPointer { path } if path.ends_with("model.safetensors")));
        assert!(error.to_string().contains("git lfs pull"), "{error}");
        let file = folder.path().join("m.gguf");
        fs::write(&file, pointer).unwrap();
        assert!(matches!(check_file(&file), Err(Error::GitLfsPointer { .. })));
    }
}
