//! How much memory a job will take, said before it takes it.

use super::PackedDataset;
use crate::{Error, Result};
use ferrotune_data::Tokenized;
use ferrotune_kernels::CHUNK_LOGITS;
use ferrotune_models::{CausalLm, ModelConfig, tch::Kind};
use ferrotune_precision::{AvailableMemory, MemoryBound, available_memory, readable_bytes_beside};
use ferrotune_trainer::{Dataset, TrainingArguments};
use std::fmt;

/// Bytes of a number, unless it is a factor or the result of a product under `bf16` or `fp16`.
const F32: u64 = size_of::<f32>() as u64;

/// The memory that a part of a job takes in addition to what the process has, by what takes it, in bytes.
///
/// The sizes of tensors are exact; what an allocator and libtorch's own buffers add is not counted, and is a few per cent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    parts: Vec<(&'static str, u64)>,
}

impl MemoryNeed {
    /// Reading the weights: the weights themselves, and what is held beside them for a while.
    pub fn of_loading(weights: u64, beside: u64) -> Self {
        Self { parts: vec![("weights", weights), ("reading them", beside)] }
    }

    /// Training an adapter of `parameters` numbers that is already there: its gradients and the two moments of AdamW, what forward keeps
    /// for backward of the largest micro-batch in the first `epochs`, and the logits of a chunk; under `bf16` or `fp16` the frozen weights
    /// in 16 bits beside.
    pub fn of_training(
        model: &CausalLm,
        parameters: u64,
        data: &PackedDataset,
        arguments: &TrainingArguments,
        epochs: usize,
    ) -> Self {
        let (tokens, targets) = largest_batch(data, arguments.per_device_train_batch_size, epochs);
        let config = model.config();
        let shape = Shape::of(config);
        let half = arguments.bf16 || arguments.fp16;
        // x and x, the log-sum-exp of attention; q k v, attended, gate and up: norms, gates and rotations are computed again in backward.
        let full = 2 * shape.hidden + shape.heads;
        let products = shape.qkv + shape.queries + 2 * shape.intermediate;
        let kept = if half { full + products / 2 } else { full + products };
        let all = config.num_hidden_layers as u64;
        // Of the others the input alone, while one is computed again.
        let (inputs, layers) = if arguments.gradient_checkpointing { (all, all.min(1)) } else { (0, all) };
        let activations = inputs.saturating_mul(shape.hidden).saturating_add(layers.saturating_mul(kept));
        let in_16_bits = match (arguments.bf16, arguments.fp16) {
            (true, _) => model.rounded_bytes(Kind::BFloat16),
            (_, true) => model.rounded_bytes(Kind::Half),
            _ => 0,
        };
        Self {
            parts: vec![
                ("gradients and AdamW", bytes(3, parameters)),
                ("weights in 16 bits", in_16_bits as u64),
                ("activations", bytes(tokens, activations)),
                ("holes between them", bytes(tokens, all.saturating_mul(shape.holes()))),
                ("backward or logits", shape.feed_forward(tokens).max(shape.logits(targets, 2))),
            ],
        }
    }

    /// Scoring rows: one layer at a time, and the logits of a chunk.
    pub fn of_scoring(config: &ModelConfig, rows: &[Tokenized], batch_size: usize) -> Self {
        let tokens = largest_sum(rows.iter().map(|row| row.input_ids.len()), batch_size);
        let targets = largest_sum(rows.iter().map(Tokenized::target_tokens), batch_size);
        let shape = Shape::of(config);
        Self { parts: vec![("activations and logits", shape.layer(tokens).max(shape.logits(targets, 2)))] }
    }

    /// Answering prompts: the cache of keys and values, a layer over the longest prompts, and the weights in fewer bits. What prompts share
    /// is counted for each.
    pub fn of_generation(
        model: &CausalLm,
        prompts: &[Vec<i64>],
        max_new_tokens: usize,
        batch_size: usize,
    ) -> Self {
        Self::of_answers(model.config(), prompts, max_new_tokens, batch_size).and_compact_weights(model)
    }

    fn of_answers(
        config: &ModelConfig,
        prompts: &[Vec<i64>],
        max_new_tokens: usize,
        batch_size: usize,
    ) -> Self {
        let slots = batch_size.clamp(1, prompts.len().max(1)) as u64;
        let tokens = largest_sum(prompts.iter().map(Vec::len), batch_size);
        let shape = Shape::of(config);
        let rows = tokens.saturating_add(slots.saturating_mul(max_new_tokens as u64));
        let keys_and_values = shape.qkv - shape.queries;
        let pass = tokens.min(ferrotune_models::PASS_TOKENS as u64);
        let logits = bytes(slots, 2 * shape.vocabulary);
        Self {
            parts: vec![
                ("cache", bytes(rows, keys_and_values.saturating_mul(config.num_hidden_layers as u64))),
                ("activations", shape.layer(pass).max(logits)),
                ("holes between them", bytes(pass, shape.holes())),
            ],
        }
    }

    /// And the weights in fewer bits, which answers leave behind.
    pub fn and_compact_weights(self, model: &CausalLm) -> Self {
        self.with("weights in fewer bits", model.compact_bytes() as u64)
    }

    /// This or `other`, whichever is more: what is needed in turn.
    pub fn or(self, other: Self) -> Self {
        if other.bytes() > self.bytes() { other } else { self }
    }

    fn with(mut self, part: &'static str, bytes: u64) -> Self {
        self.parts.push((part, bytes));
        self
    }

    /// All of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Holds the need to what is available: an error if it is hopeless, a warning if it will be tight.
    ///
    /// The error leaves room for what swapping or a smaller batch than the largest may save: it comes if more than 5/4 of what is
    /// available is needed, and for a limit of the process itself, which nothing stretches, if all of it is.
    ///
    /// # Errors
    /// [`Error::NotEnoughMemory`] with both numbers.
    pub fn check(&self, what: &str, remedy: &'static str) -> Result<Option<String>> {
        available_memory().map_or(Ok(None), |available| self.check_against(&available, what, remedy))
    }

    /// What this will come to in a process that has `now` bytes.
    pub fn peak(&self, now: u64) -> String {
        let peak = now.saturating_add(self.bytes());
        let [all, now] = [peak, now].map(|bytes| readable_bytes_beside(bytes, peak));
        format!("memory    about {all} at the peak of training: {now} now, {}", self.parts(peak))
    }

    /// What takes how much, in the unit of the largest number beside it.
    fn parts(&self, largest: u64) -> String {
        let part = |(name, bytes): &(&str, u64)| format!("{name} {}", readable_bytes_beside(*bytes, largest));
        self.parts.iter().filter(|(_, bytes)| *bytes > 0).map(part).collect::<Vec<_>>().join(", ")
    }

    fn check_against(
        &self,
        available: &AvailableMemory,
        what: &str,
        remedy: &'static str,
    ) -> Result<Option<String>> {
        let needed = self.bytes();
        let largest = needed.max(available.bytes);
        let parts = self.parts(largest);
        let hopeless = match available.bound {
            MemoryBound::AddressSpace | MemoryBound::Data => available.bytes,
            _ => available.bytes.saturating_add(available.bytes / 4),
        };
        if needed > hopeless {
            return Err(Error::NotEnoughMemory {
                what: format!("{what} ({parts})"),
                needed_bytes: needed,
                available_bytes: available.bytes,
                bound: available.bound.clone(),
                remedy,
            });
        }
        Ok((needed > available.bytes / 10 * 9).then(|| {
            format!(
                "{what} needs about {} more memory ({parts}), and {} are available ({}): {remedy} if it does not fit",
                readable_bytes_beside(needed, largest),
                readable_bytes_beside(available.bytes, largest),
                available.bound
            )
        }))
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts(self.bytes()))
    }
}

/// Widths of a token's activations.
struct Shape {
    hidden: u64,
    intermediate: u64,
    heads: u64,
    queries: u64,
    queries_and_keys: u64,
    qkv: u64,
    vocabulary: u64,
}

impl Shape {
    fn of(config: &ModelConfig) -> Self {
        let [heads, kv_heads, head_dim] =
            [config.num_attention_heads, config.num_key_value_heads, config.head_dim].map(|size| size as u64);
        Self {
            hidden: config.hidden_size as u64,
            intermediate: config.intermediate_size as u64,
            heads,
            queries: heads * head_dim,
            queries_and_keys: (heads + kv_heads) * head_dim,
            qkv: (heads + 2 * kv_heads) * head_dim,
            vocabulary: config.vocab_size as u64,
        }
    }

    /// The widest moment of a layer that keeps nothing.
    fn layer(&self, tokens: u64) -> u64 {
        let attention = 2 * self.hidden + self.qkv + self.queries_and_keys + 2 * self.queries;
        let feed_forward = 3 * self.hidden + 3 * self.intermediate;
        bytes(tokens, attention.max(feed_forward))
    }

    /// What norms and gates leave between other tensors when they are freed: the C library's allocator fills it with smaller tensors,
    /// and then finds no room for the next layer's. Where buffers are reused there are none.
    fn holes(&self) -> u64 {
        if ferrotune_autograd::reuses_buffers() { 0 } else { 2 * self.hidden + self.intermediate }
    }

    /// Gradients of a feed-forward block, and its gates once more.
    fn feed_forward(&self, tokens: u64) -> u64 {
        bytes(tokens, 3 * self.hidden + 4 * self.intermediate)
    }

    /// `copies` of the logits of a chunk, and the gradient of each target's hidden state.
    fn logits(&self, targets: u64, copies: u64) -> u64 {
        let rows = targets.min((CHUNK_LOGITS.unsigned_abs() / self.vocabulary.max(1)).max(1));
        bytes(rows, copies * self.vocabulary).saturating_add(bytes(targets, 2 * self.hidden))
    }
}

fn bytes(rows: u64, width: u64) -> u64 {
    rows.saturating_mul(width).saturating_mul(F32)
}

/// Tokens and targets of the micro-batch with the most tokens.
fn largest_batch(data: &PackedDataset, batch_size: usize, epochs: usize) -> (u64, u64) {
    // Orders cost little, and after some epochs hardly any new neighbours are seen.
    (0..epochs.clamp(1, 100))
        .flat_map(|epoch| {
            let order = data.order(epoch);
            let batches = order.chunks(batch_size.max(1)).map(|batch| {
                let rows = || batch.iter().filter_map(|&index| data.rows().get(index));
                let tokens: usize = rows().map(|row| row.input_ids.len()).sum();
                (tokens as u64, rows().map(|row| row.target_tokens() as u64).sum())
            });
            batches.collect::<Vec<_>>()
        })
        .max()
        .unwrap_or_default()
}

/// The sum of the `count` largest.
fn largest_sum(sizes: impl Iterator<Item = usize>, count: usize) -> u64 {
    let mut sizes: Vec<usize> = sizes.collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.iter().take(count).map(|&size| size as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(layers: u64) -> ModelConfig {
        ModelConfig::from_json(&format!(
            r#"{{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
                "intermediate_size": 128, "num_hidden_layers": {layers}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn the_longest_rows_of_a_batch_count() {
        assert_eq!(largest_sum([3, 9, 4, 7].into_iter(), 2), 16);
        assert_eq!(largest_sum([3].into_iter(), 8), 3);
        let row = |length: usize| Tokenized {
            input_ids: vec![1; length],
            labels: vec![1; length],
            source: ferrotune_data::Source { file: std::path::Path::new("rows").into(), line: 1 },
        };
        let data = PackedDataset::new([50, 1, 2, 40, 3].map(row), 3);
        // Alone the longest row, with all of them in one batch their sum, and never a pair that no epoch puts together.
        assert_eq!(largest_batch(&data, 1, 1), (50, 49));
        assert_eq!(largest_batch(&data, 8, 1), (96, 91));
        let pairs = |epoch: usize| {
            let order = data.order(epoch);
            let lengths =
                |pair: &[usize]| pair.iter().map(|&row| data.rows()[row].input_ids.len() as u64).sum();
            order.chunks(2).map(lengths).max().unwrap_or(0_u64)
        };
        assert_eq!(largest_batch(&data, 2, 1).0, pairs(0));
        assert_eq!(largest_batch(&data, 2, 3).0, (0..3).map(pairs).max().unwrap());
    }

    #[test]
    fn the_cache_holds_keys_and_values_of_every_layer_and_sequence() {
        let prompts = vec![vec![1; 10], vec![1; 30], vec![1; 20]];
        let need = MemoryNeed::of_answers(&config(5), &prompts, 6, 2);
        // 2 sequences, 30 + 20 + 2 * 6 tokens, keys and values of 2 heads of 16, 5 layers, f32
        assert_eq!(need.parts[0], ("cache", (30 + 20 + 2 * 6) * 2 * 2 * 16 * 5 * 4));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_numbers_and_what_is_tight_is_told() {
        let need = MemoryNeed::of_loading(900 << 20, 124 << 20);
        let of = |mib: u64, bound| AvailableMemory { bytes: mib << 20, bound };
        let check =
            |available: &AvailableMemory| need.check_against(available, "loading x", "take a smaller model");
        assert_eq!(check(&of(2048, MemoryBound::Machine)).unwrap(), None);
        let warning = check(&of(1000, MemoryBound::Machine)).unwrap().unwrap();
        assert!(warning.contains("about 1.0 GiB more") && warning.contains("and 1.0 GiB are"), "{warning}");
        for available in [of(1000, MemoryBound::AddressSpace), of(800, MemoryBound::ControlGroup)] {
            let error = check(&available).unwrap_err();
            assert!(matches!(&error, Error::NotEnoughMemory { .. }) && error.is_bad_input());
            let text = error.to_string();
            for part in ["loading x", "weights 0.9 GiB", "1.0 GiB", "take a smaller model"] {
                assert!(text.contains(part), "{part} is not in: {text}");
            }
        }
    }

    #[test]
    fn a_line_has_one_unit() {
        let need = MemoryNeed::of_loading(1008 << 20, 40 << 20);
        let text = "memory    about 1.2 GiB at the peak of training: 0.2 GiB now, weights 1.0 GiB, reading them under 0.1 GiB";
        assert_eq!(need.peak(200 << 20), text);
        let need = MemoryNeed::of_loading(8 << 20, 40 << 10);
        assert!(
            need.peak(200 << 20).ends_with(" 200.0 MiB now, weights 8.0 MiB, reading them under 0.1 MiB")
        );
    }

    #[test]
    fn absurd_sizes_are_no_overflow() {
        let mut config = config(1);
        config.num_hidden_layers = usize::MAX;
        config.vocab_size = 1 << 31;
        config.hidden_size = 1 << 31;
        let need = MemoryNeed::of_answers(&config, &[vec![1; 8]], usize::MAX, usize::MAX);
        assert_eq!(need.bytes(), u64::MAX);
    }
}
