//! The keys and values that were written, in the file and in overrides, each with its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrotune_trainer::{NOT_OFFERED, OLDER_NAMES};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, ProblemKind};
use super::schema::{SECTIONS, join, nearest_key, nearest_section};

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) value: toml::Value,
    pub(super) place: Place,
}

/// What a recipe file and its overrides say, section by section, before anything is checked.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: Arc<PathBuf>,
    /// (section, key) to entry; the section `""` is the top of the file.
    pub(super) entries: BTreeMap<(String, String), Entry>,
}

impl Source {
    /// Reads the text of a recipe file; nothing but its syntax and its sections is checked.
    pub(super) fn parse(text: &str, file: &Path, problems: &mut Vec<Problem>) -> Self {
        let file = Arc::new(file.to_owned());
        let mut source = Self { file: Arc::clone(&file), entries: BTreeMap::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // One slip gives more errors in its wake: a screenful is enough.
            problems.extend(errors.into_iter().take(10).map(|error| {
                let mut message = error.message().trim_end().to_owned();
                let mut at = Place::File(Arc::clone(&file));
                if let Some(span) = error.span() {
                    at = place(&file, text, span.start);
                    let line: String = line_at(text, span.start).trim().chars().take(80).collect();
                    message.push_str(&format!(", in `{line}`"));
                }
                Problem { place: at, kind: ProblemKind::Syntax { message } }
            }));
            return source;
        }
        for (name, value) in table.get_ref() {
            let at = place(&file, text, name.span().start);
            let is_section =
                |name: &str| !name.is_empty() && SECTIONS.iter().any(|(known, _)| *known == name);
            match value.get_ref() {
                DeValue::Table(keys) if is_section(name.get_ref()) => {
                    for (key, value) in keys {
                        let at = place(&file, text, key.span().start);
                        source.insert(name.get_ref(), key.get_ref(), to_value(value), at);
                    }
                }
                // `[[lora]]` and the like.
                DeValue::Table(_) | DeValue::Array(_)
                    if !is_section(name.get_ref()) && holds_table(value) =>
                {
                    problems.push(unknown_section(name.get_ref(), at));
                }
                _ => source.insert("", name.get_ref(), to_value(value), at),
            }
        }
        source
    }

    /// Lays `--set section.key=value` over the file.
    pub(super) fn set(&mut self, text: &str, problems: &mut Vec<Problem>) {
        let place = Place::Override(text.to_owned());
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            let message = "expected `section.key=value`, as in `training.learning_rate=1e-4`".to_owned();
            return problems.push(Problem { place, kind: ProblemKind::Override { message } });
        };
        let (section, key) = match key.trim().split_once('.') {
            Some((section, key)) => (section.trim(), key.trim()),
            None => ("", key.trim()),
        };
        // A dot with nothing before it leads to no section: only a key alone stands at the top.
        let known =
            SECTIONS.iter().any(|(known, _)| *known == section && !(known.is_empty() && key.is_empty()));
        if !known {
            return problems.push(unknown_section(section, place));
        }
        let value = value.trim();
        let mut refuse = |message| {
            problems.push(Problem { place: place.clone(), kind: ProblemKind::Override { message } });
        };
        if value.is_empty() {
            return refuse("there is no value after `=`".to_owned());
        }
        // As TOML where it is TOML; a bare word is a string, for a shell eats the quotes.
        let value = match DeValue::parse(value) {
            Ok(parsed) => to_value(&parsed),
            Err(error) if value.starts_with(['[', '{', '"', '\'']) => {
                return refuse(format!(
                    "the value is not valid TOML: {}; did the shell take quotes away? Put the whole in single quotes, as in \
                     --set 'lora.target_modules=[\"q_proj\", \"v_proj\"]'",
                    error.message().trim_end()
                ));
            }
            Err(_) => toml::Value::String(value.to_owned()),
        };
        self.insert(section, key, value, place);
    }

    fn insert(&mut self, section: &str, key: &str, value: toml::Value, place: Place) {
        self.entries.insert((section.to_owned(), key.to_owned()), Entry { value, place });
    }

    /// Takes the older names of training arguments for the newer ones, and says so.
    pub(super) fn older_names(&mut self, problems: &mut Vec<Problem>) {
        let section = "training".to_owned();
        for (older, newer) in OLDER_NAMES {
            let Some(entry) = self.entries.remove(&(section.clone(), older.to_owned())) else { continue };
            let (older, newer_name) = (join(&section, older), join(&section, newer));
            let newer = (section.clone(), newer.to_owned());
            if self.entries.contains_key(&newer) {
                let reason =
                    format!("`{older}` is an older name of `{newer_name}`, which is given, too: remove one");
                let kind = ProblemKind::Contradiction { keys: vec![older, newer_name], reason };
                problems.push(Problem { place: entry.place, kind });
                continue;
            }
            tracing::warn!(
                "{}: `{older}` is an older name of `{newer_name}`, which it is taken for",
                entry.place
            );
            self.entries.insert(newer, entry);
        }
    }

    /// Where a key was written, or the file if it was not.
    pub(super) fn place(&self, section: &str, key: &str) -> Place {
        match self.entries.get(&(section.to_owned(), key.to_owned())) {
            Some(entry) => entry.place.clone(),
            None => Place::File(Arc::clone(&self.file)),
        }
    }

    /// A problem for every key that no recipe has.
    pub(super) fn unknown_keys(&self, problems: &mut Vec<Problem>) {
        for ((section, key), entry) in &self.entries {
            let known = SECTIONS.iter().find(|(name, _)| name == section).map_or(&[][..], |(_, keys)| keys);
            if known.contains(&key.as_str()) {
                continue;
            }
            let kind = if section.is_empty() && SECTIONS.iter().any(|(name, _)| name == key) {
                ProblemKind::WrongType {
                    key: key.clone(),
                    expected: format!("a section, `[{key}]`"),
                    found: describe(&entry.value),
                }
            } else if let Some((_, reason)) = not_offered(section, key) {
                ProblemKind::NotOffered { key: join(section, key), reason }
            } else {
                ProblemKind::UnknownKey {
                    key: join(section, key),
                    nearest: nearest_key(section, key),
                    known: known.to_vec(),
                }
            };
            problems.push(Problem { place: entry.place.clone(), kind });
        }
    }
}

/// An argument of transformers that is not offered, and why.
fn not_offered(section: &str, key: &str) -> Option<(&'static str, &'static str)> {
    NOT_OFFERED.into_iter().find(|(name, _)| section == "training" && *name == key)
}

fn unknown_section(section: &str, place: Place) -> Problem {
    let kind = ProblemKind::UnknownSection { section: section.to_owned(), nearest: nearest_section(section) };
    Problem { place, kind }
}

fn holds_table(value: &Spanned<DeValue<'_>>) -> bool {
    match value.get_ref() {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_))),
        _ => false,
    }
}

fn to_value(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        // An integer beyond 64 bits is kept as a float, and then is out of every range.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => toml::Value::Integer(number),
            Err(_) if number.as_str().starts_with('-') => toml::Value::Float(f64::NEG_INFINITY),
            Err(_) => toml::Value::Float(f64::INFINITY),
        },
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => toml::Value::Boolean(*value),
        DeValue::Datetime(value) => toml::Value::Datetime(*value),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(to_value).collect()),
        DeValue::Table(keys) => toml::Value::Table(
            keys.iter().map(|(key, value)| (key.get_ref().to_string(), to_value(value))).collect(),
        ),
    }
}

/// A value as written, with its type where that is not plain to see; long ones are cut.
pub(super) fn describe(value: &toml::Value) -> String {
    let kind = match value {
        toml::Value::String(_) => "the string ",
        toml::Value::Datetime(_) => "the date ",
        toml::Value::Array(_) => "the list ",
        toml::Value::Table(_) => "the table ",
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => "",
    };
    let text = value.to_string();
    if text.chars().count() > 80 {
        let cut: String = text.chars().take(77).collect();
        format!("{kind}{cut}...")
    } else {
        format!("{kind}{text}")
    }
}

/// The line and column of a byte of the file.
fn place(file: &Arc<PathBuf>, text: &str, byte: usize) -> Place {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
    Place::Line { file: Arc::clone(file), line, column }
}

fn line_at(text: &str, byte: usize) -> &str {
    let start = text.get(..byte).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default()
}
