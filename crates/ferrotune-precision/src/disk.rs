//! How much room a disk has, and what to do when it has none.

use std::{io, path::Path};

/// Bytes that an ordinary user can still write where `path` lies, or will lie; `None` where the system does not say.
///
/// ```
/// # #[cfg(unix)]
/// assert!(ferrotune_precision::free_disk_bytes(std::env::temp_dir().join("new/file")).is_some());
/// ```
pub fn free_disk_bytes(path: impl AsRef<Path>) -> Option<u64> {
    let path = path.as_ref();
    let here = Path::new(".");
    free(
        path.ancestors()
            .find(|path| path.exists())
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or(here),
    )
}

/// The largest file that this process may write, `ulimit -f`, in bytes; `None` where there is no limit or the system does not say.
pub fn file_size_limit() -> Option<u64> {
    crate::memory::soft_limit(&std::fs::read_to_string("/proc/self/limits").ok()?, "Max file size")
}

#[cfg(unix)]
fn free(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

/// What lies at `path`, if it is anything but a regular file: opening a pipe waits for its other end, and a device such as `/dev/zero`
/// never ends. To be asked before it is opened.
///
/// # Errors
/// That of the system; also if nothing is there.
///
/// ```
/// assert_eq!(ferrotune_precision::irregular_file(&std::env::temp_dir())?, Some("a folder"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn irregular_file(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = std::fs::metadata(path)?.file_type();
    Ok(if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a folder")
    } else {
        Some("a pipe, a socket or a device")
    })
}

/// Makes a rename in `directory` durable; only Unix lets a directory be opened for this.
///
/// # Errors
/// That of the system.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { std::fs::File::open(directory)?.sync_all() } else { Ok(()) }
}

/// The error of a write to `path`, with the numbers and the remedy where the disk, a quota or a limit is at fault; others are handed
/// back as they are.
///
/// ```
/// use std::io::{Error, ErrorKind};
/// let error = ferrotune_precision::explain_write_error("results".as_ref(), Some(4096), ErrorKind::StorageFull.into());
/// assert_eq!(error.kind(), ErrorKind::StorageFull);
/// assert!(error.to_string().contains("4.0 KiB"));
/// ```
pub fn explain_write_error(path: &Path, needed: Option<u64>, error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => "make room there, or choose another place",
        io::ErrorKind::QuotaExceeded => "remove files of yours, or choose a place without a quota",
        io::ErrorKind::FileTooLarge => {
            "a file may not become that large here: raise the limit (`ulimit -f`), or choose another file system"
        }
        _ => return error,
    };
    let room = match error.kind() {
        io::ErrorKind::FileTooLarge => file_size_limit().map(|limit| (limit, "allowed")),
        _ => free_disk_bytes(path).map(|free| (free, "free")),
    };
    let needed = needed.map(|needed| format!("{} are to be written", readable_bytes(needed)));
    let room = room.map(|(bytes, what)| format!("{} are {what}", readable_bytes(bytes)));
    let numbers: Vec<String> = needed.into_iter().chain(room).collect();
    let text = [error.to_string(), numbers.join(" and ")].join(if numbers.is_empty() { "" } else { "; " });
    io::Error::new(error.kind(), format!("{text}: {remedy}"))
}

/// A number of bytes in the unit that suits it.
///
/// ```
/// assert_eq!(ferrotune_precision::readable_bytes(3 << 20), "3.0 MiB");
/// ```
pub fn readable_bytes(bytes: u64) -> String {
    readable_bytes_beside(bytes, bytes)
}

/// A number of bytes in the unit that suits the largest of those beside it, so that they compare at a glance.
///
/// ```
/// assert_eq!(ferrotune_precision::readable_bytes_beside(100 << 20, 3 << 30), "0.1 GiB");
/// assert_eq!(ferrotune_precision::readable_bytes_beside(5 << 20, 3 << 30), "under 0.1 GiB");
/// ```
pub fn readable_bytes_beside(bytes: u64, largest: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if largest < 1024 {
        return format!("{bytes} bytes");
    }
    let (mut value, mut largest) = (bytes as f64 / 1024.0, largest as f64 / 1024.0);
    let mut unit = 0;
    // 1008.1 MiB are 1.0 GiB: four digits before the point are too many.
    while largest >= 999.95 && unit + 1 < UNITS.len() {
        (value, largest) = (value / 1024.0, largest / 1024.0);
        unit += 1;
    }
    match bytes {
        1.. if value < 0.05 => format!("under 0.1 {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_unit_that_suits_them() {
        let cases = [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), ((1 << 20) - 1, "1.0 MiB")];
        for (bytes, text) in cases {
            assert_eq!(readable_bytes(bytes), text);
        }
        assert_eq!([999, 1008].map(|mib| readable_bytes(mib << 20)), ["999.0 MiB", "1.0 GiB"]);
        let beside = |mib: u64| readable_bytes_beside(mib << 20, 2000 << 20);
        assert_eq!([0, 7, 60, 2000].map(beside), ["0.0 GiB", "under 0.1 GiB", "0.1 GiB", "2.0 GiB"]);
        assert_eq!(readable_bytes(u64::MAX), "16384.0 PiB");
    }

    #[cfg(unix)]
    #[test]
    fn a_place_that_is_not_there_yet_has_the_room_of_the_folder_around_it() {
        let here = free_disk_bytes(".").unwrap();
        let within = 64 << 20; // others write too
        for path in ["no/such/folder/file", "file", ""] {
            assert!(free_disk_bytes(path).unwrap().abs_diff(here) < within, "{path}");
        }
    }

    #[test]
    fn only_what_room_would_mend_is_explained() {
        let path = Path::new(".");
        let limit = explain_write_error(path, Some(10), io::ErrorKind::FileTooLarge.into());
        assert!(limit.to_string().contains("10 bytes") && limit.to_string().contains("ulimit -f"), "{limit}");
        assert!(
            explain_write_error(path, None, io::ErrorKind::QuotaExceeded.into())
                .to_string()
                .contains("quota")
        );
        let other = explain_write_error(path, Some(10), io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(other.to_string(), io::Error::from(io::ErrorKind::NotFound).to_string());
    }
}
