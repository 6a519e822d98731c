//! Greedy generation with a cache of keys and values.

use crate::{
    config::ModelConfig,
    decoder::{Attend, CausalLm, rotated},
    error::{Error, Result},
};
use ferrotune_kernels::{AttentionOptions, Mode, SequenceLayout, causal_attention};
use std::collections::VecDeque;
use tch::{Kind, Tensor};

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerationConfig {
    /// Most tokens that an answer may have.
    pub max_new_tokens: usize,
    /// Number of sequences computed at one time.
    pub batch_size: usize,
    /// Tokens that end an answer; those of the model's configuration are usual.
    pub eos_token_ids: Vec<i64>,
    /// The adapter to use; `None` is the bare base model.
    pub adapter: Option<usize>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Index of its prompt.
    pub prompt: usize,
    /// Its tokens, without the one that ended it.
    pub token_ids: Vec<i64>,
    /// Whether it ended by itself, and not for want of `max_new_tokens`.
    pub finished: bool,
}

/// Answers prompts greedily; `on_token` sees each new token as it is chosen, with the index of its prompt, and may stop the
/// generation by returning `false`.
///
/// Sequences lie without padding; one that ends leaves the batch at once and the next prompt takes its place.
///
/// # Errors
/// [`Error::Inputs`] for an empty prompt, or one that leaves no room in the model's context; others as
/// [`CausalLm::hidden_states`].
pub fn generate(
    model: &CausalLm,
    prompts: &[Vec<i64>],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, i64) -> bool,
) -> Result<Vec<Generated>> {
    let _no_grad = tch::no_grad_guard();
    check_prompts(model.config(), prompts, config)?;
    let mut answers: Vec<Generated> = (0..prompts.len())
        .map(|prompt| Generated { prompt, token_ids: Vec::new(), finished: false })
        .collect();
    if config.max_new_tokens == 0 || prompts.is_empty() {
        return Ok(answers);
    }
    let slots = config.batch_size.clamp(1, prompts.len());
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + config.max_new_tokens;
    let mut cache = Cache::new(model, slots, longest as i64)?;
    let mut waiting: VecDeque<usize> = (0..prompts.len()).collect();
    let mut running: Vec<Running> = Vec::with_capacity(slots);
    loop {
        let mut chosen = Vec::new();
        let entering = waiting.len().min(slots - running.len());
        if entering > 0 {
            let first_slot = running.len();
            running.extend(waiting.drain(..entering).map(|prompt| Running { prompt, length: 0, next: 0 }));
            chosen = prefill(model, prompts, config, &mut running[first_slot..], &mut cache, first_slot)?;
            for (sequence, &token) in running[first_slot..].iter_mut().zip(&chosen) {
                sequence.next = token;
            }
            chosen = running.iter().map(|sequence| sequence.next).collect();
            // Those that were running already have had their token recorded.
            let fresh = first_slot;
            if !settle(&mut running, &mut cache, &chosen, fresh, config, &mut answers, on_token)? {
                return Ok(answers);
            }
            if running.len() < slots && !waiting.is_empty() {
                continue;
            }
        }
        if running.is_empty() {
            return Ok(answers);
        }
        chosen.clear();
        chosen.extend(decode(model, config, &mut running, &mut cache)?);
        if !settle(&mut running, &mut cache, &chosen, 0, config, &mut answers, on_token)? {
            return Ok(answers);
        }
    }
}

/// A sequence in the batch; its slot in the cache is its place in the list.
struct Running {
    prompt: usize,
    /// Tokens in the cache.
    length: i64,
    /// The token chosen last, not yet in the cache.
    next: i64,
}

fn check_prompts(model: &ModelConfig, prompts: &[Vec<i64>], config: &GenerationConfig) -> Result<()> {
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::Inputs {
                what: "a prompt",
                found: format!("no tokens in prompt {index}"),
                expected: "at least one".to_owned(),
            });
        }
        let longest = prompt.len().saturating_add(config.max_new_tokens);
        if !i64::try_from(longest).is_ok_and(|longest| longest <= model.max_position_embeddings) {
            return Err(Error::Inputs {
                what: "a prompt and its answer",
                found: format!("{} + {} tokens (prompt {index})", prompt.len(), config.max_new_tokens),
                expected: format!("at most max_position_embeddings = {}", model.max_position_embeddings),
            });
        }
    }
    Ok(())
}

/// Records the tokens chosen for the sequences from `fresh` on; those that ended leave. `false` if the caller wants to stop.
fn settle(
    running: &mut Vec<Running>,
    cache: &mut Cache,
    chosen: &[i64],
    fresh: usize,
    config: &GenerationConfig,
    answers: &mut [Generated],
    on_token: &mut dyn FnMut(usize, i64) -> bool,
) -> Result<bool> {
    let mut ended = Vec::new();
    for (slot, &token) in chosen.iter().enumerate().skip(fresh) {
        let sequence = &mut running[slot];
        let answer = &mut answers[sequence.prompt];
        sequence.next = token;
        if config.eos_token_ids.contains(&token) {
            answer.finished = true;
            ended.push(slot);
            continue;
        }
        answer.token_ids.push(token);
        if !on_token(sequence.prompt, token) {
            return Ok(false);
        }
        if answer.token_ids.len() >= config.max_new_tokens {
            ended.push(slot);
        }
    }
    // From the back, so that the sequence that moves into the gap is never one that ended too.
    for slot in ended.into_iter().rev() {
        let last = running.len() - 1;
        if slot != last {
            cache.move_slot(last, slot, running[last].length)?;
        }
        running.swap_remove(slot);
    }
    Ok(true)
}

/// Runs whole prompts, fills their slots and chooses the first token of each answer.
fn prefill(
    model: &CausalLm,
    prompts: &[Vec<i64>],
    config: &GenerationConfig,
    entering: &mut [Running],
    cache: &mut Cache,
    first_slot: usize,
) -> Result<Vec<i64>> {
    let mut input_ids = Vec::new();
    let mut cu_seqlens = vec![0];
    for sequence in entering.iter_mut() {
        input_ids.extend_from_slice(&prompts[sequence.prompt]);
        cu_seqlens.push(input_ids.len() as i64);
        sequence.length = prompts[sequence.prompt].len() as i64;
    }
    let layout = SequenceLayout::from_cu_seqlens(&cu_seqlens)?.with_adapter(config.adapter);
    let last_rows: Vec<i64> = cu_seqlens[1..].iter().map(|end| end - 1).collect();
    let rows = layout
        .segments()
        .iter()
        .enumerate()
        .flat_map(|(index, segment)| {
            let start = cache.row(first_slot + index, 0);
            start..start + segment.len()
        })
        .collect::<Vec<i64>>();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(model.device())?;
    let mut attention = Prefill { cache, layout: &layout, rows, options: model.attention_options() };
    let hidden = model.run(&input_ids, &layout, Some(&last_rows), Mode::Eval, &mut attention)?;
    choose(model, &hidden)
}

/// Runs one token of every sequence and chooses the next.
fn decode(
    model: &CausalLm,
    config: &GenerationConfig,
    running: &mut [Running],
    cache: &mut Cache,
) -> Result<Vec<i64>> {
    let input_ids: Vec<i64> = running.iter().map(|sequence| sequence.next).collect();
    let new_and_past: Vec<(i64, i64)> = running.iter().map(|sequence| (1, sequence.length)).collect();
    let layout = SequenceLayout::continuing(&new_and_past)?.with_adapter(config.adapter);
    let rows: Vec<i64> =
        running.iter().enumerate().map(|(slot, sequence)| cache.row(slot, sequence.length)).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(model.device())?;
    let longest = running.iter().map(|sequence| sequence.length + 1).max().unwrap_or(1);
    let options = model.attention_options();
    let mask = decode_mask(running, longest, options.sliding_window, model)?;
    let mut attention = Decode { cache, rows, longest, mask, scale: options.scale };
    let hidden = model.run(&input_ids, &layout, None, Mode::Eval, &mut attention)?;
    for sequence in running {
        sequence.length += 1;
    }
    choose(model, &hidden)
}

fn choose(model: &CausalLm, hidden: &Tensor) -> Result<Vec<i64>> {
    let (largest, ids) = model.head_logits(hidden)?.f_max_dim(-1, false)?;
    if !largest.f_isfinite()?.f_all()?.f_int64_value(&[]).is_ok_and(|finite| finite == 1) {
        return Err(Error::Inputs {
            what: "logits",
            found: "NaN or infinity".to_owned(),
            expected: "finite numbers: weights or adapter are damaged".to_owned(),
        });
    }
    Ok(Vec::try_from(ids)?)
}

/// Additive mask `[sequences, 1, 1, longest]` over the ragged cache.
fn decode_mask(running: &[Running], longest: i64, window: Option<i64>, model: &CausalLm) -> Result<Tensor> {
    let position: Vec<i64> = running.iter().map(|sequence| sequence.length).collect();
    let position = Tensor::f_from_slice(&position)?.f_to_device(model.device())?.f_unsqueeze(1)?;
    let distance = position.f_sub(&Tensor::f_arange(longest, (Kind::Int64, model.device()))?)?;
    let mut hidden = distance.f_lt(0)?;
    if let Some(window) = window {
        hidden = hidden.f_logical_or(&distance.f_ge(window)?)?;
    }
    let mask = Tensor::f_zeros([running.len() as i64, longest], (model.kind(), model.device()))?;
    Ok(mask.f_masked_fill(&hidden, f64::NEG_INFINITY)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
}

/// Keys and values of every layer, `[slots * capacity, kv_heads, head_dim]` each, allocated once.
struct Cache {
    layers: Vec<[Tensor; 2]>,
    kv_heads: i64,
    capacity: i64,
}

impl Cache {
    fn new(model: &CausalLm, slots: usize, capacity: i64) -> Result<Self> {
        let config = model.config();
        let shape = [slots as i64 * capacity, config.num_key_value_heads, config.head_dim];
        let options = (model.kind(), model.device());
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok([Tensor::f_zeros(shape, options)?, Tensor::f_zeros(shape, options)?]))
            .collect::<Result<_>>()?;
        Ok(Self { layers, kv_heads: config.num_key_value_heads, capacity })
    }

    fn row(&self, slot: usize, position: i64) -> i64 {
        slot as i64 * self.capacity + position
    }

    fn write(&mut self, layer: usize, rows: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        for (stored, new) in self.layers[layer].iter_mut().zip([k, v]) {
            let _ = stored.f_index_copy_(0, rows, new)?;
        }
        Ok(())
    }

    fn move_slot(&mut self, from: usize, to: usize, length: i64) -> Result<()> {
        let (from, to) = (self.row(from, 0), self.row(to, 0));
        for stored in self.layers.iter().flatten() {
            stored.f_narrow(0, to, length)?.f_copy_(&stored.f_narrow(0, from, length)?)?;
        }
        Ok(())
    }
}

struct Prefill<'a> {
    cache: &'a mut Cache,
    layout: &'a SequenceLayout,
    rows: Tensor,
    options: AttentionOptions,
}

impl Attend for Prefill<'_> {
    fn attend(&mut self, layer: usize, qkv: &Tensor, tables: &[Tensor; 2]) -> Result<Tensor> {
        let [q, k, v] = rotated(qkv, self.cache.kv_heads, tables)?;
        self.cache.write(layer, &self.rows, &k, &v)?;
        Ok(causal_attention(&q, &k, &v, self.layout, self.options)?)
    }
}

struct Decode<'a> {
    cache: &'a mut Cache,
    rows: Tensor,
    longest: i64,
    mask: Tensor,
    scale: f64,
}

impl Attend for Decode<'_> {
    fn attend(&mut self, layer: usize, qkv: &Tensor, tables: &[Tensor; 2]) -> Result<Tensor> {
        let [q, k, v] = rotated(qkv, self.cache.kv_heads, tables)?;
        self.cache.write(layer, &self.rows, &k, &v)?;
        let sequences = q.size()[0];
        // [sequences, kv_heads, longest, head_dim], a view into the cache
        let view = |stored: &Tensor| -> Result<Tensor> {
            let capacity = self.cache.capacity;
            let slots = stored.f_narrow(0, 0, sequences * capacity)?;
            let shape = [sequences, capacity, stored.size()[1], stored.size()[2]];
            Ok(slots.f_view(shape)?.f_narrow(1, 0, self.longest)?.f_transpose(1, 2)?)
        };
        let [keys, values] = &self.cache.layers[layer];
        let (keys, values) = (view(keys)?, view(values)?);
        let attended = Tensor::f_scaled_dot_product_attention(
            &q.f_unsqueeze(2)?,
            &keys,
            &values,
            Some(&self.mask),
            0.0,
            false,
            self.scale,
            true,
        )?;
        Ok(attended.f_squeeze_dim(2)?)
    }
}
