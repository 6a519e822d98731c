//! Examples: what the model is asked and what it should answer.

use std::borrow::Cow;
use std::path::Path;

use crate::json::{Json, Node, Problem};
use crate::jsonl::read_lines;
use crate::{LineProblem, OnError, Problems, Result, Source};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the chat template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What the model is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Plain text, used as it is, without a chat template.
    Text(String),
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
}

impl Prompt {
    /// The words of the prompt, without the marks of a chat template: the plain text, or the contents of the messages with a blank
    /// line between them.
    pub fn text(&self) -> String {
        match self {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

/// What the model should answer: the only part that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Plain text that follows the prompt directly, without a separator.
    Text(String),
    /// The messages that follow those of the prompt; the first is the assistant's.
    Messages(Vec<Message>),
}

impl Completion {
    /// The text of the answer: the plain text, or the content of the last message.
    pub fn text(&self) -> &str {
        match self {
            Completion::Text(text) => text,
            Completion::Messages(messages) => messages.last().map_or("", |message| &message.content),
        }
    }
}

/// A prompt, its completion, and the line it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the model is given.
    pub prompt: Prompt,
    /// What it should answer.
    pub completion: Completion,
    /// The line of the file.
    pub source: Source,
}

/// Reads a JSONL file of examples; `limit` takes the first `n` examples and does not look at the rest.
///
/// Each line is one object in one of these forms:
///
/// | fields | prompt | completion |
/// |---|---|---|
/// | `instruction`, `output` | one user message | one assistant message |
/// | `prompt`, `completion` as strings | the string | the string |
/// | `prompt`, `completion` as lists of messages | the messages | the messages, of which the first is the assistant's |
/// | `messages` | all but the last message | the last message, which is the assistant's |
///
/// A message is `{"role": "...", "content": "..."}`. With `instruction`, a non-empty `input` is appended after a blank line,
/// and a non-empty `system` becomes a system message before it. **Of `messages` only the last answer is trained**; earlier
/// answers are context. Other fields are ignored, but those that would change what the model sees and that are not
/// supported (`tools`, `chat_template_kwargs`; `tool_calls`, `reasoning_content`, `reasoning`, `thinking` of a message) are
/// refused unless they are null or empty, and so are a message's `weight` unless it is 1 and what looks like a misspelt `input` or `system`.
///
/// A byte order mark and CRLF line ends are accepted. Blank lines are skipped; those between examples are counted in a
/// warning. Texts must not be empty or only white space, except the content of a system message.
///
/// # Errors
/// - [`Error::BadLines`](crate::Error::BadLines) with the line, the column, what was expected and what was found: the first
///   20 bad lines and how many there are
/// - [`Error::NotJsonLines`](crate::Error::NotJsonLines), [`Error::EmptyFile`](crate::Error::EmptyFile),
///   [`Error::NotAFile`](crate::Error::NotAFile), [`Error::Io`](crate::Error::Io)
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ferrotune_data::{Prompt, read_examples};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("train.jsonl");
///
/// std::fs::write(&path, r#"{"instruction": "Name a colour.", "output": "Blue."}"#)?;
/// let examples = read_examples(&path, None)?;
/// assert!(matches!(&examples[0].prompt, Prompt::Messages(messages) if messages[0].role == "user"));
///
/// std::fs::write(&path, r#"{"instruction": "Name a colour.", "output": 5}"#)?;
/// let error = read_examples(&path, None).unwrap_err().to_string();
/// assert!(error.ends_with("train.jsonl:1:45: expected a string in `output`, found a number"));
/// # Ok(()) }
/// ```
pub fn read_examples(path: &Path, limit: Option<usize>) -> Result<Vec<Example>> {
    Ok(read_examples_with(path, limit, OnError::Strict)?.0)
}

/// Reads a JSONL file as [`read_examples`] does; with [`OnError::Skip`] bad lines are left out, and what is wrong with them is
/// returned beside the examples. Of the lines that `limit` takes, the bad ones are some.
///
/// # Errors
/// As [`read_examples`]; with [`OnError::Skip`] no `BadLines`, but [`Error::NothingLeft`](crate::Error::NothingLeft) if
/// every line is bad.
///
/// # Examples
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ferrotune_data::{OnError, read_examples_with};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("train.jsonl");
///
/// std::fs::write(&path, "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n{\"prompt\": \"2 + 2 =\"}\n")?;
/// let (examples, skipped) = read_examples_with(&path, None, OnError::Skip)?;
/// assert_eq!((examples.len(), skipped.total), (1, 1));
/// assert_eq!(skipped.first[0].source.line, 2);
/// # Ok(()) }
/// ```
pub fn read_examples_with(
    path: &Path,
    limit: Option<usize>,
    on_error: OnError,
) -> Result<(Vec<Example>, Problems<LineProblem>)> {
    read_lines(path, limit, on_error, |source, node, _| example(source, node))
}

/// The pairs of fields of which one must be there, whole.
const FORMS: [&[&str]; 3] = [&["instruction", "output"], &["prompt", "completion"], &["messages"]];
const FORMS_IN_WORDS: &str = "`instruction` and `output`, or `prompt` and `completion`, or `messages`";

struct Fields<'a> {
    at: usize,
    fields: Vec<(Cow<'a, str>, Node<'a>)>,
}

impl<'a> Fields<'a> {
    /// The field, unless it is absent or null.
    fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.fields.iter().find(|(key, node)| key == name && node.value != Json::Null).map(|(_, node)| node)
    }

    fn text(&self, name: &str) -> Result<String, Problem> {
        match self.get(name) {
            Some(node) => some_text(node, name),
            None => Err(Problem::new(self.at, format!("a field `{name}`"), "none")),
        }
    }

    /// A text that may be absent, null or blank.
    fn optional_text(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(node) => Ok(Some(any_text(node, name)?.to_string()).filter(|text| !text.trim().is_empty())),
        }
    }

    /// Refuses fields that would change what the model sees.
    fn refuse(&self, names: &[&str]) -> Result<(), Problem> {
        for name in names {
            if let Some(node) = self.get(name).filter(|node| !node.value.is_blank()) {
                let expected = format!("no field `{name}`, which is not supported");
                return Err(Problem::new(node.at, expected, node.value.kind()));
            }
        }
        Ok(())
    }
}

fn example(source: Source, node: Node<'_>) -> Result<Example, Problem> {
    let at = node.at;
    let fields = match node.value {
        Json::Object(fields) => Fields { at, fields },
        Json::Array(_) => {
            return Err(Problem::new(at, "one JSON object a line", "an array: write its items one a line"));
        }
        other => return Err(Problem::new(at, "one JSON object a line", other.kind())),
    };
    let whole: Vec<&[&str]> =
        FORMS.into_iter().filter(|form| form.iter().all(|name| fields.get(name).is_some())).collect();
    let (prompt, completion) = match whole.as_slice() {
        [["messages"]] => {
            fields.refuse(&["tools", "chat_template_kwargs"])?;
            conversation(&fields)?
        }
        [["prompt", "completion"]] => pair(&fields)?,
        [_] => instruction(&fields)?,
        [] => return Err(incomplete(&fields)),
        _ => {
            let found = "more than one of them: rename or remove the fields that are not meant";
            return Err(Problem::new(at, format!("one form of example: {FORMS_IN_WORDS}"), found));
        }
    };
    Ok(Example { prompt, completion, source })
}

/// No form is whole: say which field of the form that was begun is missing.
fn incomplete(fields: &Fields<'_>) -> Problem {
    for form in FORMS {
        let there = form.iter().find(|name| fields.get(name).is_some());
        let missing = form.iter().find(|name| fields.get(name).is_none());
        if let (Some(there), Some(missing)) = (there, missing) {
            let null = fields.fields.iter().find(|(key, _)| key == missing);
            let (at, found) = null.map_or((fields.at, "none"), |(_, node)| (node.at, "null"));
            return Problem::new(at, format!("a field `{missing}` beside `{there}`"), found);
        }
    }
    let names: Vec<String> =
        fields.fields.iter().take(6).map(|(key, _)| format!("`{}`", crate::json::shorten(key))).collect();
    let found = match names.len() {
        0 => "an empty object".to_string(),
        _ if fields.fields.len() > names.len() => format!("{}, ...", names.join(", ")),
        _ => names.join(", "),
    };
    Problem::new(fields.at, format!("the fields {FORMS_IN_WORDS}"), found)
}

/// A field that may be absent is easily lost to a slip of the hand: the same letters in another order or case, or one more.
fn check_spelling(fields: &Fields<'_>, names: &[&'static str]) -> Result<(), Problem> {
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.to_lowercase().chars().collect();
        letters.sort_unstable();
        letters
    };
    for name in names {
        if fields.get(name).is_some() {
            continue;
        }
        let meant = |key: &str| {
            key != *name
                && key.len() <= name.len() + 1
                && (letters(key) == letters(name) || key.to_lowercase() == format!("{name}s"))
        };
        if let Some((key, node)) = fields.fields.iter().find(|(key, _)| meant(key)) {
            let found = format!("`{key}`, which would be passed over: rename it");
            return Err(Problem::new(node.at, format!("the field `{name}`, or another name"), found));
        }
    }
    Ok(())
}

fn instruction(fields: &Fields<'_>) -> Result<(Prompt, Completion), Problem> {
    check_spelling(fields, &["input", "system"])?;
    let mut question = fields.text("instruction")?;
    if let Some(input) = fields.optional_text("input")? {
        question = format!("{question}\n\n{input}");
    }
    let system = fields.optional_text("system")?.map(|text| Message::new("system", text));
    let prompt = system.into_iter().chain([Message::new("user", question)]).collect();
    let answer = Message::new("assistant", fields.text("output")?);
    Ok((Prompt::Messages(prompt), Completion::Messages(vec![answer])))
}

fn pair(fields: &Fields<'_>) -> Result<(Prompt, Completion), Problem> {
    let (Some(prompt), Some(completion)) = (fields.get("prompt"), fields.get("completion")) else {
        return Err(incomplete(fields));
    };
    match (&prompt.value, &completion.value) {
        (Json::Array(_), Json::Array(_)) => {
            fields.refuse(&["tools", "chat_template_kwargs"])?;
            let (prompt, at) = (messages(prompt, "prompt")?, completion.at);
            let completion = messages(completion, "completion")?;
            match completion.first() {
                Some(first) if first.role == "assistant" => {
                    Ok((Prompt::Messages(prompt), Completion::Messages(completion)))
                }
                Some(first) => Err(Problem::new(
                    at,
                    "a completion that begins with role `assistant`",
                    quoted(&first.role),
                )),
                None => Err(Problem::new(at, "at least one message in `completion`", "none")),
            }
        }
        (Json::Array(_), other) => {
            let expected = "a list of messages in `completion`, as in `prompt`";
            Err(Problem::new(completion.at, expected, other.kind()))
        }
        (Json::String(_), Json::Array(_)) => {
            let expected = "a string in `completion`, as in `prompt`";
            Err(Problem::new(completion.at, expected, "an array"))
        }
        (Json::String(_), _) => {
            Ok((Prompt::Text(fields.text("prompt")?), Completion::Text(fields.text("completion")?)))
        }
        (other, _) => {
            Err(Problem::new(prompt.at, "a string or a list of messages in `prompt`", other.kind()))
        }
    }
}

fn conversation(fields: &Fields<'_>) -> Result<(Prompt, Completion), Problem> {
    let Some(node) = fields.get("messages") else { return Err(incomplete(fields)) };
    let mut prompt = messages(node, "messages")?;
    match prompt.pop() {
        Some(last) if last.role != "assistant" => {
            let expected = "messages that end with role `assistant`";
            Err(Problem::new(last_item(node), expected, quoted(&last.role)))
        }
        Some(_) if prompt.is_empty() => {
            Err(Problem::new(node.at, "at least one message before the answer", "only the answer"))
        }
        Some(last) => Ok((Prompt::Messages(prompt), Completion::Messages(vec![last]))),
        None => Err(Problem::new(node.at, "at least two messages", "none")),
    }
}

fn last_item(node: &Node<'_>) -> usize {
    match &node.value {
        Json::Array(items) => items.last().map_or(node.at, |item| item.at),
        _ => node.at,
    }
}

fn messages(node: &Node<'_>, name: &str) -> Result<Vec<Message>, Problem> {
    let Json::Array(items) = &node.value else {
        return Err(Problem::new(node.at, format!("a list of messages in `{name}`"), node.value.kind()));
    };
    if items.is_empty() {
        return Err(Problem::new(node.at, format!("at least one message in `{name}`"), "an empty list"));
    }
    items.iter().map(message).collect()
}

fn message(item: &Node<'_>) -> Result<Message, Problem> {
    const SHAPE: &str = "a message {\"role\": \"...\", \"content\": \"...\"}";
    let Json::Object(fields) = &item.value else {
        return Err(Problem::new(item.at, SHAPE, item.value.kind()));
    };
    let get = |name: &str| {
        let field = fields.iter().find(|(key, _)| key == name);
        field.map(|(_, node)| node).ok_or_else(|| Problem::new(item.at, SHAPE, format!("no field `{name}`")))
    };
    for name in ["tool_calls", "reasoning_content", "reasoning", "thinking"] {
        if let Some(node) = get(name).ok().filter(|node| !node.value.is_blank()) {
            let expected = format!("no field `{name}`, which is not supported");
            return Err(Problem::new(node.at, expected, node.value.kind()));
        }
    }
    if let Some(node) = get("weight").ok().filter(|node| node.value != Json::Number("1")) {
        let expected = "no `weight`, or 1: a message is trained or not by its place";
        return Err(Problem::new(node.at, expected, node.value.kind()));
    }
    let role = some_text(get("role")?, "role")?;
    let content = get("content")?;
    let content = if role == "system" {
        any_text(content, "content")?.to_string()
    } else {
        some_text(content, "content")?
    };
    Ok(Message { role, content })
}

fn any_text<'n>(node: &'n Node<'_>, name: &str) -> Result<&'n str, Problem> {
    match &node.value {
        Json::String(text) => Ok(text),
        other => Err(Problem::new(node.at, format!("a string in `{name}`"), other.kind())),
    }
}

fn some_text(node: &Node<'_>, name: &str) -> Result<String, Problem> {
    let text = any_text(node, name)?;
    if text.trim().is_empty() {
        let found = if text.is_empty() { "an empty string" } else { "only white space" };
        return Err(Problem::new(node.at, format!("some text in `{name}`"), found));
    }
    Ok(text.to_string())
}

fn quoted(text: &str) -> String {
    format!("`{}`", crate::json::shorten(text))
}
