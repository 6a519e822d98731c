//! The trainer's checkpointer: copies in the step, writes in a thread of its own.

use super::{Writer, directory_name, read, write::Snapshot};
use crate::{Error, Result};
use ferrotune_lora::Adapter;
use ferrotune_trainer::{BoxError, Checkpoint, Checkpointer};
use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
};
use tch::Tensor;

/// What became of the checkpoints of a run.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The last whole one.
    pub last: Option<PathBuf>,
    /// The last that could not be written, and why. A later one that was written takes it away.
    pub failed: Option<(usize, Error)>,
    /// The step of the last whose writing has begun.
    begun: usize,
    /// Failures that nobody has been told of.
    pub unsaid: Vec<String>,
}

impl Written {
    /// The checkpoint that a run which is left goes on from.
    ///
    /// # Errors
    /// [`Error::NotSaved`] if what it did last is in none.
    pub fn left(self) -> Result<Option<PathBuf>> {
        match self.failed {
            Some((_, error)) => Err(Error::NotSaved { saved: self.last, source: Box::new(error) }),
            None => Ok(self.last),
        }
    }

    fn fail(&mut self, step: usize, error: Error) {
        tracing::warn!(step, %error, "no checkpoint");
        self.unsaid.push(format!(
            "warning: no checkpoint after step {step}: {error}; training goes on, and the next one is tried"
        ));
        self.failed = Some((step, error));
    }
}

enum Order {
    Write(Box<Snapshot>),
    /// Answers when all before it is written.
    Flush(mpsc::Sender<()>),
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
        let written = Arc::new(Mutex::new(Written { last, ..Written::default() }));
        // One is written and one waits: a disk slower than that stops the steps rather than fill the memory.
        let (orders, received) = mpsc::sync_channel(1);
        let results = written.clone();
        let work = move || {
            for order in received {
                match order {
                    Order::Flush(done) => drop(done.send(())),
                    Order::Write(mut snapshot) => {
                        let step = snapshot.state.global_step;
                        lock(&results).begun = step;
                        let result = writer.write(&mut snapshot);
                        let mut written = lock(&results);
                        match result {
                            Ok(path) => {
                                tracing::info!(path = %path.display(), "checkpoint");
                                written.last = Some(path);
                                written.failed = None;
                            }
                            Err(error) => written.fail(step, error),
                        }
                    }
                }
            }
        };
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

    /// Failures since this was last asked, in words.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.written).unsaid)
    }

    /// Waits until everything is written.
    pub fn finish(self) -> Written {
        let gone = self.writer_is_gone();
        drop(self.orders);
        let ended = self.thread.join();
        let mut written = std::mem::take(&mut *lock(&self.written));
        if ended.is_err() && written.failed.is_none() {
            written.fail(written.begun, gone);
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
        let snapshot = Snapshot { state, adapter, optimizer: checkpoint.optimizer };
        let step = snapshot.state.global_step;
        if self.saver.orders.send(Order::Write(Box::new(snapshot))).is_err() {
            // The run is worth more than its checkpoint.
            lock(&self.saver.written).fail(step, self.saver.writer_is_gone());
        }
        Ok(())
    }

    fn load_best(&mut self, step: usize) -> std::result::Result<Option<Vec<(String, Tensor)>>, BoxError> {
        let (done, is_done) = mpsc::channel();
        let _ = self.saver.orders.send(Order::Flush(done));
        let _ = is_done.recv();
        let path = self.saver.output_dir.join(directory_name(step));
        if !path.is_dir() {
            return Ok(None);
        }
        Ok(Some(read(&path)?.parameters()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checkpoint::list, recipe::Recipe};
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
        let snapshot = Snapshot { state, adapter, optimizer };
        saver.orders.send(Order::Write(Box::new(snapshot))).unwrap();
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
        assert_eq!(saved.parameters().len(), 2);
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
    fn a_run_whose_last_checkpoint_failed_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let saver = saver(folder.path());
        save(&saver, 3);
        let (done, is_done) = mpsc::channel();
        saver.orders.send(Order::Flush(done)).unwrap();
        is_done.recv().unwrap();
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
}
