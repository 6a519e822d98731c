//! A model with its tokenizer: answers prompts, scores completions.

use crate::{Error, Result, progress::Generating};
use ferrotune_data::{
    Example, MAX_LISTED, OnError, PackedBatch, Problems, PromptIds, TextTokenizer, TokenizeOptions,
    Tokenized, TokenizedExamples, Truncation, prompt_ids_with, tokenize_with,
};
use ferrotune_kernels::Mode;
use ferrotune_lora::Adapter;
use ferrotune_models::{CausalLm, GenerationConfig, ModelSize, generate, import::hf_dir_for};
use ferrotune_precision::DtypePolicy;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use tch::Device;

use super::{memory::MemoryNeed, task::packed_inputs};

/// The place in the model of the adapter in use.
pub(super) const ADAPTER_INDEX: usize = 0;

fn warn(warning: Option<String>) {
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
}

/// A causal language model with its tokenizer and, perhaps, an adapter.
#[derive(Debug)]
pub struct Assistant {
    /// The Hugging Face directory that it was loaded from.
    pub directory: PathBuf,
    /// The model.
    pub model: CausalLm,
    /// Its tokenizer and chat template.
    pub tokenizer: TextTokenizer,
    /// Tokens that end an answer.
    pub stop_token_ids: Vec<i64>,
    /// The adapter in use, at index 0 of the model.
    pub adapter: Option<Adapter>,
}

/// Examples with the token ids of their prompts.
#[derive(Debug)]
pub struct Prompts {
    /// The examples.
    pub examples: Vec<Example>,
    /// The prompt of each.
    pub prompt_ids: Vec<Vec<i64>>,
    /// The examples that were left out.
    pub refused: Problems<ferrotune_data::Error>,
}

/// An answer to a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text, without special tokens and without white space at its ends.
    pub text: String,
    /// Number of its tokens, the end token not counted.
    pub new_tokens: usize,
    /// Whether it ended by itself, and not at the most new tokens.
    pub finished: bool,
}

/// How likely a model finds a completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Summed negative log-likelihood of the target tokens, in nats.
    pub nll: f64,
    /// Number of target tokens.
    pub target_tokens: usize,
}

/// Where imported models are kept: `$XDG_CACHE_HOME/ferrotune`, else `~/.cache/ferrotune`, else a folder of the temporary directory.
pub fn default_cache_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("ferrotune")
}

impl Assistant {
    /// Loads a Hugging Face model directory, or a `.gguf` file (imported once into `cache_dir`).
    ///
    /// # Errors
    /// Those of the tokenizer, the configuration and the weights, each naming its file; [`Error::VocabularyTooLarge`] if the
    /// tokenizer has tokens without an embedding; [`Error::NotEnoughMemory`] before the weights are read.
    pub fn load(path: &Path, device: Device, policy: DtypePolicy, cache_dir: &Path) -> Result<Self> {
        let directory = hf_dir_for(path, cache_dir)?;
        // What is small is checked before the weights are read.
        let size = ModelSize::of(&directory)?;
        let kind = policy.weights().kind();
        if device == Device::Cpu {
            let need = MemoryNeed::of_loading(size.weight_bytes(kind), size.loading_bytes(kind));
            let what = format!("loading {}", directory.display());
            warn(need.check(&what, "choose a smaller model, or free memory")?);
        }
        // A large vocabulary takes as long to read as small weights, and needs one thread.
        let (tokenizer, model) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| TextTokenizer::from_dir(&directory));
            let model = CausalLm::load(&directory, device, kind);
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), model)
        });
        let tokenizer = tokenizer?;
        let config = size.config;
        let embeddings = config.vocab_size as usize;
        if tokenizer.id_limit() > embeddings {
            return Err(Error::VocabularyTooLarge {
                model: directory,
                tokens: tokenizer.id_limit(),
                embeddings,
                new_tokens: tokenizer.new_tokens().to_vec(),
            });
        }
        let model = model?;
        let mut stop_token_ids = config.eos_token_ids;
        if stop_token_ids.is_empty() {
            stop_token_ids.extend(tokenizer.eos_token_id().map(i64::from));
        }
        Ok(Self { directory, model, tokenizer, stop_token_ids, adapter: None })
    }

    /// Adds a PEFT adapter and uses it from now on.
    ///
    /// # Errors
    /// [`Error::Lora`] if the adapter cannot be read or was made for another model.
    pub fn load_adapter(&mut self, directory: &Path) -> Result<()> {
        self.adapter =
            Some(ferrotune_lora::load(&mut self.model, "default", ADAPTER_INDEX, directory, false)?);
        Ok(())
    }

    /// Takes the adapter in use, if there is one, out of the model, whose own weights are as they were before.
    ///
    /// # Errors
    /// [`Error::Lora`] if the model cannot be walked through.
    pub fn unload_adapter(&mut self) -> Result<()> {
        self.adapter = None;
        Ok(ferrotune_lora::unload(&mut self.model, ADAPTER_INDEX)?)
    }

    /// Folds the adapter in use, if there is one, into the weights: answers are the same, up to rounding. The weights then take all
    /// bits of f32, also where the model's own are kept in fewer.
    ///
    /// # Errors
    /// [`Error::Lora`] if libtorch fails.
    pub fn merge_adapter(&mut self) -> Result<()> {
        match self.adapter.take() {
            Some(adapter) => Ok(ferrotune_lora::merge(&mut self.model, adapter)?),
            None => Ok(()),
        }
    }

    /// Stop tokens as the tokenizer counts them.
    pub(crate) fn stop_tokens(&self) -> Vec<u32> {
        self.stop_token_ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
    }

    /// Tokens of the model's context, prompt and answer together.
    pub fn context(&self) -> usize {
        usize::try_from(self.model.config().max_position_embeddings).unwrap_or(usize::MAX)
    }

    /// Examples as token ids and labels, none longer than `max_length` or the model's context.
    ///
    /// # Errors
    /// As [`tokenize_with`](Self::tokenize_with), for every example that cannot be used as it is.
    pub fn tokenize(&self, examples: &[Example], max_length: usize) -> Result<Vec<Tokenized>> {
        Ok(self.tokenize_with(examples, &TokenizeOptions::strict(max_length))?.rows)
    }

    /// Examples as token ids and labels, and which are not among them; none is longer than the model's context.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::BeyondContext`], which name all examples that cannot be used.
    pub fn tokenize_with(
        &self,
        examples: &[Example],
        options: &TokenizeOptions,
    ) -> Result<TokenizedExamples> {
        let context = self.context();
        let mut options = *options;
        if options.truncation == Truncation::Error && options.max_length > context {
            // A higher `max_length` would not help here.
            options.max_length = usize::MAX;
        }
        let found = tokenize_with(examples, &self.tokenizer, &options)?;
        let long = || found.rows.iter().filter(|row| row.input_ids.len() > context);
        match long().count() {
            0 => Ok(found),
            total => {
                let named = long().take(MAX_LISTED).map(|row| (row.source.to_string(), row.input_ids.len()));
                Err(Error::BeyondContext { examples: named.collect(), total, context })
            }
        }
    }

    /// The token ids of each prompt, as the chat template renders it, with room for an answer behind it.
    ///
    /// # Errors
    /// [`Error::Data`] names all examples whose prompts cannot be rendered, [`Error::PromptTooLong`] the first one that leaves no
    /// room in the model's context.
    pub fn prompt_ids(&self, examples: &[Example], max_new_tokens: usize) -> Result<Vec<Vec<i64>>> {
        Ok(self.prompts(examples.to_vec(), max_new_tokens, OnError::Strict)?.prompt_ids)
    }

    /// The examples with the token ids of their prompts; those that the chat template refuses are left out where `on_error` says
    /// so.
    ///
    /// # Errors
    /// As [`prompt_ids`](Self::prompt_ids).
    pub fn prompts(
        &self,
        examples: Vec<Example>,
        max_new_tokens: usize,
        on_error: OnError,
    ) -> Result<Prompts> {
        let context = self.context();
        let PromptIds { prompts, refused } = prompt_ids_with(&examples, &self.tokenizer, on_error)?;
        let widen = |ids: Vec<u32>| ids.into_iter().map(i64::from).collect();
        let both = examples.into_iter().zip(prompts);
        let (examples, prompt_ids): (Vec<Example>, Vec<Vec<i64>>) =
            both.filter_map(|(example, ids)| Some((example, widen(ids?)))).unzip();
        let mut both = examples.iter().zip(&prompt_ids);
        if let Some((example, prompt)) =
            both.find(|(_, prompt)| prompt.len().saturating_add(max_new_tokens) > context)
        {
            let (example, tokens) = (example.source.to_string(), prompt.len());
            return Err(Error::PromptTooLong { example, tokens, max_new_tokens, context });
        }
        Ok(Prompts { examples, prompt_ids, refused })
    }

    /// Answers prompts greedily; `on_token` sees the index of the prompt and each new token, and may stop everything by returning
    /// `false`.
    ///
    /// # Errors
    /// [`Error::Models`] if a prompt leaves no room for an answer in the model's context.
    pub fn answer(
        &self,
        prompts: &[Vec<i64>],
        max_new_tokens: usize,
        batch_size: usize,
        on_token: &mut dyn FnMut(usize, i64) -> bool,
    ) -> Result<Vec<Answer>> {
        if self.model.device() == Device::Cpu {
            let need = MemoryNeed::of_generation(&self.model, prompts, max_new_tokens, batch_size);
            warn(need.check(
                "answering the prompts",
                "lower the batch size or the most new tokens, or free memory",
            )?);
        }
        let config = GenerationConfig {
            max_new_tokens,
            batch_size,
            eos_token_ids: self.stop_token_ids.clone(),
            adapter: self.adapter.as_ref().map(Adapter::index),
        };
        generate(&self.model, prompts, &config, on_token)?
            .into_iter()
            .map(|generated| {
                let text = self.decode(&generated.token_ids)?;
                let (new_tokens, finished) = (generated.token_ids.len(), generated.finished);
                Ok(Answer { text: text.trim().to_owned(), new_tokens, finished })
            })
            .collect()
    }

    /// Answers prompts as [`answer`](Self::answer) does; `on_progress` hears with every token how far it is, and may stop everything by
    /// returning `false`: then there are no answers.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn answer_all(
        &self,
        prompts: &[Vec<i64>],
        max_new_tokens: usize,
        batch_size: usize,
        on_progress: &mut dyn FnMut(&Generating) -> bool,
    ) -> Result<Option<Vec<Answer>>> {
        let start = Instant::now();
        let mut now = Generating { prompts: 0, total_prompts: prompts.len(), new_tokens: 0, seconds: 0.0 };
        let mut going = true;
        let answers = self.answer(prompts, max_new_tokens, batch_size, &mut |prompt, _| {
            // Prompts are begun in their order, each where an answer has ended: but for one batch, all before this one are done.
            now.prompts = now.prompts.max((prompt + 1).saturating_sub(batch_size));
            now.new_tokens += 1;
            now.seconds = start.elapsed().as_secs_f64();
            going = on_progress(&now);
            going
        })?;
        if going {
            now.prompts = prompts.len();
            now.seconds = start.elapsed().as_secs_f64();
            going = on_progress(&now);
        }
        Ok(going.then_some(answers))
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer fails.
    pub fn decode(&self, token_ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = token_ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        Ok(self.tokenizer.decode(&ids, true)?)
    }

    /// Scores the completion of each row, in order; `on_done` hears how many rows are done.
    ///
    /// # Errors
    /// [`Error::Models`] if a row does not fit the model.
    pub fn score(
        &self,
        rows: &[Tokenized],
        batch_size: usize,
        on_done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Score>> {
        if self.model.device() == Device::Cpu {
            let need = MemoryNeed::of_scoring(self.model.config(), rows, batch_size);
            warn(need.check("scoring", "lower the batch size, or free memory")?);
        }
        let _no_grad = tch::no_grad_guard();
        let mut scores = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(batch_size.max(1)) {
            let batch = PackedBatch::pack(&chunk.iter().collect::<Vec<_>>());
            let inputs = packed_inputs(&batch, self.adapter.as_ref().map(Adapter::index))?;
            let nll: Vec<f32> = Vec::try_from(self.model.target_nll(&inputs, Mode::Eval)?)?;
            // Targets lie in the order of the rows, so each row takes the next of them.
            let mut rest = nll.as_slice();
            for row in chunk {
                let (own, later) = rest.split_at(row.target_tokens().min(rest.len()));
                scores.push(Score {
                    nll: own.iter().map(|&nll| f64::from(nll)).sum(),
                    target_tokens: own.len(),
                });
                rest = later;
            }
            on_done(scores.len());
        }
        Ok(scores)
    }
}
