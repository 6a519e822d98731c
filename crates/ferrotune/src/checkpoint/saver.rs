//! The trainer's checkpointer: copies in the step, writes in a thread of its own.

use super::{Writer, directory_name, list, read, write::Snapshot, written::Written};
use crate::{Error, Result};
use ferrotune_lora::Adapter;
use ferrotune_trainer::{BoxError, Checkpoint, Checkpointer, SavedRun};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};
use tch::Tensor;

enum Order {
    Write(Box<Snapshot>),
    /// Answers when all before it is written.
    Flush(mpsc::Sender<()>),
}

/// How long a checkpoint that could not be written waits for room.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Carries out orders until there are no more. What could not be written is tried again, until it is or there is a newer one.
fn write_orders(
    orders: &mpsc::Receiver<Order>,
    written: &Mutex<Written>,
    retry_after: Duration,
    mut write: impl FnMut(&mut Snapshot) -> Result<PathBuf>,
) {
    let mut unwritten = None;
    let mut are_over = false;
    while !are_over {
        let order = match unwritten {
            Some(_) => orders.recv_timeout(retry_after),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let mut flushed = None;
        match order {
            Ok(Order::Write(snapshot)) => unwritten = Some(snapshot),
            Ok(Order::Flush(done)) => flushed = Some(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => are_over = true,
        }
        if let Some(snapshot) = &mut unwritten {
            let step = snapshot.state.global_step;
            lock(written).begin(step);
            let result = write(snapshot);
            if lock(written).end(step, result) {
                unwritten = None;
            }
        }
        flushed.map(|done| done.send(()));
    }
}

/// Hands copies of a run to a thread that writes them.
pub(crate) struct Saver {
    output_dir: PathBuf,
    orders: mpsc::SyncSender<Order>,
    written: Arc<Mutex<Written>>,
    thread: JoinHandle<()>,
}

fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Saver {
    /// Starts the thread. `last` is the checkpoint that the run goes on from.
    ///
    /// # Errors
    /// [`Error::Write`] if the system gives no thread.
    pub fn start(mut writer: Writer, last: Option<PathBuf>) -> Result<Self> {
        let output_dir = writer.output_dir.clone();
        Self::start_with(output_dir, last, RETRY_AFTER, move |snapshot| writer.write(snapshot))
    }

    fn start_with(
        output_dir: PathBuf,
        last: Option<PathBuf>,
        retry_after: Duration,
        write: impl FnMut(&mut Snapshot) -> Result<PathBuf> + Send + 'static,
    ) -> Result<Self> {
        let written = Arc::new(Mutex::new(Written::from(last)));
        // One is written and one waits: a disk slower than that stops the steps rather than fill the memory.
        let (orders, received) = mpsc::sync_channel(1);
        let results = written.clone();
        let work = move || write_orders(&received, &results, retry_after, write);
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(work)
            .map_err(|source| Error::Write { path: output_dir.clone(), source })?;
        Ok(Self { output_dir, orders, written, thread })
    }

    /// What the trainer is given.
    pub fn checkpointer<'a>(&'a self, adapter: &'a Adapter) -> impl Checkpointer + 'a {
        Copies { saver: self, adapter }
    }

    fn write(&self, snapshot: Snapshot) {
        let step = snapshot.state.global_step;
        if self.orders.send(Order::Write(Box::new(snapshot))).is_err() {
            // The run is worth more than its checkpoint.
            lock(&self.written).fail(step, self.writer_is_gone(), "training goes on");
        }
    }

    /// Failures since this was last asked, in words.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.written).unsaid)
    }

    /// Waits until what was ordered is written.
    fn flush(&self) {
        let (done, is_done) = mpsc::channel();
        let _ = self.orders.send(Order::Flush(done));
        let _ = is_done.recv();
    }

    /// The newest whole checkpoint of the run with fewer steps than `step`.
    fn load_before(&self, step: usize) -> Option<SavedRun> {
        self.flush();
        // Until one of its own is written, those that lie there are of the run that is replaced.
        let last = lock(&self.written).last.clone()?;
        let is_earlier = |(of, path): (usize, PathBuf)| (of < step).then_some(path);
        let mut places: Vec<PathBuf> =
            list(&self.output_dir).into_iter().rev().filter_map(is_earlier).collect();
        if !places.contains(&last) {
            // The one that the run went on from may lie elsewhere.
            places.push(last);
        }
        for path in places {
            match read(&path) {
                Ok(saved) if saved.state.global_step < step => {
                    let parameters = saved.adapter.named_parameters();
                    return Some(SavedRun { state: saved.state, parameters, optimizer: saved.optimizer });
                }
                Ok(_) => {}
                Err(error) => lock(&self.written).unsaid.push(format!("warning: {error}")),
            }
        }
        None
    }

    /// Waits until everything is written, and ends.
    pub fn finish(self) -> Written {
        let gone = self.writer_is_gone();
        drop(self.orders);
        let ended = self.thread.join();
        let mut written = std::mem::take(&mut *lock(&self.written));
        if ended.is_err() {
            written.end_without_writer(gone);
        }
        written
    }

    /// The thread has left its panic on standard error.
    fn writer_is_gone(&self) -> Error {
        let source = io::Error::other("the thread that writes checkpoints has ended");
        Error::Write { path: self.output_dir.clone(), source }
    }
}

struct Copies<'a> {
    saver: &'a Saver,
    adapter: &'a Adapter,
}

impl Checkpointer for Copies<'_> {
    fn save(&mut self, checkpoint: Checkpoint<'_>) -> std::result::Result<(), BoxError> {
        let copy = |tensor: &Tensor| tensor.f_detach_copy();
        let adapter = self
            .adapter
            .weights()
            .iter()
            .map(|(path, a, b)| Ok((path.clone(), copy(a)?, copy(b)?)))
            .collect::<std::result::Result<_, tch::TchError>>()?;
        let state = checkpoint.state.clone();
        self.saver.write(Snapshot { state, adapter, optimizer: checkpoint.optimizer });
        Ok(())
    }

    fn load_best(&mut self, step: usize) -> std::result::Result<Option<Vec<(String, Tensor)>>, BoxError> {
        self.saver.flush();
        let path = self.saver.output_dir.join(directory_name(step));
        if !path.is_dir() {
            lock(&self.saver.written).miss_best(step);
            return Ok(None);
        }
        Ok(Some(read(&path)?.adapter.named_parameters()))
    }

    fn load_before(&mut self, step: usize) -> std::result::Result<Option<SavedRun>, BoxError> {
        Ok(self.saver.load_before(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;
    use ferrotune_lora::LoraConfig;
    use ferrotune_trainer::{OptimizerState, TrainerState};
    use std::{fs, path::Path};
    use tch::{Device, Kind};

    fn saver(folder: &Path) -> Saver {
        let train = folder.join("train.jsonl");
        fs::write(&train, "").unwrap();
        let output_dir = folder.join("out");
        let writer = Writer {
            config: LoraConfig::default(),
            recipe: Recipe::new(&output_dir, folder, &train),
            output_dir,
            save_total_limit: None,
            inputs: Vec::new(),
            replaced: Vec::new(),
        };
        Saver::start(writer, None).unwrap()
    }

    fn save(saver: &Saver, step: usize) {
        let mut state = TrainerState::default();
        state.global_step = step;
        let tensor = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let adapter = vec![("layers.0.q_proj".to_owned(), tensor([8, 3]), tensor([5, 8]))];
        // An update may have been left out.
        let optimizer = OptimizerState { step: step - 1, tensors: Vec::new() };
        saver.write(Snapshot { state, adapter, optimizer });
    }

    /// Waits until what was ordered is written.
    fn flush(saver: &Saver) {
        let (done, is_done) = mpsc::channel();
        saver.orders.send(Order::Flush(done)).unwrap();
        is_done.recv().unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_unless_a_file_of_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let saver = saver(folder.path());
        save(&saver, 3);
        let path = saver.finish().left().unwrap().unwrap();
        assert_eq!(list(&folder.path().join("out")), [(3, path.clone())]);
        let saved = read(&path).unwrap();
        assert_eq!((saved.state.global_step, saved.optimizer.step), (3, 2));
        assert_eq!(saved.adapter.named_parameters().len(), 2);
        for name in ["optimizer.safetensors", "trainer_state.json", "adapter_config.json", "hashes.json"] {
            let bytes = fs::read(path.join(name)).unwrap();
            fs::write(path.join(name), &bytes[1..]).unwrap();
            let error = read(&path).unwrap_err();
            let is_named = matches!(&error, Error::Checkpoint { reason, .. } if reason.contains(name));
            assert!(is_named && error.is_bad_input(), "{error}");
            fs::write(path.join(name), bytes).unwrap();
        }
        read(&path).unwrap();
    }

    #[test]
    fn a_run_goes_back_to_its_own_checkpoints_and_the_later_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let saver = saver(folder.path());
        let found = |saver: &Saver, step| {
            saver.load_before(step).map(|saved| (saved.state.global_step, saved.parameters.len()))
        };
        fs::create_dir_all(out.join("checkpoint-1")).unwrap();
        assert_eq!(found(&saver, 9), None, "that of another run");
        [2, 4, 6].into_iter().for_each(|step| save(&saver, step));
        assert_eq!(
            (found(&saver, 7), found(&saver, 6), found(&saver, 2)),
            (Some((6, 2)), Some((4, 2)), None)
        );
        fs::write(out.join("checkpoint-4/trainer_state.json"), "{}").unwrap();
        assert_eq!(found(&saver, 6), Some((2, 2)), "the one before a damaged one");
        assert!(saver.take_warnings().iter().any(|warning| warning.contains("checkpoint-4")));
        // The course on which the later ones were taken was given up.
        save(&saver, 3);
        saver.finish().left().unwrap();
        assert_eq!(list(&out).into_iter().map(|(step, _)| step).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_run_whose_last_checkpoint_failed_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let saver = saver(folder.path());
        save(&saver, 3);
        flush(&saver);
        // Nothing can be made beneath a file.
        fs::rename(folder.path().join("out"), folder.path().join("moved")).unwrap();
        fs::write(folder.path().join("out"), "").unwrap();
        save(&saver, 4);
        let written = saver.finish();
        assert!(matches!(&written.unsaid[..], [warning] if warning.contains("no checkpoint after step 4")));
        let error = written.left().unwrap_err();
        let is_named =
            matches!(&error, Error::NotSaved { saved: Some(path), .. } if path.ends_with("out/checkpoint-3"));
        assert!(is_named && error.is_bad_input(), "{error}");
    }

    /// What a place has in the end that takes nothing for so many attempts.
    fn written_after(failures: usize, retry_after: Duration, steps: &[usize]) -> Written {
        let mut attempts = 0;
        let write = move |snapshot: &mut Snapshot| {
            attempts += 1;
            let path = PathBuf::from(directory_name(snapshot.state.global_step));
            if attempts > failures { Ok(path) } else { Err(Error::OutputBusy { path }) }
        };
        let saver = Saver::start_with("out".into(), None, retry_after, write).unwrap();
        for &step in steps {
            save(&saver, step);
            while retry_after < RETRY_AFTER
                && lock(&saver.written).last.is_none()
                && !saver.thread.is_finished()
            {
                std::thread::yield_now();
            }
        }
        saver.finish()
    }

    #[test]
    fn what_could_not_be_written_is_tried_again_and_said_once() {
        let soon = Duration::from_millis(1);
        let written = written_after(5, soon, &[3]);
        assert_eq!(written.last.as_deref(), Some(Path::new("checkpoint-3")));
        let is_said = matches!(&written.unsaid[..], [failed, mended] if failed.contains("no checkpoint after step 3")
            && failed.contains("tried again") && mended.contains("checkpoint after step 3 is written"));
        assert!(is_said, "{:?}", written.unsaid);
        // A newer one takes its place; the end of the run is the last attempt.
        let written = written_after(1, RETRY_AFTER, &[3, 4]);
        assert!(written.failed.is_none() && written.last.as_deref() == Some(Path::new("checkpoint-4")));
        let written = written_after(1, RETRY_AFTER, &[3]);
        assert!(written.failed.is_none() && written.last.as_deref() == Some(Path::new("checkpoint-3")));
        assert!(written_after(2, RETRY_AFTER, &[3]).left().is_err());
    }

    #[test]
    fn a_writer_that_dies_stops_no_training_and_is_named_with_what_was_saved() {
        let died = |saved: &[usize], later: Option<usize>| {
            let write = |snapshot: &mut Snapshot| match snapshot.state.global_step {
                4 => panic!("the writer dies, as this test wants"),
                step => Ok(PathBuf::from(directory_name(step))),
            };
            let saver = Saver::start_with("out".into(), None, RETRY_AFTER, write).unwrap();
            for &step in saved {
                save(&saver, step);
            }
            while !saver.thread.is_finished() {
                std::thread::yield_now();
            }
            later.iter().for_each(|&step| save(&saver, step));
            let adapter_of_the_best = saver.orders.send(Order::Flush(mpsc::channel().0));
            assert!(adapter_of_the_best.is_err(), "nobody waits for a dead writer");
            saver.finish()
        };
        for (saved, later) in [(&[3, 4][..], Some(5)), (&[4], Some(5)), (&[3, 4], None)] {
            let written = died(saved, later);
            let words = format!("no checkpoint after step {}", later.unwrap_or(4));
            assert!(written.unsaid.iter().any(|warning| warning.contains(&words)), "{:?}", written.unsaid);
            let expected = saved.contains(&3).then(|| PathBuf::from("checkpoint-3"));
            let error = written.left().unwrap_err();
            let is_named = matches!(&error, Error::NotSaved { saved, .. } if *saved == expected)
                && error.to_string().contains("the thread that writes checkpoints has ended");
            assert!(is_named, "{error}");
        }
    }
}
