//! GGUF file in, ordinary Hugging Face model directory out.
//!
//! The directory holds `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`
//! (where the file has a template) and `model.safetensors` in f32; `transformers` loads it, and so does this crate, but for linear
//! rotary scaling, which is imported for `transformers` alone. What
//! llama.cpp changes on its way from such a directory to a GGUF file is changed back: tensor names, the order of the rows of the
//! query and key projections, the pre-tokenizer that the file only names.
//!
//! Architecture `llama` is imported, which is how GGUF files call Llama and Mistral alike. Anything in the file that would
//! change the model's results and has no counterpart here is refused by name.

mod cache;
mod config;
mod directory;
mod fields;
mod rope;
mod sentencepiece;
mod special_tokens;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

pub use cache::hf_dir_for;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use directory::{Finished, Staging};
use ferrotune_precision::free_disk_bytes;

/// What an import did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportSummary {
    /// The Hugging Face directory.
    pub directory: PathBuf,
    /// False if the directory was there already, made from the same file.
    pub imported: bool,
    /// Size of the GGUF file.
    pub source_bytes: u64,
    /// SHA-256 of the GGUF file, in hexadecimal.
    pub source_sha256: String,
    /// Tensors in `model.safetensors`.
    pub tensors: usize,
    /// Numbers in all of them.
    pub parameters: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// What the file left open and the import had to choose.
    pub warnings: Vec<String>,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ImportProgress<'a> {
    /// The tensor that is being decoded.
    pub tensor: &'a str,
    /// Bytes of `model.safetensors` written before it.
    pub done_bytes: u64,
    /// Bytes of tensor data in `model.safetensors`.
    pub total_bytes: u64,
}

/// Imports a GGUF file into a new Hugging Face directory.
///
/// The directory appears whole or not at all: it is written under a temporary name beside `output_dir` and renamed at the end.
/// Importing the same file to the same place again does nothing.
///
/// # Errors
/// [`Error::GgufMalformed`] and its kin for a bad file, [`Error::GgufUnsupported`] for a model, tokenizer or metadata key that has
/// no counterpart, [`Error::ImportTargetExists`] if `output_dir` is there and is not a finished import of this very file,
/// [`Error::Io`] where it cannot be written: for want of room before anything is.
///
/// # Examples
/// ```no_run
/// use ferrotune_models::import::import_gguf;
///
/// let summary = import_gguf("model.gguf".as_ref(), "model-hf".as_ref())?;
/// println!("{} tensors in {}", summary.tensors, summary.directory.display());
/// # Ok::<(), ferrotune_models::Error>(())
/// ```
pub fn import_gguf(gguf_path: &Path, output_dir: &Path) -> Result<ImportSummary> {
    import_gguf_with_progress(gguf_path, output_dir, &|_| true)
}

/// [`import_gguf`] that reports every tensor before it is decoded; `progress` may stop everything by returning `false`.
///
/// # Errors
/// As [`import_gguf`], and [`Error::ImportStopped`].
pub fn import_gguf_with_progress(
    gguf_path: &Path,
    output_dir: &Path,
    progress: &dyn Fn(ImportProgress<'_>) -> bool,
) -> Result<ImportSummary> {
    let file = GgufFile::open(gguf_path)?;
    let sha256 = directory::sha256(file.bytes());
    import_open_file(&file, sha256, output_dir, progress)
}

fn import_open_file(
    file: &GgufFile,
    source_sha256: String,
    output_dir: &Path,
    progress: &dyn Fn(ImportProgress<'_>) -> bool,
) -> Result<ImportSummary> {
    // Everything that can be refused is looked at before the first byte is written.
    let config = config::ModelConfig::from_gguf(file)?;
    let plan = weights::WeightPlan::new(file, &config)?;
    let tokenizer = tokenizer::TokenizerFiles::from_gguf(file, config.max_position_embeddings)?;
    if tokenizer.vocabulary > plan.vocab_size {
        let expected =
            format!("at most {} tokens, for `token_embd.weight` has no more rows", plan.vocab_size);
        return Err(fields::Fields(file).invalid("tokenizer.ggml.tokens", expected, tokenizer.vocabulary));
    }
    let mut summary = ImportSummary {
        directory: output_dir.to_owned(),
        imported: false,
        source_bytes: file.bytes().len() as u64,
        source_sha256,
        tensors: plan.tensors(),
        parameters: plan.parameters(),
        vocabulary: tokenizer.vocabulary,
        warnings: tokenizer.warnings.clone(),
    };
    match directory::inspect(output_dir, &summary.source_sha256)? {
        Finished::Absent => {}
        Finished::Same => return Ok(summary),
        Finished::Other(reason) => {
            return Err(Error::ImportTargetExists { path: output_dir.to_owned(), reason });
        }
    }
    let bytes = plan.parameters() * size_of::<f32>() as u64;
    let make = || -> Result<bool> {
        if free_disk_bytes(output_dir).is_some_and(|free| free < bytes) {
            return Err(Error::io("make", output_dir)(std::io::ErrorKind::StorageFull.into()));
        }
        let mut staging = Staging::new(output_dir)?;
        staging.json("config.json", &config.to_json(&plan, &tokenizer.special))?;
        staging.json("generation_config.json", &tokenizer.special.generation_config())?;
        staging.json("tokenizer.json", &tokenizer.tokenizer_json)?;
        staging.json("tokenizer_config.json", &tokenizer.tokenizer_config)?;
        if let Some(template) = &tokenizer.chat_template {
            staging.bytes("chat_template.jinja", template.as_bytes())?;
        }
        let weights = staging.path("model.safetensors");
        if !plan.write(file, &weights, &output_dir.join("model.safetensors"), progress)? {
            return Err(Error::ImportStopped { path: output_dir.to_owned() });
        }
        staging.adopt("model.safetensors")?;
        staging.finish(file.path(), &summary)
    };
    summary.imported = make().map_err(|error| error.with_room(output_dir, bytes))?;
    tracing::info!(directory = %output_dir.display(), tensors = summary.tensors, "imported a GGUF file");
    Ok(summary)
}
