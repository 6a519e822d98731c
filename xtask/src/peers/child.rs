//! One measurement: a process whose events are timed as they come, and whose memory is watched.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::BadInput;
use crate::process;

/// The high-water mark never falls, so that a look now and then misses only what grew after the last one.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// Lines of a failed program's log that are shown.
const LAST_LINES: usize = 12;

/// What a process told, and what it took.
#[derive(Debug)]
pub struct Finished {
    pub events: Vec<Event>,
    /// From its start to its end.
    pub seconds: f64,
    /// The most memory that it held; `None` if it ended before the first look at it.
    pub peak_mib: Option<f64>,
}

#[derive(Debug, Clone)]
pub struct Event {
    /// Seconds since the process was started.
    pub at: f64,
    pub value: Value,
}

impl Event {
    pub fn is(&self, name: &str) -> bool {
        self.value["event"] == name
    }
}

impl Finished {
    pub fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter().filter(move |event| event.is(name))
    }

    /// The field of the last event, `done`.
    pub fn done(&self, pointer: &str) -> Result<&Value> {
        let done = self.all("done").next_back().context("the program told no event `done`")?;
        done.value
            .pointer(pointer)
            .with_context(|| format!("the event `done` has no {pointer}: {}", done.value))
    }

    pub fn peak_mib(&self) -> Result<f64> {
        self.peak_mib.context("the peak memory is not known: /proc/PID/status showed no VmHWM")
    }

    pub fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.done(pointer)?;
        value.as_f64().with_context(|| format!("{pointer} of the event `done` is no number: {value}"))
    }
}

/// Runs a program to its end. Its standard output is events, its standard error goes to `log`.
///
/// # Errors
/// If it fails, with the end of its log: [`BadInput`] if its exit code says so.
pub fn run(command: &mut Command, log: &Path) -> Result<Finished> {
    let shown = process::shown(command);
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut child = KilledIfDropped(child);
    let pid = child.0.id();
    let stdout = child.0.stdout.take().context("the program has no standard output")?;
    let over = AtomicBool::new(false);
    let (events, peak_kib) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = None;
            while !over.load(Ordering::Relaxed) {
                peak = peak.max(peak_kib(pid));
                thread::park_timeout(BETWEEN_LOOKS);
            }
            peak
        });
        let events = read(BufReader::new(stdout), start);
        // The process is not waited for yet, so that its number is still its own.
        over.store(true, Ordering::Relaxed);
        watch.thread().unpark();
        (events, watch.join().unwrap_or(None))
    });
    let events = match events {
        Ok(events) => events,
        Err(error) => return Err(error.context(format!("`{shown}`; its log is {}", log.display()))),
    };
    let status = child.0.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        let text = format!("`{shown}` failed ({status}); the end of {}:\n{}", log.display(), last_lines(log));
        return Err(if status.code() == Some(2) { anyhow!(BadInput(text)) } else { anyhow!(text) });
    }
    Ok(Finished { events, seconds, peak_mib: peak_kib.map(|kib| kib as f64 / 1024.0) })
}

struct KilledIfDropped(Child);

impl Drop for KilledIfDropped {
    fn drop(&mut self) {
        // Of a process that was waited for, nothing is killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The events with the time at which each line came.
fn read(lines: impl BufRead, start: Instant) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for line in lines.lines() {
        let line = line?;
        let at = start.elapsed().as_secs_f64();
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        if !value["event"].is_string() {
            bail!("the program told something else than an event: {line:?}");
        }
        events.push(Event { at, value });
    }
    Ok(events)
}

fn peak_kib(pid: u32) -> Option<u64> {
    high_water_mark(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_shell(script: &str) -> Result<Finished> {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("sh").args(["-c", script]), &folder.path().join("log"))
    }

    #[test]
    fn events_come_in_their_order_with_rising_times() {
        let finished = run_shell(
            r#"echo '{"event":"stage","name":"training"}'; sleep 0.05; echo noise >&2; echo '{"event":"done","a":{"b":2.5}}'"#,
        )
        .unwrap();
        assert_eq!(finished.all("stage").count(), 1);
        assert_eq!(finished.number("/a/b").unwrap(), 2.5);
        assert!(finished.events[0].at < finished.events[1].at && finished.events[1].at <= finished.seconds);
        assert!(finished.peak_mib().is_ok_and(|peak| peak > 0.1), "{finished:?}");
        let error = finished.number("/c").unwrap_err().to_string();
        assert!(error.contains("/c"), "{error}");
    }

    #[test]
    fn the_peak_is_that_of_the_process_and_stays_when_the_memory_is_given_back() {
        let script = r#"x=$(head -c 40000000 /dev/zero | tr '\0' a); x=; sleep 0.1; echo '{"event":"done"}'"#;
        let peak = |script| run_shell(script).unwrap().peak_mib().unwrap();
        assert!(peak(script) > 35.0);
        assert!(peak(r#"sleep 0.1; echo '{"event":"done"}'"#) < 30.0);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log_and_bad_input_is_told_apart() {
        let error = run_shell("echo first >&2; echo why >&2; exit 1").unwrap_err();
        assert!(error.to_string().contains("first\nwhy"), "{error}");
        assert!(!error.is::<BadInput>());
        assert!(run_shell("echo why >&2; exit 2").unwrap_err().is::<BadInput>());
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for line in ["words", "[1]", "{}", r#"{"event":1}"#] {
            let error = format!("{:#}", run_shell(&format!("echo '{line}'")).unwrap_err());
            assert!(error.contains("something else than an event"), "{error}");
        }
        assert!(run_shell("true").unwrap().done("").is_err());
    }

    #[test]
    fn a_status_without_a_mark_is_no_zero() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t  1234 kB\nVmRSS:\t 12 kB\n"), Some(1234));
        assert_eq!(high_water_mark("Name:\tx\n"), None);
    }
}
