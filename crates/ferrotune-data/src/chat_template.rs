//! Chat templates: messages to the text that the model was trained on.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

use crate::own_stack::{self, Failed};
use crate::{Error, Message, Result, bounds, generation_tags, python_json, python_methods, strftime};

/// Steps that a template may take before it is stopped; it also pays one for 64 bytes of text that it makes, so this bounds
/// the memory (128 MiB) as well. The templates in use need some hundreds per message.
const FUEL: u64 = 2_000_000;

/// The longest template that is compiled; those in use have up to 30 KB.
pub(crate) const MAX_TEMPLATE_BYTES: usize = 128 << 10;

/// The name under which the template is compiled.
const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens it refers to.
///
/// Renders what `transformers`' `apply_chat_template(..., tokenize=False)` renders: Jinja with `trim_blocks`,
/// `lstrip_blocks` and loop controls; undefined variables render as nothing; the functions `raise_exception`,
/// `strftime_now`, `namespace`, `dict`; `tojson` as Python's `json.dumps`; `{% generation %}` blocks; Python's methods of
/// strings and dicts. `tools` and `documents` are none.
///
/// `strftime_now` gives the time in UTC (Python gives local time), unless [`at_time`](Self::at_time) fixes it.
///
/// A template is a program out of a downloaded folder. Its length, its steps, the text it makes and the depth of what it shows are
/// limited. What is not are operators on values built to defeat them: `~`, `==` and `<` on a list or namespace that holds itself, or
/// one list many times over, and a list that is added to itself dozens of times.
///
/// # Examples
/// ```
/// # fn main() -> ferrotune_data::Result<()> {
/// use ferrotune_data::{ChatTemplate, Message};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}\
///               {% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new(source, [("eos_token".to_string(), "</s>".to_string())])?;
/// let messages = [Message::new("user", " Hello ")];
/// assert_eq!(template.render(&messages, true)?, "<user>Hello</s>\n<assistant>");
/// # Ok(()) }
/// ```
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: BTreeMap<String, String>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { environment: _, source, special_tokens } = self;
        f.debug_struct("ChatTemplate")
            .field("source", source)
            .field("special_tokens", special_tokens)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are variables for it, such as `("eos_token", "</s>")`.
    ///
    /// # Errors
    /// [`Error::TemplateSyntax`] with the line if the source is not valid Jinja.
    pub fn new(source: &str, special_tokens: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let cause = format!(
                "{} bytes, more than the {MAX_TEMPLATE_BYTES} that a template may have",
                source.len()
            );
            return Err(Error::TemplateSyntax { line: 1, cause });
        }
        let invalid = |error: minijinja::Error| Error::TemplateSyntax {
            line: error.line().unwrap_or(1),
            cause: words(&error),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(invalid)?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        // Errors would carry the template's variables, which may be nested too deeply to be dropped on another stack.
        environment.set_debug(false);
        python_methods::install(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| now(SystemTime::now(), format));
        environment.add_filter("tojson", tojson);
        environment.set_formatter(|out, state, value| {
            bounds::check(value)?;
            minijinja::escape_formatter(out, state, value)
        });
        // Jinja reads every line end as \n, and the tag `generation` is an extension of transformers.
        let text = generation_tags::replace(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let compiled = own_stack::run(|| environment.add_template_owned(NAME, text));
        compiled
            .map_err(|Failed(why)| Error::TemplateSyntax { line: 1, cause: why.to_string() })?
            .map_err(invalid)?;
        Ok(Self {
            environment,
            source: source.to_string(),
            special_tokens: special_tokens.into_iter().collect(),
        })
    }

    /// Fixes the time that `strftime_now` sees, so that the same data give the same text on every day.
    #[must_use]
    pub fn at_time(mut self, time: SystemTime) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| now(time, format));
        self
    }

    /// The source, as given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders messages; `add_generation_prompt` adds the opening of the assistant's answer.
    ///
    /// # Errors
    /// - [`Error::TemplateRaised`] if the template refuses the messages with `raise_exception`
    /// - [`Error::TemplateEndless`] if it does not come to an end
    /// - [`Error::TemplateRender`] if it fails
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut variables: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        variables.insert("messages", messages.iter().map(message_value).collect());
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        let rendered = own_stack::run(|| {
            self.environment.get_template(NAME).and_then(|template| template.render(variables))
        });
        let rendered =
            rendered.map_err(|Failed(why)| Error::TemplateRender { line: 1, cause: why.to_string() })?;
        rendered.map_err(|error| {
            let line = error.line().unwrap_or(1);
            match raised(&error) {
                Some(message) => Error::TemplateRaised { message },
                None if error.kind() == ErrorKind::OutOfFuel => Error::TemplateEndless { line, steps: FUEL },
                None => Error::TemplateRender { line, cause: words(&error) },
            }
        })
    }
}

fn message_value(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
}

fn words(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Marks an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> std::result::Result<Value, minijinja::Error> {
    bounds::check(message)?;
    let message = message.to_string();
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn raised(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

fn now(time: SystemTime, format: &str) -> std::result::Result<String, minijinja::Error> {
    strftime::format_utc(time, format).map_err(|directive| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {directive} is not supported"),
        )
    })
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> std::result::Result<Value, minijinja::Error> {
    let style = python_json::Style {
        ensure_ascii: match ensure_ascii {
            Some(given) => given,
            None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        },
        indent: options.get::<Option<Value>>("indent")?,
        separators: options.get::<Option<Vec<String>>>("separators")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(Value::from_safe_string(python_json::dumps(value, &style)?))
}
