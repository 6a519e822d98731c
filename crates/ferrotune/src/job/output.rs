//! The output directory: checked before the run, filled at its end.

use super::{
    evaluation::{Pass, TestSet},
    own_files,
    run_lock::RunLock,
};
use crate::{
    Error, Result,
    atomic::write_atomically,
    checkpoint,
    recipe::{RESULTS, Recipe, inputs},
    report::{Output, Report, render},
};
use ferrotune_lora::Adapter;
use ferrotune_precision::{explain_write_error, file_size_limit, free_disk_bytes};
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where they lie until the run is at its end.
pub(super) const UNFINISHED: &str = "unfinished";
/// Where those of the run before are moved in there, when the new ones take their places.
pub(super) const REPLACED: &str = "replaced";

/// The directory of a run. Results gather in a folder inside it and take their places together at the end, so that an earlier run stays
/// whole until this one is. Until it is dropped no other run gets the same directory. What was made for it goes with it, as long as nothing
/// was written there.
#[derive(Debug)]
pub(super) struct OutputDirectory {
    path: PathBuf,
    /// The folders that were made, the innermost first.
    made: Vec<PathBuf>,
    /// Of the whole run; gone before the folders are.
    lock: Option<RunLock>,
}

impl OutputDirectory {
    /// Makes the directory, locks it and sees that it can be written to. One that holds a run is refused unless `overwrite`, and so is one
    /// where something else would be lost with the run that is replaced.
    pub fn prepare(path: &Path, overwrite: bool) -> Result<Self> {
        Self::open(path, overwrite, true)
    }

    /// As [`OutputDirectory::prepare`], for a run that may have begun here: what it left is no reason to refuse.
    pub fn reopen(path: &Path) -> Result<Self> {
        Self::open(path, true, false)
    }

    fn open(path: &Path, overwrite: bool, is_new: bool) -> Result<Self> {
        if path.is_symlink() && !path.exists() {
            let what =
                "it is a link that leads nowhere; remove it, or make the folder that it should lead to";
            let source = io::Error::new(io::ErrorKind::NotFound, what);
            return Err(Error::Write { path: path.to_owned(), source });
        }
        let absent = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made = path.ancestors().take_while(absent).map(Path::to_owned).collect();
        let mut directory = Self { path: path.to_owned(), made, lock: None };
        // First, so that no run can end between what is seen here and the lock.
        directory.lock = Some(RunLock::take(path)?);
        let mut names = RESULTS.iter().chain([&UNFINISHED]);
        if let (false, Some(found)) = (overwrite, names.find(|name| path.join(name).exists())) {
            return Err(Error::OutputExists { path: path.to_owned(), found: (*found).to_owned() });
        }
        checkpoint::remove_unfinished(path);
        if let (false, true, Some((_, found))) = (overwrite, is_new, checkpoint::list(path).pop()) {
            let found = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::OutputExists { path: path.to_owned(), found });
        }
        directory.check_places()?;
        Ok(directory)
    }

    /// Sees that nothing but an earlier run lies where the results go.
    fn check_places(&self) -> Result<()> {
        for name in RESULTS.iter().chain([&UNFINISHED]) {
            let path = self.path.join(name);
            let is_folder = [RESULTS[0], UNFINISHED].contains(name);
            if path.exists() && (path.is_dir() != is_folder || (is_folder && path.is_symlink())) {
                let expected = if is_folder { "a folder" } else { "a file" };
                return Err(Error::OutputInTheWay { path, expected });
            }
        }
        own_files::check(&self.path, RESULTS[0])?;
        own_files::check(&self.path, UNFINISHED)
    }

    /// Sees that no input of the recipe lies in a folder that the run replaces.
    pub fn check_inputs(&self, recipe: &Recipe) -> Result<()> {
        let checkpoints = checkpoint::list(&self.path).into_iter().map(|(_, path)| path);
        let results = [RESULTS[0], UNFINISHED].into_iter().map(|name| self.path.join(name));
        for folder in results.chain(checkpoints) {
            let Ok(folder) = folder.canonicalize() else { continue };
            let is_inside = |path: &&Path| path.canonicalize().is_ok_and(|path| path.starts_with(&folder));
            if let Some(path) = inputs(recipe).map(|(_, path)| path).find(is_inside) {
                let expected = "no input of the run in a folder of results, which it replaces";
                return Err(Error::OutputInTheWay { path: path.to_owned(), expected });
            }
        }
        Ok(())
    }

    /// Sees that there is room for results and checkpoints of that size, the largest file of which has `largest` bytes.
    pub fn check_room(&self, result_bytes: u64, checkpoint_bytes: u64, largest: u64) -> Result<()> {
        let path = self.path.clone();
        let needed_bytes = result_bytes.saturating_add(checkpoint_bytes);
        if let Some(free_bytes) = free_disk_bytes(&path).filter(|&free| free < needed_bytes) {
            return Err(Error::NoRoom { path, needed_bytes, checkpoint_bytes, free_bytes });
        }
        if file_size_limit().is_some_and(|limit| limit < largest) {
            let source = explain_write_error(&path, Some(largest), io::ErrorKind::FileTooLarge.into());
            return Err(Error::Write { path, source });
        }
        Ok(())
    }

    /// Saves what a training made. Where that fails, the system's temporary folder is tried before the training is given up.
    pub fn save_trained(&self, adapter: &Adapter, recipe: &str) -> Result<()> {
        let unfinished = self.path.join(UNFINISHED);
        let saved = own_files::remove(&self.path, UNFINISHED)
            .and_then(|()| Ok(adapter.save(unfinished.join(RESULTS[0]))?))
            .and_then(|()| self.write(RESULTS[1], recipe));
        saved.map_err(|error| {
            let _ = own_files::remove(&self.path, UNFINISHED);
            let elsewhere = std::env::temp_dir().join(format!("ferrotune-adapter-{}", std::process::id()));
            match adapter.save(&elsewhere) {
                Ok(()) => Error::AfterTraining { adapter: elsewhere, source: Box::new(error) },
                Err(_) => error,
            }
        })
    }

    /// Gives every result its place, and removes those of the run that is being overwritten: all of it, or nothing.
    pub fn finish(&self) -> Result<()> {
        // Again: the training may have taken a while.
        self.check_places()?;
        let unfinished = self.path.join(UNFINISHED);
        let replaced = unfinished.join(REPLACED);
        fs::create_dir(&replaced).map_err(|source| Error::Write { path: replaced.clone(), source })?;
        let old = RESULTS.iter().map(|name| (self.path.join(name), replaced.join(name)));
        let new = RESULTS.iter().map(|name| (unfinished.join(name), self.path.join(name)));
        if let Err(error) = move_all(old.chain(new).filter(|(from, _)| from.exists())) {
            let _ = fs::remove_dir(&replaced);
            return Err(error);
        }
        if let Ok(folder) = fs::File::open(&self.path) {
            let _ = folder.sync_all();
        }
        own_files::remove(&self.path, UNFINISHED)
    }

    /// Ends a run that was trained and came no further: where its adapter is. It takes its place, unless an earlier run is there, which
    /// stays whole.
    pub fn keep(&self) -> PathBuf {
        let unfinished = self.path.join(UNFINISHED);
        for name in &RESULTS[2..] {
            let _ = fs::remove_file(unfinished.join(name));
        }
        let place = self.path.join(RESULTS[0]);
        let is_free = !RESULTS.iter().any(|name| self.path.join(name).exists());
        if is_free && self.finish().is_ok() { place } else { unfinished.join(RESULTS[0]) }
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        write_atomically(self.path.join(UNFINISHED).join(name), contents).map_err(|error| match error {
            // The place by which the user knows it.
            Error::Write { source, .. } => Error::Write { path: self.path.join(name), source },
            error => error,
        })
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
            let path = self.path.join("predictions.jsonl");
            lines.push_str(&line.map_err(|source| Error::Write { path, source: source.into() })?);
            lines.push('\n');
        }
        self.write("predictions.jsonl", lines)
    }
}

/// Renames one after the other; at the first that fails, those before it are undone.
fn move_all(moves: impl Iterator<Item = (PathBuf, PathBuf)>) -> Result<()> {
    let mut moved = Vec::new();
    for (from, to) in moves {
        if let Err(source) = fs::rename(&from, &to) {
            for (from, to) in moved.into_iter().rev() {
                let _ = fs::rename(to, from);
            }
            return Err(Error::Write { path: to, source });
        }
        moved.push((from, to));
    }
    Ok(())
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        self.lock = None;
        // A folder that holds something is not removed, nor is one around it.
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

/// Prompts, references and answers side by side.
pub(super) fn outputs(test: &TestSet, before: Option<&Pass>, after: Option<&Pass>) -> Result<Vec<Output>> {
    let answer = |pass: Option<&Pass>, index: usize| pass.map(|pass| pass.answers[index].clone());
    let score = |answer: &Option<String>, index: usize| {
        answer.as_deref().map_or(Ok(None), |answer| test.score(index, answer))
    };
    (0..test.examples.len())
        .map(|index| {
            let (before, after) = (answer(before, index), answer(after, index));
            Ok(Output {
                prompt: test.examples[index].prompt.text(),
                reference: test.examples[index].completion.text().to_owned(),
                before_score: score(&before, index)?,
                after_score: score(&after, index)?,
                before,
                after,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A finished run with one file, beside a file of somebody else's.
    fn earlier(path: &Path) -> OutputDirectory {
        let directory = OutputDirectory::prepare(path, false).unwrap();
        directory.write("metrics.json", "old").unwrap();
        directory.write("report.html", "old").unwrap();
        directory.finish().unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        drop(directory);
        OutputDirectory::prepare(path, true).unwrap()
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".ferrotune-lock");
        names.sort();
        names
    }

    #[test]
    fn a_directory_with_a_run_is_refused_and_replaced_only_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/run");
        drop(earlier(&path));
        let error = OutputDirectory::prepare(&path, false).unwrap_err();
        assert!(matches!(&error, Error::OutputExists { .. }) && error.is_bad_input(), "{error}");
        let directory = OutputDirectory::prepare(&path, true).unwrap();
        let error = OutputDirectory::prepare(&path, true).unwrap_err();
        assert!(matches!(&error, Error::OutputBusy { .. }), "{error}");
        directory.write("metrics.json", "new").unwrap();
        assert_eq!(fs::read_to_string(path.join("metrics.json")).unwrap(), "old");
        directory.finish().unwrap();
        assert_eq!(fs::read_to_string(path.join("metrics.json")).unwrap(), "new");
        assert_eq!(names(&path), ["metrics.json", "notes.txt"], "old results go, files of others stay");
    }

    #[test]
    fn moves_are_undone_if_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "a").unwrap();
        fs::write(path("b"), "b").unwrap();
        let moves = [("a", "old"), ("b", "a"), ("a", "no/such/folder")];
        let error = move_all(moves.iter().map(|(from, to)| (path(from), path(to)))).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
        assert_eq!(names(folder.path()), ["a", "b"]);
        assert_eq!(fs::read_to_string(path("a")).unwrap(), "a");
    }

    #[test]
    fn a_training_is_kept_in_its_place_or_beside_the_run_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let fresh = OutputDirectory::prepare(&folder.path().join("fresh"), false).unwrap();
        let train = |directory: &OutputDirectory| {
            fs::create_dir_all(directory.path.join("unfinished/adapter")).unwrap();
            directory.write("recipe.toml", "").unwrap();
            directory.write("metrics.json", "half of the results").unwrap();
            directory.keep()
        };
        assert_eq!(train(&fresh), folder.path().join("fresh/adapter"));
        assert_eq!(names(&fresh.path), ["adapter", "recipe.toml"]);
        let path = folder.path().join("again");
        let again = earlier(&path);
        assert_eq!(train(&again), path.join("unfinished/adapter"));
        assert_eq!(names(&path), ["metrics.json", "notes.txt", "report.html", "unfinished"]);
        assert_eq!(fs::read_to_string(path.join("metrics.json")).unwrap(), "old");
        fs::remove_file(path.join("metrics.json")).unwrap();
        fs::remove_file(path.join("report.html")).unwrap();
        drop(again);
        let error = OutputDirectory::prepare(&path, false).unwrap_err();
        assert!(matches!(&error, Error::OutputExists { found, .. } if found == "unfinished"), "{error}");
    }

    #[test]
    fn a_training_that_its_place_does_not_take_is_saved_elsewhere() {
        use ferrotune_lora::{Adaptable, LoraConfig, LoraLinear, inject};
        struct Model(LoraLinear);
        impl Adaptable for Model {
            fn visit_linears(
                &mut self,
                visit: &mut dyn FnMut(&mut LoraLinear) -> ferrotune_lora::Result<()>,
            ) -> ferrotune_lora::Result<()> {
                visit(&mut self.0)
            }
        }
        let weight = tch::Tensor::ones([3, 2], (tch::Kind::Float, tch::Device::Cpu));
        let mut model = Model(LoraLinear::new("layers.0.q_proj", &weight, None).unwrap());
        let key = ferrotune_kernels::RandomKey::from_seed(1);
        let adapter = inject(&mut model, "default", 0, &LoraConfig::default(), key).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let directory = OutputDirectory::prepare(&path, false).unwrap();
        // In the meantime somebody has put a file in the place of the directory.
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "").unwrap();
        match directory.save_trained(&adapter, "") {
            Err(Error::AfterTraining { adapter, source }) => {
                assert!(source.is_bad_input() && ferrotune_lora::load_adapter(&adapter).is_ok());
                fs::remove_dir_all(adapter).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn room_that_is_not_there_is_missed_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let directory = OutputDirectory::prepare(folder.path(), false).unwrap();
        directory.check_room(1, 1, 1).unwrap();
        let error = directory.check_room(u64::MAX, 0, 1).unwrap_err();
        assert!(matches!(&error, Error::NoRoom { .. }) && error.is_bad_input(), "{error}");
        assert!(!error.to_string().contains("checkpoints"), "{error}");
        let error = directory.check_room(1, u64::MAX - 1, 1).unwrap_err();
        assert!(error.to_string().contains("fewer checkpoints (`training.save_total_limit`)"), "{error}");
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
        assert!(path.join("unfinished/metrics.json").exists());
    }

    #[test]
    fn what_no_result_can_replace_is_told_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("report.html")).unwrap();
        let error = OutputDirectory::prepare(folder.path(), true).unwrap_err();
        assert!(matches!(&error, Error::OutputInTheWay { expected: "a file", .. }), "{error}");
        fs::remove_dir(folder.path().join("report.html")).unwrap();
        for name in ["adapter", "unfinished"] {
            fs::write(folder.path().join(name), "").unwrap();
            let error = OutputDirectory::prepare(folder.path(), true).unwrap_err();
            assert!(matches!(&error, Error::OutputInTheWay { expected: "a folder", .. }), "{error}");
            fs::remove_file(folder.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_told_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(OutputDirectory::prepare(&folder.path().join("file/run"), false).is_err());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
            let error = OutputDirectory::prepare(&folder.path().join("link"), false).unwrap_err();
            assert!(error.to_string().contains("leads nowhere"), "{error}");
        }
    }
}
