#![doc = include_str!("../README.md")]

mod bounds;
mod chat_template;
mod error;
mod example;
mod file;
mod foreign;
mod generation_tags;
mod json;
mod jsonl;
mod on_error;
mod order;
mod own_stack;
mod pack;
mod preflight;
mod python_json;
mod python_methods;
mod source;
mod strftime;
mod tokenize;
mod tokenizer;
mod tokenizer_config;
mod truncation;

pub use chat_template::ChatTemplate;
pub use error::{Error, LineProblem, MAX_LISTED, Result};
pub use example::{Completion, Example, Message, Prompt, read_examples, read_examples_with};
pub use jsonl::{MAX_LINE_BYTES, read_records};
pub use on_error::{OnError, Problems};
pub use order::epoch_order;
pub use pack::{PackedBatch, Targets};
pub use preflight::{Preflight, Spread};
pub use source::Source;
pub use tokenize::{
    IGNORE, PromptIds, TokenizeOptions, Tokenized, TokenizedExamples, prompt_ids_all, prompt_ids_with,
    tokenize, tokenize_all, tokenize_with,
};
pub use tokenizer::TextTokenizer;
pub use truncation::{LongExample, LongExamples, Truncation};
