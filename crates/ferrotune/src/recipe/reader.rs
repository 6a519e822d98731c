//! Reads typed values out of a [`Source`] and collects what is wrong with them.

use std::path::PathBuf;
use std::sync::Arc;

use ferrotune_trainer::{SchedulerKwargs, chosen_reporters};

use super::problem::{Place, Problem, ProblemKind};
use super::schema::join;
use super::source::{Entry, Source, describe};

/// Reads the keys of one section. Each method gives `None` for a key that is absent or wrong; what is wrong
/// goes to the list of problems, so that the reader goes on to the next key.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) section: &'static str,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// Goes on with another section.
    pub(super) fn at(&mut self, section: &'static str) -> &mut Self {
        self.section = section;
        self
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        self.source.entries.get(&(self.section.to_owned(), key.to_owned())).cloned()
    }

    fn problem<T>(&mut self, place: Place, kind: ProblemKind) -> Option<T> {
        self.problems.push(Problem { place, kind });
        None
    }

    fn wrong_type<T>(&mut self, key: &str, entry: &Entry, expected: &str) -> Option<T> {
        let (expected, found) = (expected.to_owned(), describe(&entry.value));
        let kind = ProblemKind::WrongType { key: join(self.section, key), expected, found };
        self.problem(entry.place.clone(), kind)
    }

    fn out_of_range<T>(&mut self, key: &str, entry: &Entry, expected: &str) -> Option<T> {
        let (expected, found) = (expected.to_owned(), describe(&entry.value));
        let kind = ProblemKind::OutOfRange { key: join(self.section, key), expected, found };
        self.problem(entry.place.clone(), kind)
    }

    /// Adds a problem where a required key is absent.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &str) -> Option<T>,
    ) -> Option<T> {
        if self.entry(key).is_none() {
            let place = Place::File(Arc::clone(&self.source.file));
            return self.problem(place, ProblemKind::Missing { key: join(self.section, key) });
        }
        read(self, key)
    }

    pub(super) fn integer(
        &mut self,
        key: &str,
        expected: &str,
        accept: impl FnOnce(i64) -> bool,
    ) -> Option<i64> {
        let entry = self.entry(key)?;
        match entry.value {
            toml::Value::Integer(value) if accept(value) => Some(value),
            toml::Value::Integer(_) => self.out_of_range(key, &entry, expected),
            // 1e3 is how people write a thousand, but a count is no float.
            _ => self.wrong_type(key, &entry, expected),
        }
    }

    /// A count of at least `least`.
    pub(super) fn count(&mut self, key: &str, least: i64) -> Option<usize> {
        let expected = format!("an integer of at least {least}");
        let value = self.integer(key, &expected, |value| value >= least.max(0))?;
        usize::try_from(value).ok()
    }

    /// A number, written as an integer or as a float.
    pub(super) fn number(
        &mut self,
        key: &str,
        expected: &str,
        accept: impl FnOnce(f64) -> bool,
    ) -> Option<f64> {
        let entry = self.entry(key)?;
        #[expect(clippy::cast_precision_loss, reason = "no setting needs more than 53 bits")]
        let value = match entry.value {
            toml::Value::Integer(value) => value as f64,
            toml::Value::Float(value) => value,
            _ => return self.wrong_type(key, &entry, expected),
        };
        if value.is_finite() && accept(value) {
            Some(value)
        } else {
            self.out_of_range(key, &entry, expected)
        }
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let entry = self.entry(key)?;
        match entry.value {
            toml::Value::Boolean(value) => Some(value),
            _ => self.wrong_type(key, &entry, "true or false"),
        }
    }

    pub(super) fn text(&mut self, key: &str, expected: &str) -> Option<String> {
        let entry = self.entry(key)?;
        match &entry.value {
            toml::Value::String(text) => Some(text.clone()),
            _ => self.wrong_type(key, &entry, expected),
        }
    }

    /// A table of numbers and names.
    pub(super) fn scheduler_kwargs(&mut self, key: &str, expected: &str) -> Option<SchedulerKwargs> {
        let entry = self.entry(key)?;
        match entry.value.clone().try_into() {
            Ok(kwargs) => Some(kwargs),
            Err(_) => self.wrong_type(key, &entry, expected),
        }
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let entry = self.entry(key)?;
        let expected = "a path, as a string in quotes";
        match &entry.value {
            toml::Value::String(text) if text.trim().is_empty() || text.contains('\0') => {
                self.out_of_range(key, &entry, expected)
            }
            toml::Value::String(text) => Some(PathBuf::from(text)),
            _ => self.wrong_type(key, &entry, expected),
        }
    }

    /// One of a few names.
    pub(super) fn choice(&mut self, key: &str, choices: &[&str]) -> Option<String> {
        let entry = self.entry(key)?;
        let expected = one_of(choices);
        match &entry.value {
            toml::Value::String(text) if choices.contains(&text.as_str()) => Some(text.clone()),
            toml::Value::String(_) => self.out_of_range(key, &entry, &expected),
            _ => self.wrong_type(key, &entry, &expected),
        }
    }

    /// A list of different names, not empty.
    pub(super) fn names(
        &mut self,
        key: &str,
        expected: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let entry = self.entry(key)?;
        let toml::Value::Array(items) = &entry.value else {
            return self.wrong_type(key, &entry, expected);
        };
        let mut names: Vec<String> = vec![];
        for item in items {
            match item {
                toml::Value::String(name) if accept(name) && !names.contains(name) => {
                    names.push(name.clone())
                }
                toml::Value::String(_) => return self.out_of_range(key, &entry, expected),
                _ => return self.wrong_type(key, &entry, expected),
            }
        }
        if names.is_empty() {
            return self.out_of_range(key, &entry, expected);
        }
        Some(names)
    }

    /// Adds a contradiction with `other` unless `key` was given.
    pub(super) fn unless_given(&mut self, key: &str, other: &str, reason: String) {
        if self.entry(key).is_none() {
            let keys = [other, key].map(|key| join(self.section, key)).to_vec();
            let place = self.source.place(self.section, other);
            self.problems.push(Problem { place, kind: ProblemKind::Contradiction { keys, reason } });
        }
    }

    /// Names of reporters, one or a list; `none` is an empty list, and `all` is every one.
    pub(super) fn reporters(&mut self, key: &str, known: &[&str]) -> Option<Vec<String>> {
        let entry = self.entry(key)?;
        let expected = format!("{}, or a list of these", one_of(known));
        let items = match &entry.value {
            toml::Value::Array(items) => items.clone(),
            value => vec![value.clone()],
        };
        let names: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
        match names {
            None => self.wrong_type(key, &entry, &expected),
            Some(names) if names.iter().any(|name| !known.contains(name)) => {
                self.out_of_range(key, &entry, &expected)
            }
            Some(names) => Some(chosen_reporters(&names)),
        }
    }

    /// Whether a key was given as a string.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| entry.value.is_str())
    }

    /// Whether a key was given as exactly this string.
    pub(super) fn is_string(&self, key: &str, text: &str) -> bool {
        self.entry(key).is_some_and(|entry| entry.value.as_str() == Some(text))
    }
}

/// `"a"`, `"b"` or `"c"`.
pub(super) fn one_of(choices: &[&str]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}
