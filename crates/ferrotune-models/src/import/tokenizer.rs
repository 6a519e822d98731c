//! `tokenizer.json`, `tokenizer_config.json` and the chat template.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::fields::Fields;
use super::sentencepiece;
use super::special_tokens::SpecialTokens;
use crate::error::{Error, Result};
use crate::gguf::{Array, GgufFile};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const PRE: &str = "tokenizer.ggml.pre";

/// Splits before bytes of Llama 3: runs of up to three digits.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: letters split where lower case meets upper case.
const TEKKEN_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer files of a model directory.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    pub(super) tokenizer_json: Json,
    pub(super) tokenizer_config: Json,
    /// Exactly as the file has it.
    pub(super) chat_template: Option<String>,
    pub(super) special: SpecialTokens,
    pub(super) vocabulary: usize,
    pub(super) warnings: Vec<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The parts of `tokenizer.json` in which the two tokenizer families differ.
pub(super) struct Pipeline {
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    pub(super) decoder: Json,
    pub(super) model: Json,
    /// What is added where the file does not say.
    pub(super) add_bos_by_default: bool,
}

/// The vocabulary of a file, checked.
pub(super) struct Vocabulary<'a> {
    pub(super) fields: Fields<'a>,
    pub(super) tokens: &'a [String],
    pub(super) kinds: Vec<TokenKind>,
    pub(super) ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn from_gguf(fields: Fields<'a>) -> Result<Self> {
        let tokens = fields.strings(TOKENS)?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if ids.insert(token.as_str(), id).is_some() {
                return Err(entry_error(fields, TOKENS, id, "this token has two ids", token));
            }
        }
        let kinds = token_kinds(fields, tokens.len())?;
        Ok(Self { fields, tokens, kinds, ids })
    }

    /// The vocabulary of the model part.
    pub(super) fn to_json(&self) -> Json {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), json!(id)))
            .collect::<Map<_, _>>()
            .into()
    }
}

pub(super) fn entry_error(
    fields: Fields<'_>,
    key: &'static str,
    index: usize,
    problem: &'static str,
    found: &str,
) -> Error {
    Error::GgufVocabulary { path: fields.0.path().to_owned(), key, index, problem, found: found.to_owned() }
}

fn token_kinds(fields: Fields<'_>, count: usize) -> Result<Vec<TokenKind>> {
    let Some(types) = fields.optional_array(TOKEN_TYPES)? else { return Ok(vec![TokenKind::Normal; count]) };
    if types.len() != count {
        return Err(fields.invalid(
            TOKEN_TYPES,
            format_args!("one entry for each of {count} tokens"),
            types.len(),
        ));
    }
    (0..count)
        .map(|id| match types.get(id).and_then(|value| value.as_u64()) {
            Some(1) => Ok(TokenKind::Normal),
            Some(2) => Ok(TokenKind::Unknown),
            Some(3) => Ok(TokenKind::Control),
            Some(4) => Ok(TokenKind::UserDefined),
            Some(5) => Ok(TokenKind::Unused),
            Some(6) => Ok(TokenKind::Byte),
            other => Err(entry_error(
                fields,
                TOKEN_TYPES,
                id,
                "not a token type from 1 to 6",
                &format!("{other:?}"),
            )),
        })
        .collect()
}

impl TokenizerFiles {
    pub(super) fn from_gguf(file: &GgufFile, max_length: usize) -> Result<Self> {
        let fields = Fields(file);
        let vocabulary = Vocabulary::from_gguf(fields)?;
        let mut special = SpecialTokens::from_gguf(fields, vocabulary.tokens.len())?;
        let mut warnings = Vec::new();
        let key = "tokenizer.ggml.model";
        let pipeline = match fields.optional_str(key)?.ok_or_else(|| fields.missing(key))? {
            "gpt2" => byte_level_bpe(&vocabulary, &mut warnings)?,
            "llama" => sentencepiece::pipeline(&vocabulary, &mut special)?,
            other => return Err(fields.unsupported(key, other, "gpt2, llama")),
        };
        let tokenizer_json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens(&vocabulary),
            "normalizer": pipeline.normalizer,
            "pre_tokenizer": pipeline.pre_tokenizer,
            "post_processor": post_processor(&vocabulary, &special, pipeline.add_bos_by_default)?,
            "decoder": pipeline.decoder,
            "model": pipeline.model,
        });
        Ok(Self {
            tokenizer_json,
            tokenizer_config: tokenizer_config(&vocabulary, &special, max_length),
            chat_template: fields.optional_str("tokenizer.chat_template")?.map(str::to_owned),
            special,
            vocabulary: vocabulary.tokens.len(),
            warnings,
        })
    }
}

/// Control tokens are special (left out of decoded text on request); tokens that users defined are found in text as well, but
/// are text.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Json {
    let kinds = vocabulary.kinds.iter().enumerate();
    let added = kinds
        .filter(|(_, kind)| matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown));
    added
        .map(|(id, &kind)| {
            json!({
                "id": id,
                "content": vocabulary.tokens[id],
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind != TokenKind::UserDefined,
            })
        })
        .collect()
}

fn byte_level_bpe(vocabulary: &Vocabulary<'_>, warnings: &mut Vec<String>) -> Result<Pipeline> {
    let fields = vocabulary.fields;
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let sequence = |first: Json, use_regex: bool| json!({ "type": "Sequence", "pretokenizers": [first, byte_level(use_regex)] });
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let mut normalizer = Json::Null;
    let mut whole_words = false;
    let pre = fields.optional_str(PRE)?;
    let pre_tokenizer = match pre {
        Some("smollm") => sequence(json!({ "type": "Digits", "individual_digits": true }), true),
        Some("gpt-2") => byte_level(true),
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            whole_words = true;
            sequence(split(LLAMA3_PATTERN), false)
        }
        Some("tekken") => {
            whole_words = true;
            sequence(split(TEKKEN_PATTERN), false)
        }
        Some("qwen2") => {
            normalizer = json!({ "type": "NFC" });
            sequence(split(QWEN2_PATTERN), false)
        }
        None | Some("default") => {
            let found = pre.map_or_else(|| "missing".to_owned(), |pre| format!("`{pre}`"));
            warnings.push(format!(
                "{PRE} is {found}, which does not say how text is split before it is tokenized; GPT-2's way was taken. Compare \
                 with the model's own tokenizer before you rely on it."
            ));
            byte_level(true)
        }
        Some(other) => {
            let supported = "default, gpt-2, llama-bpe, qwen2, smollm, tekken";
            return Err(fields.unsupported(PRE, other, supported));
        }
    };
    Ok(Pipeline {
        normalizer,
        pre_tokenizer,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        model: bpe_model(vocabulary.to_json(), merges(vocabulary)?, None, whole_words),
        add_bos_by_default: whole_words,
    })
}

/// The model part of `tokenizer.json`. An unknown token goes with fallback to tokens of single bytes.
pub(super) fn bpe_model(vocab: Json, merges: Json, unk_token: Option<&str>, ignore_merges: bool) -> Json {
    let byte_fallback = unk_token.is_some();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unk_token,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    })
}

fn merges(vocabulary: &Vocabulary<'_>) -> Result<Json> {
    let fields = vocabulary.fields;
    let mut pairs = Vec::new();
    for (index, merge) in fields.strings(MERGES)?.iter().enumerate() {
        let problem = |problem| entry_error(fields, MERGES, index, problem, merge);
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| problem("expected two tokens with a space between"))?;
        for part in [left, right, &format!("{left}{right}")] {
            if !vocabulary.ids.contains_key(part) {
                return Err(problem("a token of this merge, or its result, is not in the vocabulary"));
            }
        }
        pairs.push(json!([left, right]));
    }
    Ok(pairs.into())
}

/// Puts begin and end tokens around a text, where the file asks for them.
fn post_processor(
    vocabulary: &Vocabulary<'_>,
    special: &SpecialTokens,
    add_bos_by_default: bool,
) -> Result<Json> {
    let fields = vocabulary.fields;
    let mut around = [None, None];
    let asked = [
        ("tokenizer.ggml.add_bos_token", special.bos, add_bos_by_default),
        ("tokenizer.ggml.add_eos_token", special.eos, false),
    ];
    for (around, (key, id, default)) in around.iter_mut().zip(asked) {
        let explicit = fields.optional_bool(key)?;
        if explicit.unwrap_or(default) {
            match id {
                Some(id) => *around = Some((vocabulary.tokens[id].as_str(), id)),
                None if explicit.is_some() => {
                    return Err(fields.invalid(key, "false where there is no such token", true));
                }
                None => {}
            }
        }
    }
    if around == [None, None] {
        return Ok(Json::Null);
    }
    let [bos, eos] = around;
    let one = |sequence: &str, type_id: u8| {
        let token =
            |(token, _): (&str, usize)| json!({ "SpecialToken": { "id": token, "type_id": type_id } });
        let text = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        bos.map(token).into_iter().chain([text]).chain(eos.map(token)).collect::<Vec<_>>()
    };
    let special_tokens: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] })))
        .collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": ([one("A", 0), one("B", 1)].concat()),
        "special_tokens": special_tokens,
    }))
}

fn tokenizer_config(vocabulary: &Vocabulary<'_>, special: &SpecialTokens, max_length: usize) -> Json {
    let mut config = Map::new();
    let roles = [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("pad_token", special.pad),
        ("unk_token", special.unk),
    ];
    for (role, id) in roles {
        if let Some(id) = id {
            config.insert(role.to_owned(), json!(vocabulary.tokens[id]));
        }
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("model_max_length".to_owned(), json!(max_length));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Json::Object(config)
}

/// The scores of a SentencePiece vocabulary.
pub(super) fn scores(fields: Fields<'_>, count: usize) -> Result<&[f32]> {
    let key = "tokenizer.ggml.scores";
    match fields.optional_array(key)?.ok_or_else(|| fields.missing(key))? {
        Array::F32(scores) if scores.len() == count => Ok(scores),
        other => Err(fields.invalid(
            key,
            format_args!("a list of {count} f32, one for each token"),
            format_args!("a list of {} {}", other.len(), other.type_name()),
        )),
    }
}
