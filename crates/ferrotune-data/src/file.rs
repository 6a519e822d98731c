//! Opening files: a pipe would wait for ever, and a device such as `/dev/zero` never ends.

use std::fs::{File, FileType};
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Opens a regular file, with its length.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let io_error = |cause| Error::Io { path: path.to_path_buf(), cause };
    // Before it is opened: opening a pipe waits for its other end.
    let kind = std::fs::metadata(path).map_err(io_error)?.file_type();
    if !kind.is_file() {
        return Err(Error::NotAFile { path: path.to_path_buf(), found: in_words(kind) });
    }
    let file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    Ok((file, length))
}

/// The bytes of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    let too_large = |bytes| Error::TooLarge { path: path.to_path_buf(), bytes, limit };
    if length > limit {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|cause| Error::Io { path: path.to_path_buf(), cause })?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

fn in_words(kind: FileType) -> &'static str {
    if kind.is_dir() { "a folder" } else { "a pipe, a socket or a device" }
}
