//! Greedy generation with a cache of keys and values.

mod batch;
mod cache;
mod prefix_tree;

use crate::{
    config::ModelConfig,
    decoder::CausalLm,
    error::{Error, Result},
};
use batch::Batch;
pub use batch::PASS_TOKENS;

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
/// Sequences lie without padding; one that ends leaves the batch at once and the next prompt takes its place. What several prompts
/// begin with is computed once, and equal prompts are answered once: `on_token` hears the token for each of them.
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
    let mut batch = Batch::new(model, prompts, config)?;
    while let Some(chosen) = batch.step()? {
        let mut ended = Vec::new();
        for (sequence, token) in chosen {
            for &prompt in batch.prompts_of(sequence) {
                let answer = &mut answers[prompt];
                answer.finished = config.eos_token_ids.contains(&token);
                if !answer.finished {
                    answer.token_ids.push(token);
                    if !on_token(prompt, token) {
                        return Ok(answers);
                    }
                }
                if answer.finished || answer.token_ids.len() >= config.max_new_tokens {
                    ended.push(sequence);
                }
            }
        }
        ended.dedup();
        batch.leave(&ended);
    }
    Ok(answers)
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
