//! The tokenizer of a model directory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::tokenizer_config::{TemplateSource, TokenizerConfig};
use crate::{ChatTemplate, Error, Example, Prompt, Result, file};

/// The largest `tokenizer.json` that is read; those in use have 2 to 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// The tokenizer of a Hugging Face model directory, with its special tokens and its chat template.
///
/// Encodes and decodes as `transformers.AutoTokenizer` does for a directory that has a `tokenizer.json`. Truncation,
/// padding and a dropout of merges that are stored in that file are switched off.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    config: TokenizerConfig,
    template: Option<ChatTemplate>,
    new_tokens: Vec<String>,
    directory: PathBuf,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("directory", &self.directory)
            .field("vocab_size", &self.vocab_size())
            .field("special_tokens", &self.config.special_tokens)
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, and, where they are there, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja`, in the forms that transformers 4 and 5 write. `chat_template.jinja` wins over the field
    /// `chat_template`; of several named templates `default` is taken.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Io`], [`Error::BadTokenizerFile`]; [`Error::BadChatTemplate`] if the chat template is
    /// not valid. A missing chat template is no error until messages are to be rendered.
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::MissingFile {
                path,
                help: "a model directory needs it; where there is only `tokenizer.model` or `vocab.json`, Python writes it with \
                       `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)`",
            });
        }
        let bytes = file::read(&path, MAX_TOKENIZER_BYTES)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| Error::BadTokenizerFile {
            path: path.clone(),
            expected: "a serialised tokenizer".to_string(),
            found: error.to_string(),
        })?;
        tokenizer.with_padding(None);
        switch_dropout_off(&mut tokenizer);
        tokenizer.with_truncation(None).map_err(|error| Error::BadTokenizerFile {
            path: path.clone(),
            expected: "a tokenizer whose truncation can be switched off".to_string(),
            found: error.to_string(),
        })?;
        let config = TokenizerConfig::from_dir(directory)?;
        let new_tokens = add_missing_tokens(&mut tokenizer, &config, &path)?;
        let template = match &config.chat_template {
            Some(TemplateSource { text, path, field }) => {
                let template = ChatTemplate::new(text, config.special_tokens.clone());
                Some(template.map_err(|cause| Error::BadChatTemplate {
                    path: path.clone(),
                    field: *field,
                    cause: Box::new(cause),
                })?)
            }
            None => None,
        };
        Ok(Self { tokenizer, config, template, new_tokens, directory: directory.to_path_buf() })
    }

    /// Token ids of a text. `add_special_tokens` adds what the tokenizer adds by itself to plain text, such as a start token;
    /// text from a chat template has its special tokens already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let action = || format!("encode {:?}", crate::json::shorten(text));
        let encoding = self.guarded(action, |tokenizer| tokenizer.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, as `tok.decode(ids, skip_special_tokens=...)` gives it. Ids outside the vocabulary are left
    /// out, as there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot decode the ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let action = || format!("decode {} ids", ids.len());
        let text = self.guarded(action, |tokenizer| tokenizer.decode(ids, skip_special_tokens))?;
        Ok(if self.cleans_up() { clean_up(&text) } else { text })
    }

    /// Calls the tokenizer underneath, which panics on some parts of a `tokenizer.json` that it has accepted.
    fn guarded<T>(
        &self,
        action: impl Fn() -> String,
        call: impl FnOnce(&Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T> {
        let failed =
            |cause| Error::Tokenizer { path: self.directory.join("tokenizer.json"), action: action(), cause };
        match catch_unwind(AssertUnwindSafe(|| call(&self.tokenizer))) {
            Ok(result) => result.map_err(|error| failed(error.to_string())),
            Err(_) => {
                Err(failed("a part of it (normalizer, model, decoder) cannot handle this text".to_string()))
            }
        }
    }

    /// transformers 5 heeds `clean_up_tokenization_spaces` only where it does no harm: not for BPE.
    fn cleans_up(&self) -> bool {
        let bpe = matches!(self.tokenizer.get_model(), ModelWrapper::BPE(_));
        self.config.clean_up_tokenization_spaces && (!bpe || self.config.clean_up_even_for_bpe)
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] if the directory has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| Error::NoChatTemplate { path: self.directory.clone() })
    }

    /// The text that the model is given to answer an example: its prompt, rendered with the opening of the answer, or the
    /// plain string.
    ///
    /// # Errors
    /// Those of [`chat_template`](Self::chat_template) and [`ChatTemplate::render`].
    pub fn render_prompt(&self, example: &Example) -> Result<String> {
        match &example.prompt {
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Messages(messages) => self.chat_template()?.render(messages, true),
        }
    }

    /// Token ids of [`render_prompt`](Self::render_prompt): a plain string with the tokenizer's own special tokens, text
    /// from the chat template without more.
    ///
    /// # Errors
    /// Those of [`render_prompt`](Self::render_prompt) and [`encode`](Self::encode).
    pub fn prompt_ids(&self, example: &Example) -> Result<Vec<u32>> {
        self.encode(&self.render_prompt(example)?, matches!(example.prompt, Prompt::Text(_)))
    }

    /// Number of tokens, added ones included. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The largest id of a token, plus one: what the model's embedding must have rows for. Ids may have gaps.
    pub fn id_limit(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Tokens that `tokenizer_config.json` or `special_tokens_map.json` adds to those of `tokenizer.json`; they have the last ids.
    pub fn new_tokens(&self) -> &[String] {
        &self.new_tokens
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// A special token by its name in `tokenizer_config.json`, such as `eos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.config.special_tokens.get(name).map(String::as_str)
    }

    /// The text of the end token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// The id of the start token.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.special_token("bos_token").and_then(|token| self.token_id(token))
    }

    /// The id of the end token.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token().and_then(|token| self.token_id(token))
    }

    /// The id of the padding token.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.special_token("pad_token").and_then(|token| self.token_id(token))
    }

    /// The tokenizer underneath.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

/// A dropout of merges would draw other tokens for the same text in each run.
fn switch_dropout_off(tokenizer: &mut Tokenizer) {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
        tracing::warn!("the dropout of merges in tokenizer.json is switched off");
    }
}

/// Special tokens of the configuration that `tokenizer.json` does not list become special all the same, as transformers
/// does it: they are never split, and `skip_special_tokens` leaves them out.
fn add_missing_tokens(
    tokenizer: &mut Tokenizer,
    config: &TokenizerConfig,
    path: &Path,
) -> Result<Vec<String>> {
    let mut new = Vec::new();
    let refused = |error: tokenizers::Error| Error::BadTokenizerFile {
        path: path.to_path_buf(),
        expected: "a tokenizer that takes the tokens of tokenizer_config.json".to_string(),
        found: error.to_string(),
    };
    let known = |tokenizer: &Tokenizer, token: &AddedToken| tokenizer.token_to_id(&token.content).is_some();
    for token in &config.added_tokens {
        if !known(tokenizer, token) {
            tracing::warn!(token = %token.content, "tokenizer.json lacks a token of tokenizer_config.json; it gets a new id");
            new.push(token.content.clone());
        }
        tokenizer.add_tokens([token.clone()]).map_err(refused)?;
    }
    for token in &config.special_added_tokens {
        if !known(tokenizer, token) {
            tracing::warn!(token = %token.content, "tokenizer.json lacks a special token; it gets a new id");
            new.push(token.content.clone());
        }
        tokenizer.add_special_tokens([token.clone()]).map_err(refused)?;
    }
    Ok(new)
}

/// Takes the spaces before punctuation away that a WordPiece decoder leaves.
fn clean_up(text: &str) -> String {
    let steps = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    steps.into_iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}
