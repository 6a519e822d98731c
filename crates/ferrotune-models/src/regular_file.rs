//! Opening files: a pipe would wait for ever, and a device such as `/dev/zero` never ends.

use crate::error::{Error, Result};
use ferrotune_precision::irregular_file;
use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// A JSON file larger than this is not one of a model.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Opens a regular file, with its length.
///
/// # Errors
/// [`Error::NotAFile`] for a folder, a pipe, a socket or a device; [`Error::Io`].
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    if let Some(found) = irregular_file(path).map_err(Error::io("open", path))? {
        return Err(Error::NotAFile { path: path.to_owned(), found });
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read the size of", path))?.len();
    Ok((file, length))
}

/// An open file that several threads read, each at its own place.
#[derive(Debug)]
pub(crate) struct SharedFile {
    file: File,
    /// Held from setting the place to the end of reading there.
    #[cfg(not(unix))]
    place: std::sync::Mutex<()>,
}

impl SharedFile {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(not(unix))]
            place: std::sync::Mutex::default(),
        }
    }

    /// Reads as many bytes as there is room for, from `place` on.
    #[cfg(unix)]
    pub(crate) fn read_at(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, place)
    }

    /// Reads as many bytes as there is room for, from `place` on.
    #[cfg(not(unix))]
    pub(crate) fn read_at(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        let _place = self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::Start(place))?;
        file.read_exact(bytes)
    }
}

/// The text of a JSON file.
///
/// # Errors
/// As [`open`], and [`Error::TooLarge`].
pub(crate) fn read_json(path: &Path) -> Result<String> {
    let (file, _) = open(path)?;
    let mut text = String::new();
    // It may grow while it is read.
    let read = file.take(MAX_JSON_BYTES + 1).read_to_string(&mut text);
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::TooLarge { path: path.to_owned(), limit: MAX_JSON_BYTES });
    }
    read.map_err(Error::io("read", path))?;
    Ok(text)
}

/// Whether there is anything of that name, be it a link that leads nowhere: what is there and cannot be read is a mistake.
pub(crate) fn is_there(path: &Path) -> bool {
    !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open(folder.path()), Err(Error::NotAFile { found: "a folder", .. })));
        assert!(matches!(open(&folder.path().join("absent")), Err(Error::Io { .. })));
        #[cfg(unix)]
        {
            let error = read_json(Path::new("/dev/zero")).unwrap_err();
            assert!(matches!(error, Error::NotAFile { found, .. } if found.contains("device")));
        }
    }

    #[test]
    fn json_has_a_largest_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        // It is a hole: no byte of it is on the disk.
        File::create(&path).unwrap().set_len(MAX_JSON_BYTES + 1).unwrap();
        let error = read_json(&path).unwrap_err();
        assert!(
            matches!(&error, Error::TooLarge { .. }) && error.to_string().contains("64.0 MiB"),
            "{error}"
        );
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_json(&path).unwrap(), "{}");
    }
}
