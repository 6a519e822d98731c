//! The output directory: checked before the run, filled at its end.

use super::evaluation::{Pass, TestSet, rouge_l};
use crate::{
    Error, Result,
    atomic::write_atomically,
    report::{Output, Report, render},
};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a run leaves behind, and by which a finished one is recognised.
const FILES: [&str; 5] = ["adapter", "recipe.toml", "metrics.json", "predictions.jsonl", "report.html"];

/// The directory of a run. What was made for it goes with it, as long as nothing was written there.
#[derive(Debug)]
pub(super) struct OutputDirectory {
    path: PathBuf,
    /// The folders that were made, the innermost first.
    made: Vec<PathBuf>,
}

impl OutputDirectory {
    /// Makes the directory and sees that it can be written to; one that holds a run is refused unless `overwrite`.
    pub fn prepare(path: &Path, overwrite: bool) -> Result<Self> {
        if let (false, Some(found)) = (overwrite, FILES.iter().find(|name| path.join(name).exists())) {
            return Err(Error::OutputExists { path: path.to_owned(), found: (*found).to_owned() });
        }
        for (index, name) in FILES.iter().enumerate() {
            let path = path.join(name);
            let is_folder = index == 0;
            if path.exists() && path.is_dir() != is_folder {
                let expected = if is_folder { "a folder" } else { "a file" };
                return Err(Error::OutputInTheWay { path, expected });
            }
        }
        let refused = |source| Error::Write { path: path.to_owned(), source };
        let absent = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made = path.ancestors().take_while(absent).map(Path::to_owned).collect();
        let directory = Self { path: path.to_owned(), made };
        fs::create_dir_all(path).map_err(refused)?;
        // A directory on a read-only disk exists and is of no use: better known now than after the training.
        let probe = path.join(".ferrotune-probe");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(refused)?;
        Ok(directory)
    }

    /// Removes the results of the run that is being overwritten, so that old and new never stand side by side.
    pub fn clear(&self) -> Result<()> {
        for name in &FILES[1..] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Write { path, source });
                }
                _ => {}
            }
        }
        let path = self.path.join(FILES[0]);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        write_atomically(self.path.join(name), contents)
    }

    pub fn write_report(&self, report: &Report) -> Result<()> {
        self.write("metrics.json", report.metrics.to_json()?)?;
        self.write("report.html", render(report))
    }

    pub fn write_predictions(&self, outputs: &[Output]) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            prompt: &'a str,
            reference: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            before: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            after: &'a Option<String>,
        }
        let mut lines = String::new();
        for output in outputs {
            let Output { prompt, reference, before, after, .. } = output;
            let line = serde_json::to_string(&Line { prompt, reference, before, after });
            lines.push_str(&line.map_err(|source| Error::ToJson { what: "predictions.jsonl", source })?);
            lines.push('\n');
        }
        self.write("predictions.jsonl", lines)
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        // A folder that holds something is not removed, nor is one around it.
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

/// Prompts, references and answers side by side.
pub(super) fn outputs(test: &TestSet, before: Option<&Pass>, after: Option<&Pass>) -> Vec<Output> {
    let answer = |pass: Option<&Pass>, index: usize| pass.map(|pass| pass.answers[index].clone());
    (0..test.examples.len())
        .map(|index| {
            let reference = test.examples[index].completion.text().to_owned();
            let (before, after) = (answer(before, index), answer(after, index));
            Output {
                prompt: test.examples[index].prompt.text(),
                before_rouge_l: before.as_deref().map(|answer| rouge_l(&reference, answer)),
                after_rouge_l: after.as_deref().map(|answer| rouge_l(&reference, answer)),
                reference,
                before,
                after,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_run_is_refused_and_kept_unless_it_may_be_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/run");
        OutputDirectory::prepare(&path, false).unwrap().write("metrics.json", "{}").unwrap();
        fs::create_dir(path.join("adapter")).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        let error = OutputDirectory::prepare(&path, false).unwrap_err();
        assert!(matches!(&error, Error::OutputExists { .. }) && error.is_bad_input(), "{error}");
        assert!(path.join("metrics.json").exists());
        OutputDirectory::prepare(&path, true).unwrap().clear().unwrap();
        assert!(!path.join("metrics.json").exists() && !path.join("adapter").exists());
        assert!(path.join("notes.txt").exists(), "files of others stay");
        OutputDirectory::prepare(&path, false).unwrap();
    }

    #[test]
    fn a_directory_that_was_made_for_nothing_goes_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/run");
        drop(OutputDirectory::prepare(&path, false).unwrap());
        assert!(!folder.path().join("deep").exists());
        fs::create_dir(folder.path().join("deep")).unwrap();
        drop(OutputDirectory::prepare(&path, false).unwrap());
        assert!(folder.path().join("deep").exists(), "it was there before");
        OutputDirectory::prepare(&path, false).unwrap().write("metrics.json", "{}").unwrap();
        assert!(path.join("metrics.json").exists());
    }

    #[test]
    fn what_no_result_can_replace_is_told_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("report.html")).unwrap();
        let error = OutputDirectory::prepare(folder.path(), true).unwrap_err();
        assert!(matches!(&error, Error::OutputInTheWay { expected: "a file", .. }), "{error}");
        fs::remove_dir(folder.path().join("report.html")).unwrap();
        fs::write(folder.path().join("adapter"), "").unwrap();
        let error = OutputDirectory::prepare(folder.path(), true).unwrap_err();
        assert!(matches!(&error, Error::OutputInTheWay { expected: "a folder", .. }), "{error}");
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_told_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(OutputDirectory::prepare(&folder.path().join("file/run"), false).is_err());
    }
}
