//! A JSON value that knows where it stood, and a strict parser for one line.
//!
//! `serde_json` keeps the last of two equal keys and forgets positions; a data file deserves the column of the field that is
//! wrong, so this crate reads its lines itself.

use std::borrow::Cow;
use std::collections::HashSet;

/// Objects and arrays nested deeper than this are refused.
const MAX_DEPTH: usize = 64;

/// A line with more values is refused: each takes many times the two bytes that it can be written in.
const MAX_VALUES: usize = 1 << 20;

/// A value and the byte at which it starts.
#[derive(Debug, PartialEq)]
pub(crate) struct Node<'a> {
    pub at: usize,
    pub value: Json<'a>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    /// The digits as written.
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Json<'a> {
    /// The kind of value in words, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }

    /// True for null and for the empty string, array and object.
    pub fn is_blank(&self) -> bool {
        match self {
            Json::Null => true,
            Json::String(text) => text.is_empty(),
            Json::Array(items) => items.is_empty(),
            Json::Object(fields) => fields.is_empty(),
            Json::Bool(_) | Json::Number(_) => false,
        }
    }
}

/// What is wrong, and the byte at which it is.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    pub at: usize,
    pub expected: String,
    pub found: String,
}

impl Problem {
    pub fn new(at: usize, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { at, expected: expected.into(), found: found.into() }
    }
}

/// Parses exactly one JSON value, with nothing but white space around it.
pub(crate) fn parse(text: &str) -> Result<Node<'_>, Problem> {
    let mut parser = Parser { text, at: 0, values: 0 };
    parser.skip_space();
    let node = parser.value(0)?;
    parser.skip_space();
    if parser.at < text.len() {
        let found = match parser.peek() {
            Some(b'{') if text[node.at..parser.at].contains('\r') => {
                "a second object after a bare carriage return: end the lines with \\n, as tr '\\r' '\\n' does"
                    .to_string()
            }
            Some(b'{') => "a second object: put each on a line of its own".to_string(),
            _ => format!("{} after it", parser.here()),
        };
        return Err(Problem::new(parser.at, "the end of the line after the first value", found));
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// What stands at the current place, in words.
    fn here(&self) -> String {
        match self.text[self.at..].chars().next() {
            None => "the end of the line".to_string(),
            Some(c) if c.is_control() => format!("the control character U+{:04X}", c as u32),
            Some(c) if c.is_whitespace() || c == '\u{feff}' => {
                format!("the invisible character U+{:04X}", c as u32)
            }
            Some(c) => format!("`{c}`"),
        }
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T, Problem> {
        let found = if self.at >= self.text.len() && expected != "a JSON value" {
            "the end of the line: the line is cut".to_string()
        } else {
            self.here()
        };
        Err(Problem::new(self.at, expected, found))
    }

    fn value(&mut self, depth: usize) -> Result<Node<'a>, Problem> {
        let at = self.at;
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(Problem::new(at, format!("at most {MAX_VALUES} values in a line"), "one more"));
        }
        let value = match self.peek() {
            Some(b'{' | b'[') if depth >= MAX_DEPTH => {
                return Err(Problem::new(
                    at,
                    format!("at most {MAX_DEPTH} levels of nesting"),
                    "a deeper one",
                ));
            }
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Json::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Json::Number(self.number()?),
            Some(b't') => self.word("true", Json::Bool(true))?,
            Some(b'f') => self.word("false", Json::Bool(false))?,
            Some(b'n') => self.word("null", Json::Null)?,
            _ => return self.unexpected("a JSON value"),
        };
        Ok(Node { at, value })
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Result<Json<'a>, Problem> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            self.unexpected("a JSON value")
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json<'a>, Problem> {
        self.at += 1;
        let mut fields: Vec<(Cow<'a, str>, Node<'a>)> = Vec::new();
        let mut seen = HashSet::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(fields));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return self.unexpected("a field name in double quotes");
            }
            let at = self.at;
            let key = self.string()?;
            if !seen.insert(key.clone()) {
                let found = format!("the field `{}` a second time", shorten(&key));
                return Err(Problem::new(at, "every field at most once", found));
            }
            self.skip_space();
            if self.peek() != Some(b':') {
                return self.unexpected("`:` after the field name");
            }
            self.at += 1;
            self.skip_space();
            if self.at >= self.text.len() {
                return self.unexpected("the value of the field");
            }
            let value = self.value(depth + 1)?;
            fields.push((key, value));
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(fields));
                }
                _ => return self.unexpected("`,` or `}`"),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json<'a>, Problem> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            self.skip_space();
            if self.at >= self.text.len() {
                return self.unexpected("an item of the array");
            }
            items.push(self.value(depth + 1)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Json::Array(items));
                }
                _ => return self.unexpected("`,` or `]`"),
            }
        }
    }

    fn number(&mut self) -> Result<&'a str, Problem> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.unexpected("a digit"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), Problem> {
        match self.peek() {
            Some(b'0'..=b'9') => {
                self.digits();
                Ok(())
            }
            _ => self.unexpected("a digit"),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Problem> {
        self.at += 1;
        let start = self.at;
        let mut owned: Option<String> = None;
        let mut copied = start;
        loop {
            match self.peek() {
                None => return self.unexpected("`\"` at the end of the string"),
                Some(b'"') => {
                    let rest = &self.text[copied..self.at];
                    self.at += 1;
                    return Ok(match owned {
                        None => Cow::Borrowed(rest),
                        Some(mut text) => {
                            text.push_str(rest);
                            Cow::Owned(text)
                        }
                    });
                }
                Some(b'\\') => {
                    let text = owned.get_or_insert_with(String::new);
                    text.push_str(&self.text[copied..self.at]);
                    let c = self.escape()?;
                    text.push(c);
                    copied = self.at;
                }
                Some(0..=0x1f) => {
                    let expected = "text without raw control characters (write them as \\n, \\t, \\u....)";
                    return self.unexpected(expected);
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<char, Problem> {
        let start = self.at;
        self.at += 1;
        let simple = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape(start);
            }
            _ => return self.unexpected("one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u after the backslash"),
        };
        self.at += 1;
        Ok(simple)
    }

    fn unicode_escape(&mut self, start: usize) -> Result<char, Problem> {
        let high = self.hex4()?;
        let code = match high {
            0xD800..=0xDBFF if self.text[self.at..].starts_with("\\u") => {
                self.at += 2;
                let low = self.hex4()?;
                if (0xDC00..=0xDFFF).contains(&low) {
                    0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                } else {
                    high
                }
            }
            other => other,
        };
        match char::from_u32(code) {
            Some('\0') => Err(Problem::new(start, "text without NUL characters", "`\\u0000`")),
            Some(c) => Ok(c),
            None => {
                let found = format!("the lone half `\\u{high:04x}`");
                Err(Problem::new(start, "both halves of a surrogate pair", found))
            }
        }
    }

    fn hex4(&mut self) -> Result<u32, Problem> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let mut code = 0;
        for offset in 0..4 {
            match digits.get(offset).and_then(|digit| (*digit as char).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => {
                    while self.at < self.text.len() && self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                        self.at += 1;
                    }
                    return self.unexpected("four hexadecimal digits after \\u");
                }
            }
        }
        self.at += 4;
        Ok(code)
    }
}

/// At most 40 characters of a text, for messages.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to_serde(node: &Node) -> serde_json::Value {
        match &node.value {
            Json::Null => serde_json::Value::Null,
            Json::Bool(b) => (*b).into(),
            Json::Number(digits) => serde_json::from_str(digits).unwrap(),
            Json::String(text) => text.as_ref().into(),
            Json::Array(items) => items.iter().map(to_serde).collect(),
            Json::Object(fields) => {
                fields.iter().map(|(key, value)| (key.to_string(), to_serde(value))).collect()
            }
        }
    }

    #[test]
    fn positions_are_byte_offsets() {
        let node = parse(r#" {"a": [1, "é", {"b":null}]}"#).unwrap();
        let Json::Object(fields) = &node.value else { panic!() };
        assert_eq!((node.at, fields[0].1.at), (1, 7));
    }

    #[test]
    fn problems_say_where_and_what() {
        for (text, at, expected, found) in [
            ("", 0, "a JSON value", "the end of the line"),
            (r#"{"a": "b"#, 8, "`\"` at the end of the string", "the end of the line: the line is cut"),
            (r#"{"a": 1"#, 7, "`,` or `}`", "the end of the line: the line is cut"),
            (r#"{"a":"#, 5, "the value of the field", "the end of the line: the line is cut"),
            (r#"{"a": 1} {"a": 2}"#, 9, "the end of the line after the first value", "a second object"),
            (r#"{"a": 1},"#, 8, "the end of the line after the first value", "`,` after it"),
            (r#"{"a": 1, "a": 2}"#, 9, "every field at most once", "the field `a` a second time"),
            (r#"{'a': 1}"#, 1, "a field name in double quotes", "`'`"),
            (r#"{"a": 1,}"#, 8, "a field name in double quotes", "`}`"),
            (r#"{"a": NaN}"#, 6, "a JSON value", "`N`"),
            (r#"{"a": 01}"#, 7, "`,` or `}`", "`1`"),
            (r#"{"a": "\u00"}"#, 11, "four hexadecimal digits", "`\"`"),
            (r#"{"a": "\ud800x"}"#, 7, "both halves of a surrogate pair", "\\ud800"),
            (r#"{"a": "x\u0000"}"#, 8, "text without NUL characters", "`\\u0000`"),
            ("{\"a\": \"x\0\"}", 8, "text without raw control characters", "U+0000"),
            ("{\"a\": \"x\ty\"}", 8, "text without raw control characters", "U+0009"),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.at, at, "{text}");
            assert!(problem.expected.starts_with(expected), "{text}: {problem:?}");
            assert!(problem.found.contains(found), "{text}: {problem:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_a_crash() {
        let text = "[".repeat(1_000_000);
        assert!(parse(&text).unwrap_err().expected.contains("levels of nesting"));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in r#"[ \[\]{}",:a\\nu0-9eE.+truefalsnd-]{0,40}"#) {
            if let Ok(node) = parse(&text) {
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&text).ok(), Some(to_serde(&node)));
            }
        }

        #[test]
        fn reads_what_serde_json_writes(strings in proptest::collection::vec("[^\0]*", 0..5)) {
            let text = serde_json::to_string(&strings).unwrap();
            let node = parse(&text).unwrap();
            prop_assert_eq!(to_serde(&node), serde_json::json!(strings));
        }
    }
}
