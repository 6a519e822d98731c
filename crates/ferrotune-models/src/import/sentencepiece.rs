//! SentencePiece vocabularies (Llama 2, Mistral 7B, TinyLlama) as BPE with byte fallback.

use serde_json::json;

use super::special_tokens::SpecialTokens;
use super::tokenizer::{Pipeline, TokenKind, Vocabulary, bpe_model, scores};
use crate::error::Result;

/// U+2581, which stands for a space in the tokens.
const SPACE: &str = "\u{2581}";

/// The pipeline of a Llama tokenizer: a space becomes `▁`, one more is put in front, characters that are not in the vocabulary
/// become tokens of bytes.
pub(super) fn pipeline(vocabulary: &Vocabulary<'_>, special: &mut SpecialTokens) -> Result<Pipeline> {
    let fields = vocabulary.fields;
    // The roles that SentencePiece itself fixes, where the file leaves them out.
    let at = |id: usize, token: &str| vocabulary.tokens.get(id).filter(|found| *found == token).map(|_| id);
    special.unk = special.unk.or_else(|| at(0, "<unk>"));
    special.bos = special.bos.or_else(|| at(1, "<s>"));
    special.eos = special.eos.or_else(|| at(2, "</s>"));
    let unk = special.unk.ok_or_else(|| fields.missing("tokenizer.ggml.unknown_token_id"))?;
    let add_prefix = fields.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let (normalizers, decoders) = if add_prefix {
        let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
        (vec![json!({ "type": "Prepend", "prepend": SPACE }), replace], vec![strip])
    } else {
        (vec![replace], vec![])
    };
    let mut decoder = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    decoder.extend(decoders);
    Ok(Pipeline {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: json!(null),
        decoder: json!({ "type": "Sequence", "decoders": decoder }),
        model: bpe_model(
            vocabulary.to_json(),
            merges(vocabulary, scores(fields, vocabulary.tokens.len())?).into(),
            Some(&vocabulary.tokens[unk]),
            false,
        ),
        add_bos_by_default: true,
    })
}

/// The merges that a scored vocabulary stands for.
///
/// SentencePiece joins, again and again, the neighbours whose joint token has the highest score. So every way to cut a token into
/// two tokens is a merge, ordered by the score of the token; among equals the longer left part comes first, then the longer right
/// part, as in the conversion of transformers.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<[String; 2]> {
    struct Merge<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
    }
    let mut merges = Vec::new();
    for ((token, kind), &score) in vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores) {
        // The text of a control token or of a byte is never made of other tokens.
        if *kind != TokenKind::Normal {
            continue;
        }
        let mut cuts: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(left, right)| {
                Some((vocabulary.ids.get(left)?, vocabulary.ids.get(right)?, Merge { score, left, right }))
            })
            .collect();
        cuts.sort_by_key(|(left, right, _)| (*left, *right));
        merges.extend(cuts.into_iter().map(|(_, _, merge)| merge));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| (length(b.left), length(b.right)).cmp(&(length(a.left), length(a.right))))
    });
    merges.into_iter().map(|merge| [merge.left.to_owned(), merge.right.to_owned()]).collect()
}
