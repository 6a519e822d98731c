//! JSON as Python's `json.dumps` writes it, for the filter `tojson`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// More text than any prompt has.
const MAX_BYTES: usize = 32 << 20;

/// More than any separator or indentation has.
const MAX_SEPARATOR_BYTES: usize = 64;

/// The parameters of `json.dumps`.
pub(crate) struct Style {
    pub ensure_ascii: bool,
    /// None, a number of spaces, or a string.
    pub indent: Option<Value>,
    /// Item separator and key separator.
    pub separators: Option<Vec<String>>,
    pub sort_keys: bool,
}

pub(crate) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let indent = match &style.indent {
        None => None,
        Some(indent) if indent.is_none() || indent.is_undefined() => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_string(),
            (None, Some(spaces)) => " ".repeat(spaces.clamp(0, 64) as usize),
            (None, None) => return Err(invalid("tojson: indent must be a number or a string")),
        }),
    };
    let (item, key) = match style.separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(invalid("tojson: separators must be two strings")),
    };
    if [item, key, indent.as_deref().unwrap_or_default()].iter().any(|text| text.len() > MAX_SEPARATOR_BYTES)
    {
        return Err(invalid("tojson: a separator or an indentation is too long"));
    }
    let mut writer = Writer { out: String::new(), style, indent: indent.as_deref(), item, key };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

struct Writer<'s> {
    out: String,
    style: &'s Style,
    indent: Option<&'s str>,
    item: &'s str,
    key: &'s str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.out.len() > MAX_BYTES {
            return Err(invalid("tojson: the text is too long"));
        }
        if depth > 128 {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let number = number(value);
                self.out.push_str(&number);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                self.items('[', ']', value.try_iter()?.map(|item| (None, item)).collect(), depth)?
            }
            ValueKind::Map => {
                let mut fields = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    fields.push((Some(key_text(&key)?), item));
                }
                if self.style.sort_keys {
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.items('{', '}', fields, depth)?;
            }
            other => {
                return Err(invalid(format!("tojson: a value of kind {other} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: Vec<(Option<String>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        let count = items.len();
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(self.item);
            }
            self.new_line(depth + 1);
            if let Some(key) = key {
                self.string(&key);
                self.out.push_str(self.key);
            }
            self.value(&item, depth + 1)?;
        }
        if count > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.style.ensure_ascii && !matches!(c, ' '..='~')) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python writes keys that are numbers, booleans or None as strings.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_string()),
        ValueKind::None => Ok("null".to_string()),
        other => Err(invalid(format!("tojson: a key of kind {other} is not JSON serializable"))),
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => python_float(float),
        Err(_) => value.to_string(),
    }
}

/// `repr(float)`: the shortest digits that read back the same, in exponent form below 1e-4 and from 1e16.
fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_string();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |digits| ("-", digits));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(python_float(float), text);
        }
    }
}
