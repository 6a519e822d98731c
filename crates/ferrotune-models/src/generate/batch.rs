//! The sequences that are computed together.

use super::{
    GenerationConfig,
    cache::{Cache, Rows},
    prefix_tree::PrefixTree,
};
use crate::{
    decoder::CausalLm,
    error::{Error, Result},
    layer::Attend,
};
use ferrotune_kernels::{CachedAttention, Mode, SequenceLayout};
use std::{collections::VecDeque, ops::Range};
use tch::Tensor;

/// Most tokens that generation computes in one pass: enough for the products to be fast, and few enough for their results to be small.
pub const PASS_TOKENS: usize = 2048;

/// The prompts of a call: those that wait, those in the batch, and what is kept of them in the cache.
///
/// One pass of the model computes the next token of every sequence that is being answered and, in the same products, the prompts of
/// those that have just come; what several prompts begin with is computed once and kept until the last of them is answered.
pub(super) struct Batch<'a> {
    model: &'a CausalLm,
    config: &'a GenerationConfig,
    prompts: &'a [Vec<i64>],
    tree: PrefixTree,
    /// Of each node of the tree.
    nodes: Vec<NodeState>,
    cache: Cache,
    /// Leaves of the tree.
    waiting: VecDeque<usize>,
    sequences: Vec<Sequence>,
}

#[derive(Debug, Default)]
struct NodeState {
    /// Unanswered prompts that begin with it.
    users: usize,
    /// Its rows of the cache, from when it is first needed until nobody needs it.
    rows: Option<Rows>,
    /// Tokens in them.
    computed: usize,
}

/// A prompt and its answer so far.
#[derive(Debug)]
struct Sequence {
    leaf: usize,
    /// The token chosen last, not computed yet; there is none before the whole prompt is computed.
    next: Option<i64>,
}

/// What a pass computes.
#[derive(Debug, Default)]
struct Pass {
    input_ids: Vec<i64>,
    /// Of each segment: its number of tokens and of those before them, and the rows of all of these.
    new_and_past: Vec<(i64, i64)>,
    rows: Vec<Vec<Range<i64>>>,
    /// The last rows of sequences, and which these are.
    last_rows: Vec<i64>,
    sequences: Vec<usize>,
}

impl<'a> Batch<'a> {
    pub fn new(model: &'a CausalLm, prompts: &'a [Vec<i64>], config: &'a GenerationConfig) -> Result<Self> {
        let tree = PrefixTree::of(prompts);
        let mut nodes: Vec<NodeState> = tree.nodes.iter().map(|_| NodeState::default()).collect();
        for node in tree.leaves.iter().flat_map(|leaf| tree.path(leaf.node)) {
            nodes[node].users += 1;
        }
        let computed: usize = tree.nodes.iter().map(|node| node.tokens.len()).sum();
        let total: usize = prompts.iter().map(Vec::len).sum();
        tracing::debug!(total, computed, "tokens of the prompts, and of those that are computed");
        let waiting = (0..tree.leaves.len()).collect();
        let cache = Cache::new(model)?;
        Ok(Self { model, config, prompts, tree, nodes, cache, waiting, sequences: Vec::new() })
    }

    /// Computes the next pass; returns the sequences that got a token, with the prompts that they answer and the token.
    ///
    /// Nothing is returned when all are answered: each pass gives a token to somebody, or computes part of a prompt.
    pub fn step(&mut self) -> Result<Option<Vec<(usize, i64)>>> {
        self.fill()?;
        let pass = self.next_pass();
        if pass.input_ids.is_empty() {
            return Ok(None);
        }
        let layout = SequenceLayout::continuing(&pass.new_and_past)?.with_adapter(self.config.adapter);
        let options = self.model.attention_options();
        let attention = CachedAttention::new(&layout, &pass.rows, options, self.model.device())?;
        let mut attention = Cached { attention, cache: &mut self.cache };
        // Part of a long prompt has no row of interest, but a pass has a result.
        let last_rows = if pass.last_rows.is_empty() { &[0] } else { pass.last_rows.as_slice() };
        let embeddings = self.model.embed(&pass.input_ids, &layout)?;
        let hidden = self.model.run(embeddings, &layout, Some(last_rows), Mode::Eval, &mut attention)?;
        if pass.last_rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let chosen: Vec<(usize, i64)> =
            pass.sequences.iter().copied().zip(choose(self.model, &hidden)?).collect();
        for &(sequence, token) in &chosen {
            self.sequences[sequence].next = Some(token);
        }
        Ok(Some(chosen))
    }

    /// The prompts that a sequence answers.
    pub fn prompts_of(&self, sequence: usize) -> &[usize] {
        &self.tree.leaves[self.sequences[sequence].leaf].prompts
    }

    /// Takes sequences, in ascending order, out of the batch, and gives back what nobody else needs.
    pub fn leave(&mut self, ended: &[usize]) {
        for &place in ended.iter().rev() {
            let sequence = self.sequences.remove(place);
            for node in self.tree.path(self.tree.leaves[sequence.leaf].node) {
                let state = &mut self.nodes[node];
                state.users -= 1;
                if state.users == 0 {
                    self.cache.give_back(state.rows.take().unwrap_or_default());
                }
            }
        }
    }

    /// Lets waiting prompts in.
    fn fill(&mut self) -> Result<()> {
        let places = self.config.batch_size.max(1).saturating_sub(self.sequences.len());
        let entering: Vec<usize> = self.waiting.drain(..places.min(self.waiting.len())).collect();
        let mut needed = Vec::new();
        for &leaf in &entering {
            let own = self.tree.leaves[leaf].node;
            for node in self.tree.path(own) {
                if self.nodes[node].rows.is_none() {
                    self.nodes[node].rows = Some(Rows::default());
                    let answer = if node == own { self.config.max_new_tokens } else { 0 };
                    needed.push((node, self.tree.nodes[node].tokens.len() + answer));
                }
            }
        }
        self.cache.reserve(needed.iter().map(|(_, tokens)| *tokens))?;
        for (node, tokens) in needed {
            self.nodes[node].rows = Some(self.cache.lend(tokens)?);
        }
        self.sequences.extend(entering.into_iter().map(|leaf| Sequence { leaf, next: None }));
        Ok(())
    }

    /// The next token of each sequence, and as much of the prompts that are not computed yet as there is room for.
    fn next_pass(&mut self) -> Pass {
        let mut pass = Pass::default();
        let answering = self.sequences.iter().filter(|sequence| sequence.next.is_some()).count();
        let mut room = PASS_TOKENS.saturating_sub(answering);
        for place in 0..self.sequences.len() {
            let Sequence { leaf, next } = self.sequences[place];
            let path = self.tree.path(self.tree.leaves[leaf].node);
            if let Some(token) = next {
                self.add(&mut pass, &path, &[token]);
                pass.end(place);
                continue;
            }
            for length in 1..=path.len() {
                let node = &self.tree.nodes[path[length - 1]];
                let (tokens, computed) = (node.tokens.clone(), self.nodes[path[length - 1]].computed);
                let start = tokens.start + computed;
                let end = tokens.end.min(start + room);
                if start < end {
                    let tokens = &self.prompts[node.prompt][start..end];
                    room -= tokens.len();
                    self.add(&mut pass, &path[..length], tokens);
                }
                if end < tokens.end {
                    break;
                }
                if length == path.len() {
                    pass.end(place);
                }
            }
        }
        pass
    }

    /// Adds a segment: tokens of the last node of a path.
    fn add(&mut self, pass: &mut Pass, path: &[usize], tokens: &[i64]) {
        let (mut rows, mut past) = (Vec::new(), 0);
        for (place, &node) in path.iter().enumerate() {
            let state = &mut self.nodes[node];
            past += state.computed;
            if place + 1 == path.len() {
                state.computed += tokens.len();
            }
            if let Some(lent) = &state.rows {
                lent.extend(&mut rows, state.computed);
            }
        }
        pass.input_ids.extend_from_slice(tokens);
        pass.new_and_past.push((tokens.len() as i64, past as i64));
        pass.rows.push(rows);
    }
}

impl Pass {
    /// The segment added last holds the last token of a sequence.
    fn end(&mut self, sequence: usize) {
        self.last_rows.push(self.input_ids.len() as i64 - 1);
        self.sequences.push(sequence);
    }
}

/// The tokens of the largest logits.
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

struct Cached<'a> {
    attention: CachedAttention,
    cache: &'a mut Cache,
}

impl Attend for Cached<'_> {
    fn attend(&mut self, layer: usize, qkv: &Tensor, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
        Ok(self.attention.forward(qkv, cos, sin, self.cache.layer(layer))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tch::{Device, Kind};

    #[test]
    fn a_shared_beginning_is_computed_once_and_every_row_is_given_back() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder/llama_gqa_untied");
        let model = CausalLm::load(&directory, Device::Cpu, Kind::Float).unwrap();
        let prompt = |own: &[i64]| [&[7, 8, 9, 10].repeat(5), own].concat();
        let prompts = [prompt(&[1, 2]), prompt(&[3]), vec![4, 5], prompt(&[1, 2])];
        let config =
            GenerationConfig { max_new_tokens: 3, batch_size: 3, eos_token_ids: vec![], adapter: None };
        let _no_grad = tch::no_grad_guard();
        let mut batch = Batch::new(&model, &prompts, &config).unwrap();
        let computed = |batch: &Batch| batch.nodes.iter().map(|node| node.computed).sum::<usize>();
        assert_eq!(batch.step().unwrap().unwrap().len(), 3);
        assert_eq!(computed(&batch), 20 + 2 + 1 + 2);
        assert_eq!(batch.step().unwrap().unwrap().len(), 3);
        assert_eq!(computed(&batch), 25 + 3);
        // The shared rows stay until the last that needs them has left.
        batch.leave(&[1]);
        assert!(
            batch
                .tree
                .nodes
                .iter()
                .zip(&batch.nodes)
                .any(|(node, state)| { node.tokens == (0..20) && state.rows.is_some() })
        );
        batch.leave(&[0, 1]);
        assert!(batch.nodes.iter().all(|node| node.rows.is_none()));
        assert!(batch.cache.is_whole());
        assert!(batch.step().unwrap().is_none());
    }
}
