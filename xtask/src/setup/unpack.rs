//! Chosen files out of a wheel.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use zip::ZipArchive;

use crate::progress;

/// What to take: a file, or everything under a folder (both names then end in `/`).
pub struct Take {
    pub from: &'static str,
    pub to: &'static str,
}

impl Take {
    /// Where the entry goes, if it is one to take.
    fn target(&self, entry: &str) -> Option<String> {
        if self.from.ends_with('/') {
            let rest = entry.strip_prefix(self.from).filter(|rest| !rest.is_empty())?;
            Some(format!("{}{rest}", self.to))
        } else {
            (entry == self.from).then(|| self.to.to_string())
        }
    }
}

/// Unpacks what `takes` names from the wheel into `folder`.
///
/// # Errors
/// If the wheel is no zip file, misses something, or has an entry that leaves the folder; if the disk is full.
pub fn unpack(wheel: &Path, takes: &[Take], folder: &Path) -> Result<()> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let context = || format!("cannot unpack {name}");
    let file = File::open(wheel).with_context(context)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).with_context(context)?;
    let mut chosen = Vec::new();
    let mut total = 0;
    let mut found = vec![false; takes.len()];
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).with_context(context)?;
        let path = entry.name().with_context(context)?.into_owned();
        for (take, found) in takes.iter().zip(&mut found) {
            let Some(target) = take.target(&path) else { continue };
            if entry.is_dir() {
                continue;
            }
            if entry.enclosed_name().is_none() || entry.is_symlink() {
                bail!("{name} has an entry that leaves its folder: {path:?}");
            }
            *found = true;
            total += entry.size();
            chosen.push((index, target));
        }
    }
    if let Some((take, _)) = takes.iter().zip(&found).find(|(_, found)| !**found) {
        bail!("{name} has no {}", take.from);
    }
    let bar = progress::bytes(total, format!("unpacking {name}"));
    for (index, target) in chosen {
        one(&mut archive, index, &folder.join(target), &bar).with_context(context)?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn one(
    archive: &mut ZipArchive<BufReader<File>>,
    index: usize,
    target: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut entry = archive.by_index(index)?;
    let size = entry.size();
    // The checksum of the zip entry is compared at its end; `take` bounds an entry that lies about its size.
    let written =
        std::io::copy(&mut bar.wrap_read(entry.by_ref().take(size + 1)), &mut File::create(target)?)?;
    if written != size {
        bail!("{} has {written} bytes or more, its entry says {size}", target.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    const TAKES: [Take; 2] = [
        Take { from: "torch/include/", to: "include/" },
        Take { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
    ];

    fn wheel(folder: &Path, entries: &[&str]) -> PathBuf {
        let path = folder.join("tiny.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for name in entries {
            let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file(*name, options).unwrap();
            zip.write_all(format!("contents of {name}").as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn only_what_is_named_is_taken_and_goes_to_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let entries =
            ["torch/include/a/b.h", "torch/lib/libc10.so", "torch/lib/libtorch_cuda.so", "torch/include.py"];
        let path = wheel(folder.path(), &entries);
        let out = folder.path().join("out");
        unpack(&path, &TAKES, &out).unwrap();
        assert_eq!(fs::read_to_string(out.join("include/a/b.h")).unwrap(), "contents of torch/include/a/b.h");
        assert_eq!(fs::read_to_string(out.join("lib/libc10.so")).unwrap(), "contents of torch/lib/libc10.so");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
        assert_eq!(fs::read_dir(out.join("lib")).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &["torch/include/a.h"]);
        let error = unpack(&path, &TAKES, &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("torch/lib/libc10.so"), "{error}");
    }

    #[test]
    fn an_entry_that_leaves_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &["torch/include/../../../evil.h", "torch/lib/libc10.so"]);
        let error = unpack(&path, &TAKES, &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("leaves its folder"), "{error}");
        assert!(!folder.path().join("out").exists());
    }

    #[test]
    fn a_damaged_wheel_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &["torch/include/a.h", "torch/lib/libc10.so"]);
        let mut bytes = fs::read(&path).unwrap();
        let place = bytes.windows(8).position(|window| window == b"contents").unwrap();
        bytes[place] = b'C';
        fs::write(&path, &bytes).unwrap();
        assert!(unpack(&path, &TAKES, &folder.path().join("out")).is_err());
        fs::write(&path, "no zip").unwrap();
        assert!(unpack(&path, &TAKES, &folder.path().join("out")).is_err());
    }
}
