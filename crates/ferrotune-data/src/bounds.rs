//! Bounds for values of a template that are made into text.
//!
//! The engine's fuel counts its steps and the text that it makes, but not what stands in a list: one that holds itself, or the same
//! list twice, forty times over, is small and its text is endless.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// Lists and dicts nested deeper than this are not shown.
const MAX_DEPTH: usize = 100;
/// Nor those with more items, all levels together.
const MAX_ITEMS: usize = 100_000;

/// Refuses a value whose text would be endless or nearly so.
pub(crate) fn check(value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut 0)
}

fn walk(value: &Value, depth: usize, items: &mut usize) -> Result<(), Error> {
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(too("nested too deeply"));
    }
    // What is made on the fly has no items of its own before it is shown, and counts as it is made.
    if kind == ValueKind::Iterable && value.len().is_none() {
        return Ok(());
    }
    for item in value.try_iter()? {
        *items += 1;
        if *items > MAX_ITEMS {
            return Err(too("too large to be shown"));
        }
        let inner = if kind == ValueKind::Map { value.get_item(&item)? } else { item };
        walk(&inner, depth + 1, items)?;
    }
    Ok(())
}

fn too(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a list or dict is {what}"))
}
