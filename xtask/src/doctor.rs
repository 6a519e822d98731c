//! `cargo xtask doctor`: what this machine has, what it lacks, and what to do about it.

mod machine;
mod speed;
mod tools;

use std::fmt;

use anyhow::{Error, Result, bail};
use serde_json::{Value, json};

pub use machine::cpu;

use crate::{data, files, setup, workspace};

/// What was found of one thing.
struct Finding {
    topic: &'static str,
    state: State,
    /// What was found, or what is missing with the remedy.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Good,
    /// Not as it could be; everything works.
    Note,
    /// The project does not build, or its tests do not run.
    Missing,
}

impl Finding {
    fn new(topic: &'static str, state: State, text: impl Into<String>) -> Self {
        Self { topic, state, text: text.into() }
    }

    /// An error says what is missing and how to mend it.
    fn needed(topic: &'static str, found: Result<String>) -> Self {
        match found {
            Ok(text) => Self::new(topic, State::Good, text),
            Err(error) => Self::new(topic, State::Missing, format!("{error:#}")),
        }
    }
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<9} {}", self.state.word(), self.topic, self.text)
    }
}

/// The names of what is missing.
#[derive(Debug)]
pub struct Missing(Vec<&'static str>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing: {}; see above for the remedies", self.0.join(", "))
    }
}

/// Prints the findings as they come, or at the end as one JSON object.
///
/// # Errors
/// [`Missing`], if the project cannot work on this machine as it is.
pub fn run(json: bool) -> Result<()> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut add = |finding: Finding| {
        if !json {
            println!("{finding}");
        }
        findings.push(finding);
    };
    tools::findings().into_iter().for_each(&mut add);
    machine::findings().into_iter().for_each(&mut add);
    cache_findings().into_iter().for_each(&mut add);
    let missing: Vec<&str> =
        findings.iter().filter(|it| it.state == State::Missing).map(|it| it.topic).collect();
    let speed = if missing.iter().any(|topic| ["compiler", "libtorch"].contains(topic)) {
        Err(Error::msg("not measured: that needs a compiler and a libtorch"))
    } else {
        speed::measure()
    };
    if json {
        println!("{:#}", as_json(&findings, speed.as_ref().ok()));
    } else {
        let speed = speed
            .as_ref()
            .map_or_else(|error| (State::Note, format!("{error:#}")), |it| (State::Good, it.to_string()));
        println!("{}", Finding::new("speed", speed.0, speed.1));
    }
    if !missing.is_empty() {
        bail!(Missing(missing));
    }
    Ok(())
}

fn as_json(findings: &[Finding], speed: Option<&speed::Speed>) -> Value {
    let findings: Vec<Value> = findings
        .iter()
        .map(|it| json!({ "topic": it.topic, "state": it.state.word(), "text": it.text }))
        .collect();
    json!({ "findings": findings, "gflop_per_s": speed.map(speed::Speed::as_json) })
}

/// libtorch, the demo model and the demo data, and room for them.
fn cache_findings() -> Vec<Finding> {
    let cache = match workspace::cache() {
        Ok(cache) => cache,
        Err(error) => return vec![Finding::needed("cache", Err(error))],
    };
    let model = setup::Model::of(&cache);
    let gguf = model.gguf();
    let state = if model.is_whole() {
        let import =
            if model.directory().join("import.json").is_file() { "imported" } else { "not imported yet" };
        Ok(format!("{}, {import}", gguf.display()))
    } else if gguf.exists() {
        Err(Error::msg(format!("{} is not whole: `cargo xtask setup` fetches it again", gguf.display())))
    } else {
        Err(Error::msg(format!("{} is not there: `cargo xtask setup` fetches it", gguf.display())))
    };
    let data = if data::is_there(&cache) {
        Finding::new("data", State::Good, "the demo data is in the cache, as recorded")
    } else {
        Finding::new(
            "data",
            State::Note,
            "the demo data is not there, or not as recorded: `cargo xtask data` makes it",
        )
    };
    let libtorch = Finding::needed("libtorch", setup::libtorch(&cache));
    let model = Finding::needed("model", state);
    let mut pip = Finding::needed("pip", setup::pip());
    if pip.state == State::Missing && [&libtorch, &model].iter().all(|it| it.state == State::Good) {
        pip.state = State::Note; // it only fetches
    }
    let (state, text) = room(files::free_space(&cache), files::free_space(&workspace::root()));
    let disk = Finding::new("disk", state, format!("{text}; the cache is {}", cache.display()));
    vec![libtorch, model, pip, data, disk]
}

/// libtorch takes 1.7 GB while it is unpacked; debug and release builds of everything have grown to 9 GB.
fn room(cache: Option<u64>, checkout: Option<u64>) -> (State, String) {
    let (Some(cache), Some(checkout)) = (cache, checkout) else {
        return (State::Note, "the free space is not known: `df` does not say".into());
    };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let text = format!("{:.1} GB free at the cache, {:.1} GB at the checkout", gb(cache), gb(checkout));
    if cache < 2_000_000_000 || checkout < 10_000_000_000 {
        (
            State::Note,
            format!(
                "{text}; a set-up takes 2 GB, builds up to 10: free some, or set XDG_CACHE_HOME or CARGO_TARGET_DIR"
            ),
        )
    } else {
        (State::Good, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        let missing = Finding::needed("pip", Err(Error::msg("no pip: install it")));
        assert_eq!(missing.to_string(), "missing  pip       no pip: install it");
        assert_eq!(missing.state, State::Missing);
        let json = as_json(&[missing], None);
        assert_eq!(json["findings"][0]["state"], "missing");
        assert!(json["gflop_per_s"].is_null());
    }

    #[test]
    fn little_room_is_a_note_with_the_remedy() {
        assert_eq!(room(Some(50 << 30), Some(50 << 30)).0, State::Good);
        assert_eq!(room(None, Some(1)).0, State::Note);
        for (cache, checkout) in [(1 << 30, 50 << 30), (50 << 30, 1 << 30)] {
            let (state, text) = room(Some(cache), Some(checkout));
            assert!(state == State::Note && text.contains("CARGO_TARGET_DIR"), "{text}");
        }
    }
}
