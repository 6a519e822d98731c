//! Event files for TensorBoard.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::logging_dir::host_name;
use super::protobuf::Message;
use super::record::frame;
use super::{Reporter, wall_time};

const BUCKETS: usize = 30;
const DT_STRING: u64 = 7;
const STATUS_SUCCESS: u64 = 1;
/// `SessionLog.START`.
const SESSION_START: u64 = 1;
/// Files of one process in one second.
const MOST_A_SECOND: u32 = 1000;
/// The numbers that the table of hyperparameters sets runs side by side with.
const METRICS: [&str; 2] = ["train/loss", "eval/loss"];

/// Writes an event file that TensorBoard shows: scalars, texts, histograms of 30 equal buckets, and the arguments under HPARAMS.
///
/// Numbers are `f32` there, as TensorBoard wants them. The file is called `events.out.tfevents.SECONDS.HOST.PID.NUMBER` and made by
/// [`Reporter::start`].
///
/// # References
/// `tensorboard/compat/proto/{event,summary}.proto`, `tensorboard/plugins/hparams/{plugin_data,api}.proto`; tags of texts as
/// `torch.utils.tensorboard` makes them.
#[derive(Debug)]
pub struct TensorBoardReporter {
    directory: PathBuf,
    file: Option<BufWriter<File>>,
}

impl TensorBoardReporter {
    /// Writes into `directory`, which is made if it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), file: None }
    }

    fn event(&mut self, event: Message) -> io::Result<()> {
        let event = event.double(1, wall_time()).into_bytes();
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("nothing was started"))?;
        file.write_all(&frame(&event))
    }

    fn value(&mut self, step: usize, value: Message) -> io::Result<()> {
        self.event(Message::new().varint(2, step as u64).message(5, &Message::new().message(1, &value)))
    }

    /// A value of the plugin for hyperparameters: what is said stands in its metadata.
    fn hparams(&mut self, tag: &str, content: Message) -> io::Result<()> {
        let value = Message::new().string(1, tag).message(9, &plugin("hparams", content));
        self.value(0, value)
    }
}

/// Metadata of a value: which plugin shows it.
fn plugin(name: &str, content: Message) -> Message {
    Message::new().message(1, &Message::new().string(1, name).message(2, &content))
}

impl Reporter for TensorBoardReporter {
    fn name(&self) -> &str {
        "tensorboard"
    }

    fn start(&mut self, hparams: &Map<String, Value>) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let name =
            format!("events.out.tfevents.{:010}.{}.{}", wall_time() as u64, host_name(), std::process::id());
        let create = |number: u32| File::create_new(self.directory.join(format!("{name}.{number}")));
        let mut file = create(0);
        for number in 1..=MOST_A_SECOND {
            if file.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
                file = create(number);
            }
        }
        self.file = Some(BufWriter::new(file?));
        self.event(Message::new().string(3, "brain.Event:2"))?;
        let mut experiment = Message::new();
        let mut session = Message::new();
        for (name, value) in hparams {
            // DataType, and google.protobuf.Value.
            let (kind, value) = match value {
                Value::Null => continue,
                Value::Bool(value) => (2, Message::new().varint(4, u64::from(*value))),
                Value::Number(value) => (3, Message::new().double(2, value.as_f64().unwrap_or(f64::NAN))),
                Value::String(value) => (1, Message::new().string(3, value)),
                other => (1, Message::new().string(3, &other.to_string())),
            };
            experiment = experiment.message(4, &Message::new().string(1, name).varint(4, kind));
            session = session.message(1, &Message::new().string(1, name).message(2, &value));
        }
        for metric in METRICS {
            let name = Message::new().string(2, metric);
            experiment = experiment.message(5, &Message::new().message(1, &name));
        }
        self.hparams("_hparams_/experiment", Message::new().message(2, &experiment))?;
        let session = session.double(5, wall_time());
        self.hparams("_hparams_/session_start_info", Message::new().message(3, &session))
    }

    fn scalar(&mut self, step: usize, tag: &str, value: f64) -> io::Result<()> {
        self.value(step, Message::new().string(1, tag).float(2, value as f32))
    }

    fn text(&mut self, step: usize, tag: &str, text: &str) -> io::Result<()> {
        let shape = Message::new().message(2, &Message::new().varint(1, 1));
        let tensor = Message::new().varint(1, DT_STRING).message(2, &shape).string(8, text);
        let value = Message::new()
            .string(1, &format!("{tag}/text_summary"))
            .message(8, &tensor)
            .message(9, &plugin("text", Message::new()));
        self.value(step, value)
    }

    fn histogram(&mut self, step: usize, tag: &str, values: &[f64]) -> io::Result<()> {
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if finite.is_empty() {
            return Ok(());
        }
        let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
        let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let width = if high > low { (high - low) / BUCKETS as f64 } else { 1.0 };
        let limits: Vec<f64> = (1..=BUCKETS).map(|bucket| low + width * bucket as f64).collect();
        let mut counts = vec![0.0; BUCKETS];
        for value in &finite {
            let bucket = ((value - low) / width) as usize;
            counts[bucket.min(BUCKETS - 1)] += 1.0;
        }
        let histogram = Message::new()
            .double(1, low)
            .double(2, high)
            .double(3, finite.len() as f64)
            .double(4, finite.iter().sum())
            .double(5, finite.iter().map(|value| value * value).sum())
            .doubles(6, &limits)
            .doubles(7, &counts);
        self.value(step, Message::new().string(1, tag).message(5, &histogram))
    }

    /// What was written stays; its readers pass over values of the steps from a session's start on, as with torch's `purge_step`.
    fn rewind(&mut self, step: usize) -> io::Result<()> {
        let session = Message::new().varint(1, SESSION_START);
        self.event(Message::new().varint(2, step as u64 + 1).message(7, &session))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }

    fn finish(&mut self) -> io::Result<()> {
        let session = Message::new().varint(1, STATUS_SUCCESS).double(2, wall_time());
        self.hparams("_hparams_/session_end_info", Message::new().message(4, &session))?;
        self.flush()?;
        self.file = None;
        Ok(())
    }
}
