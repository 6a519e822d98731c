//! Writing scores as JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::{Error, Metric, Result};

/// Writes `{"rougeL": {"value": ..., "low": ..., "high": ...}, ...}`, a key per metric, in the order given.
///
/// The scores are those of [`evaluate_all`](crate::evaluate_all), or of [`compare_predictions`](crate::compare_predictions) with
/// `{"before": ..., "after": ..., "change": ...}` for each metric.
///
/// The file is written under another name, flushed and renamed, so that it is never seen half written. What is not an
/// ordinary file (a pipe, a terminal) is written directly.
///
/// # Errors
/// [`Error::Write`] if that fails.
pub fn write_metrics<T: Serialize>(path: &Path, scores: &[(Metric, T)]) -> Result<()> {
    let write = || {
        let object: serde_json::Map<_, _> = scores
            .iter()
            .map(|(metric, score)| Ok((metric.name().to_owned(), serde_json::to_value(score)?)))
            .collect::<serde_json::Result<_>>()?;
        let mut text = serde_json::to_string_pretty(&object)?;
        text.push('\n');
        replace(path, text.as_bytes())
    };
    write().map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = match fs::metadata(path) {
        // Renaming would put a file in the place of the pipe or the device.
        Ok(existing) if !existing.is_file() => {
            return OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        // A link stays one: the file that it leads to is replaced.
        Ok(_) => fs::canonicalize(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        // The first error is the one to report; what is left of the file is best effort.
        _ = fs::remove_file(&temporary);
        return written;
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Estimate;

    const NONE: &[(Metric, Estimate)] = &[];

    #[test]
    fn keys_are_the_metrics_in_order_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.json");
        fs::write(&path, "old").unwrap();
        let estimate = Estimate { value: 33.125, low: 30.0, high: 36.5 };
        write_metrics(&path, &[(Metric::RougeL, estimate), (Metric::Rouge1, estimate)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(read["rougeL"]["value"], 33.125);
        assert_eq!(serde_json::from_value::<Estimate>(read["rouge1"].clone()).unwrap(), estimate);
        assert!(text.find("rougeL").unwrap() < text.find("rouge1").unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_pipe_a_pipe() {
        use std::io::Read as _;
        use std::os::fd::AsRawFd as _;
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_metrics(&link, NONE).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "{}\n");

        let (mut reader, writer) = io::pipe().unwrap();
        let pipe = folder.path().join("pipe");
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", writer.as_raw_fd()), &pipe).unwrap();
        if pipe.exists() {
            write_metrics(&pipe, NONE).unwrap();
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "{}\n");
            assert!(fs::symlink_metadata(&pipe).unwrap().is_symlink());
        }
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let error = write_metrics(Path::new("/no/such/folder/metrics.json"), NONE).unwrap_err();
        assert!(
            error.to_string().starts_with("/no/such/folder/metrics.json: cannot write metrics"),
            "{error}"
        );
    }
}
