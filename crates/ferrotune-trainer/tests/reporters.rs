//! What reporters write, read back by a reader of the test's own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of a test panics as the test does")]

mod common;

use std::io;
use std::path::{Path, PathBuf};

use common::{Examples, TokenModel};
use ferrotune_trainer::{
    CsvReporter, IntervalStrategy, Reporter, Reporting, TensorBoardReporter, Trainer, TrainingArguments,
};
use serde_json::{Map, Value, json};

/// A field of a message: its number, and its value as it stands.
#[derive(Debug, Clone, PartialEq)]
enum Field {
    Varint(u64),
    Fixed64(f64),
    Fixed32(f32),
    Bytes(Vec<u8>),
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn message(bytes: &[u8]) -> Vec<(u64, Field)> {
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let key = varint(bytes, &mut at);
        let field = match key & 7 {
            0 => Field::Varint(varint(bytes, &mut at)),
            1 => {
                at += 8;
                Field::Fixed64(f64::from_le_bytes(bytes[at - 8..at].try_into().unwrap()))
            }
            2 => {
                let length = varint(bytes, &mut at) as usize;
                at += length;
                Field::Bytes(bytes[at - length..at].to_vec())
            }
            5 => {
                at += 4;
                Field::Fixed32(f32::from_le_bytes(bytes[at - 4..at].try_into().unwrap()))
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn bytes(message: &[(u64, Field)], number: u64) -> Option<&[u8]> {
    message.iter().find_map(|(found, field)| match field {
        Field::Bytes(bytes) if *found == number => Some(bytes.as_slice()),
        _ => None,
    })
}

fn text(message: &[(u64, Field)], number: u64) -> String {
    String::from_utf8(bytes(message, number).unwrap_or_default().to_vec()).unwrap()
}

/// The masked checksum by a table, as most readers have it.
fn checksum(data: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| (0..8).fold(byte, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }))
        .collect();
    let crc =
        !data.iter().fold(u32::MAX, |crc, byte| table[((crc ^ u32::from(*byte)) & 255) as usize] ^ crc >> 8);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of a file, with every length and checksum held to its data.
fn events(path: &Path) -> Vec<Vec<(u64, Field)>> {
    let bytes = std::fs::read(path).unwrap();
    let (mut events, mut rest) = (Vec::new(), bytes.as_slice());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let data = &rest[12..12 + length];
        assert_eq!((word(8), word(12 + length)), (checksum(&rest[..8]), checksum(data)));
        events.push(message(data));
        rest = &rest[16 + length..];
    }
    events
}

/// Step and value of each event that has a value.
fn values(events: &[Vec<(u64, Field)>]) -> Vec<(u64, Vec<(u64, Field)>)> {
    let value = |event: &Vec<(u64, Field)>| {
        let summary = message(bytes(event, 5)?);
        let step = event.iter().find_map(|(number, field)| match field {
            Field::Varint(step) if *number == 2 => Some(*step),
            _ => None,
        });
        Some((step.unwrap_or(0), message(bytes(&summary, 1)?)))
    };
    events.iter().filter_map(value).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reporters").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn arguments(report_to: Value) -> TrainingArguments {
    TrainingArguments {
        learning_rate: 1e-2,
        per_device_train_batch_size: 4,
        max_steps: 12,
        logging_steps: 3.0,
        eval_strategy: IntervalStrategy::Steps,
        eval_steps: Some(6.0),
        ..serde_json::from_value(json!({ "report_to": report_to })).unwrap()
    }
}

fn train(arguments: TrainingArguments, reporting: Reporting) -> ferrotune_trainer::TrainOutcome {
    let (model, dataset) = (TokenModel::small(), Examples::patterned(16));
    Trainer::new(&model, arguments, &dataset)
        .unwrap()
        .with_validation(&dataset)
        .with_callback(reporting)
        .train()
        .unwrap()
}

#[test]
fn tensorboard_reads_scalars_texts_histograms_and_hparams() {
    let folder = folder("tensorboard");
    let arguments = arguments(json!("tensorboard"));
    let reporting = Reporting::new(&arguments, &folder).unwrap();
    let outcome = train(arguments, reporting);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let name = files[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("events.out.tfevents.1") || name.starts_with("events.out.tfevents.2"), "{name}");
    let events = events(&files[0]);
    assert_eq!(text(&events[0], 3), "brain.Event:2");
    assert!(events.iter().all(|event| event.iter().any(|(number, field)| {
        matches!(field, Field::Fixed64(seconds) if *number == 1 && *seconds > 1.7e9)
    })));
    let values = values(&events);
    let scalars = |tag: &str| -> Vec<(u64, f32)> {
        let tagged = values.iter().filter(|(_, value)| text(value, 1) == tag);
        let number = |(step, value): &(u64, Vec<(u64, Field)>)| match value[1] {
            (2, Field::Fixed32(number)) => (*step, number),
            ref other => panic!("{other:?}"),
        };
        tagged.map(number).collect()
    };
    let logged = |number: fn(&ferrotune_trainer::LogRecord) -> f64| -> Vec<(u64, f32)> {
        outcome.history.iter().map(|record| (record.step as u64, number(record) as f32)).collect()
    };
    assert_eq!(logged(|record| record.loss).iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9, 12]);
    assert_eq!(scalars("train/loss"), logged(|record| record.loss));
    assert_eq!(scalars("train/grad_norm"), logged(|record| record.grad_norm));
    assert_eq!(scalars("train/learning_rate"), logged(|record| record.learning_rate));
    let evaluated: Vec<(u64, f32)> = outcome
        .evaluations
        .iter()
        .map(|record| (record.step as u64, record.evaluation.loss as f32))
        .collect();
    assert_eq!(scalars("eval/loss"), evaluated);
    assert_eq!(scalars("train/epoch").len(), 4 + 2);
    assert_eq!(scalars("train/train_loss"), [(12, outcome.train_loss as f32)]);

    let find =
        |tag: &str| values.iter().find(|(_, value)| text(value, 1) == tag).unwrap_or_else(|| panic!("{tag}"));
    let plugin = |value: &[(u64, Field)]| message(bytes(&message(bytes(value, 9).unwrap()), 1).unwrap());
    let (_, args) = find("args/text_summary");
    assert_eq!(text(&plugin(args), 1), "text");
    let args: Value = serde_json::from_str(&text(&message(bytes(args, 8).unwrap()), 8)).unwrap();
    assert_eq!(args["max_steps"], 12);

    let (step, norms) = find("norms/norm.weight");
    let histogram = message(bytes(norms, 5).unwrap());
    assert_eq!((*step, &histogram[2]), (3, &(3, Field::Fixed64(1.0))));
    let packed = |number| -> Vec<f64> {
        let chunks = bytes(&histogram, number).unwrap().chunks(8);
        chunks.map(|chunk| f64::from_le_bytes(chunk.try_into().unwrap())).collect()
    };
    assert_eq!((packed(6).len(), packed(7).iter().sum::<f64>()), (30, 1.0));

    let (_, start) = find("_hparams_/session_start_info");
    let content = message(bytes(&plugin(start), 2).unwrap());
    let session = message(bytes(&content, 3).unwrap());
    let rate = session.iter().find_map(|(number, field)| match field {
        Field::Bytes(entry) if *number == 1 && text(&message(entry), 1) == "learning_rate" => {
            Some(message(bytes(&message(entry), 2).unwrap()))
        }
        _ => None,
    });
    assert_eq!(rate.unwrap(), [(2, Field::Fixed64(1e-2))]);
    find("_hparams_/experiment");
    find("_hparams_/session_end_info");
}

#[test]
fn a_session_that_starts_again_takes_later_steps_back_and_has_a_file_of_its_own() {
    let folder = folder("rewound");
    for _ in 0..2 {
        let mut reporter = TensorBoardReporter::new(&folder);
        reporter.start(&Map::new()).unwrap();
        reporter.scalar(5, "train/loss", 1.0).unwrap();
        reporter.rewind(3).unwrap();
        reporter.finish().unwrap();
    }
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        // SessionLog { status: START } at the first step that is taken back, as SummaryWriter(purge_step=4) writes it.
        let starts = events(&file).into_iter().filter(|event| bytes(event, 7) == Some(&[8, 1]));
        let steps: Vec<_> = starts.map(|event| event.into_iter().find(|(number, _)| *number == 2)).collect();
        assert_eq!(steps, [Some((2, Field::Varint(4)))]);
    }
}

#[test]
fn csv_and_jsonl_have_every_number_and_go_on_with_a_file() {
    let folder = folder("tables");
    let mut losses = Vec::new();
    for _ in 0..2 {
        let arguments = arguments(json!(["csv", "jsonl"]));
        let reporting = Reporting::new(&arguments, &folder).unwrap();
        losses.extend(train(arguments, reporting).history.iter().map(|record| record.loss));
    }
    let csv = std::fs::read_to_string(folder.join("log.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("wall_time,step,tag,value"));
    let cells: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert!(cells.iter().all(|cells| cells.len() == 4));
    let found: Vec<f64> = cells
        .iter()
        .filter(|cells| cells[2] == "train/loss")
        .map(|cells| cells[3].parse().unwrap())
        .collect();
    assert_eq!(found, losses);
    let jsonl = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["hparams"]["max_steps"] == 12).count(), 2);
    let found: Vec<f64> = lines
        .iter()
        .filter(|line| line["tag"] == "train/loss")
        .map(|line| line["value"].as_f64().unwrap())
        .collect();
    assert_eq!(found, losses);
}

#[test]
fn names_pick_reporters() {
    let names = |report_to: Value| -> Vec<String> {
        let reporting = Reporting::new(&arguments(report_to), Path::new("nowhere")).unwrap();
        reporting.names().map(str::to_owned).collect()
    };
    assert_eq!(names(json!("all")), ["tensorboard", "csv", "jsonl"]);
    assert_eq!(names(json!("none")), Vec::<String>::new());
    assert_eq!(names(json!(["jsonl", "csv"])), ["jsonl", "csv"]);
    let unknown = TrainingArguments { report_to: vec!["wandb".into()], ..Default::default() };
    assert!(Reporting::new(&unknown, Path::new("nowhere")).is_err());
}

/// Writes `left` numbers, and then the disk is full.
struct FullDisk {
    left: usize,
}

impl Reporter for FullDisk {
    fn name(&self) -> &str {
        "full disk"
    }
    fn start(&mut self, _: &Map<String, Value>) -> io::Result<()> {
        Ok(())
    }
    fn scalar(&mut self, _: usize, _: &str, _: f64) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
    fn text(&mut self, _: usize, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn histogram(&mut self, _: usize, _: &str, _: &[f64]) -> io::Result<()> {
        Ok(())
    }
    fn rewind(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn finish(&mut self) -> io::Result<()> {
        panic!("nothing is told to a reporter that failed")
    }
}

#[test]
fn a_reporter_that_cannot_write_ends_neither_the_run_nor_the_others() {
    let folder = folder("failing");
    let blocked = folder.join("blocked");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&blocked, "a file where the folder should be").unwrap();
    let arguments = arguments(json!("none"));
    let reporting = Reporting::new(&arguments, &folder)
        .unwrap()
        .with_reporter(TensorBoardReporter::new(&blocked))
        .with_reporter(FullDisk { left: 5 })
        .with_reporter(CsvReporter::new(&folder));
    assert_eq!(train(arguments, reporting).global_step, 12);
    let csv = std::fs::read_to_string(folder.join("log.csv")).unwrap();
    assert_eq!(csv.matches("train/loss").count(), 4);
}
