//! A file as a read-only slice of bytes.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::regular_file;

/// A whole file mapped into memory for reading; an empty file is an empty slice.
///
/// Pages are read when touched, so opening a file of many gigabytes costs nothing and the operating system may drop pages
/// again under memory pressure. The file must not be changed in place or cut short while it is mapped; replacing it by
/// renaming another file over it is fine.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::NotAFile`], and [`Error::Io`] if it cannot be opened or mapped.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, length) = regular_file::open(path)?;
        // Mapping zero bytes is an error on some systems.
        let map = if length == 0 { None } else { Some(map_read_only(&file, path)?) };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path that was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

/// The one use of `unsafe` in this crate.
#[allow(unsafe_code)]
fn map_read_only(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: the mapping is private to this process, read-only, and lives as long as the `Mmap` that owns it; slices borrow
    // from that owner. What the type system cannot rule out is another process that changes or truncates the file while it is
    // mapped. Model files are written once and replaced by renaming; the type's documentation states the requirement. Nothing
    // read from the map is trusted to stay the same between two reads: lengths and offsets are copied out and checked against
    // the length of the map before use, and `str`s made of mapped bytes are copied into owned strings.
    unsafe { Mmap::map(file) }.map_err(Error::io("map", path))
}
