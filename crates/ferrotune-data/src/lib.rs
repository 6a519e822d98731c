#![doc = include_str!("../README.md")]

mod chat_template;
mod error;
mod example;
mod generation_tags;
mod json;
mod jsonl;
mod order;
mod pack;
mod preflight;
mod python_json;
mod python_methods;
mod source;
mod strftime;
mod tokenize;
mod tokenizer;
mod tokenizer_config;

pub use chat_template::ChatTemplate;
pub use error::{Error, LineProblem, MAX_LISTED, Result};
pub use example::{Completion, Example, Message, Prompt, read_examples};
pub use jsonl::{MAX_LINE_BYTES, read_records};
pub use order::epoch_order;
pub use pack::{PackedBatch, Targets};
pub use preflight::{Preflight, Spread};
pub use source::Source;
pub use tokenize::{IGNORE, Tokenized, prompt_ids_all, tokenize, tokenize_all};
pub use tokenizer::TextTokenizer;
