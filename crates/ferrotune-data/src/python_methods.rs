//! Python's methods and Jinja's tests that `minijinja` and its `pycompat` lack or read otherwise.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::bounds;

/// A result of a template function.
type Answer<T = Value> = Result<T, Error>;

/// Makes values of a template behave as in Python.
pub(crate) fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", |text: &str, chars: Option<&str>| strip(text, chars).to_string());
    environment.add_filter("int", int);
    environment.add_filter("string", |value: &Value| -> Answer {
        if value.as_str().is_some() {
            return Ok(value.clone());
        }
        bounds::check(value)?;
        Ok(value.to_string().into())
    });
    // In Python strings and dicts have a length and items, which is all that Jinja asks for.
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String};
        value.is_undefined() || matches!(value.kind(), Seq | Map | String | Iterable)
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Answer {
    if let Some(text) = value.as_str()
        && let Some(answer) = string_method(text, name, args)
    {
        return answer;
    }
    if value.kind() == ValueKind::Map && name == "copy" {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Option<Answer> {
    Some(match name {
        "strip" => chars(args).map(|set| strip(text, set).into()),
        "lstrip" => chars(args).map(|set| text.trim_start_matches(|c| in_set(c, set)).into()),
        "rstrip" => chars(args).map(|set| text.trim_end_matches(|c| in_set(c, set)).into()),
        "removeprefix" => one(args).map(|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "index" => one(args).and_then(|part| place(text, text.find(part))),
        "rindex" => one(args).and_then(|part| place(text, text.rfind(part))),
        "partition" => one(args).and_then(|separator| partition(text, separator, true)),
        "rpartition" => one(args).and_then(|separator| partition(text, separator, false)),
        "rsplit" => rsplit(text, args)?,
        // A width in a format is a number that the template chooses.
        "format" if text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 5) => {
            Err(invalid("format: the width is too large"))
        }
        "zfill" => from_args(args).and_then(|(width,): (usize,)| zfill(text, width)),
        "ljust" => justify(text, args, |_, _| 0),
        "rjust" => justify(text, args, |missing, _| missing),
        // CPython puts the odd character to the left only where the width is odd.
        "center" => justify(text, args, |missing, width| missing / 2 + (missing & width & 1)),
        _ => return None,
    })
}

fn one(args: &[Value]) -> Answer<&str> {
    from_args(args).map(|(text,): (&str,)| text)
}

fn chars(args: &[Value]) -> Answer<Option<&str>> {
    from_args(args).map(|(set,): (Option<&str>,)| set)
}

fn strip<'t>(text: &'t str, chars: Option<&str>) -> &'t str {
    text.trim_matches(|c| in_set(c, chars))
}

/// Without a set, white space as Python has it: Unicode's, and the four separators U+001C to U+001F.
fn in_set(c: char, chars: Option<&str>) -> bool {
    match chars {
        Some(chars) => chars.contains(c),
        None => c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}'),
    }
}

fn place(text: &str, at: Option<usize>) -> Answer {
    match at {
        Some(at) => Ok(text[..at].chars().count().into()),
        None => Err(invalid("substring not found")),
    }
}

fn partition(text: &str, separator: &str, first: bool) -> Answer {
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let found = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if first => [text, "", ""],
        None => ["", "", text],
    };
    Ok(Value::from_object(Tuple::from(parts.map(Value::from).to_vec())))
}

/// `rsplit(separator, maxsplit=-1)`; without a separator or a limit `split` gives the same.
fn rsplit(text: &str, args: &[Value]) -> Option<Answer> {
    let (separator, limit) = match from_args::<(Option<&str>, Option<i64>)>(args) {
        Ok((Some(separator), limit)) if !separator.is_empty() => (separator, limit),
        Ok(_) => return Some(Err(invalid("rsplit: give a separator"))),
        Err(error) => return Some(Err(error)),
    };
    let count = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX).saturating_add(1);
    let mut parts: Vec<Value> = text.rsplitn(count, separator).map(Value::from).collect();
    parts.reverse();
    Some(Ok(parts.into()))
}

fn zfill(text: &str, width: usize) -> Answer {
    let missing = fill(text, width)?;
    let (sign, digits) = match text.chars().next() {
        Some('+' | '-') => text.split_at(1),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into())
}

fn justify(text: &str, args: &[Value], left: impl Fn(usize, usize) -> usize) -> Answer {
    let (width, with): (usize, Option<&str>) = from_args(args)?;
    let (missing, with) = (fill(text, width)?, with.unwrap_or(" "));
    let left = left(missing, width);
    Ok(format!("{}{text}{}", with.repeat(left), with.repeat(missing - left)).into())
}

/// How many characters are missing to `width`; a template must not fill the memory.
fn fill(text: &str, width: usize) -> Answer<usize> {
    if width > 1 << 16 {
        return Err(invalid("the width is too large"));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// `int(value, default=0)`: the default where the value is no number.
fn int(value: &Value, default: Option<Value>) -> Answer {
    let number = match value.as_str() {
        Some(text) => {
            let text = strip(text, None).replace('_', "");
            text.parse::<i64>().ok().or_else(|| text.parse().ok().and_then(truncated))
        }
        None => value.as_i64().or_else(|| f64::try_from(value.clone()).ok().and_then(truncated)),
    };
    Ok(number.map(Value::from).or(default).unwrap_or_else(|| 0.into()))
}

fn truncated(float: f64) -> Option<i64> {
    float.is_finite().then_some(float as i64)
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
