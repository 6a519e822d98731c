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
/// two tokens is a merge, ordered by the score of the token.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<[String; 2]> {
    let mut ranked: Vec<(f32, usize, [String; 2])> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if vocabulary.kinds[id] != TokenKind::Normal {
            continue;
        }
        let mut cuts: Vec<(usize, usize, [String; 2])> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                let ids = (*vocabulary.ids.get(left)?, *vocabulary.ids.get(right)?);
                Some((ids.0, ids.1, [left.to_owned(), right.to_owned()]))
            })
            .collect();
        cuts.sort();
        ranked.extend(cuts.into_iter().map(|(_, _, pair)| (scores[id], id, pair)));
    }
    // Stable: equal scores keep the order of the vocabulary.
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.into_iter().map(|(_, _, pair)| pair).collect()
}
