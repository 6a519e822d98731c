//! What connects data and model to the trainer.

use crate::Result;
use ferrotune_data::{PackedBatch, Source, Tokenized, epoch_order};
use ferrotune_kernels::{Mode, SequenceLayout};
use ferrotune_lora::Adapter;
use ferrotune_models::{CausalLm, ForwardOptions, PackedInputs, ProductWork, UsualBatch};
use ferrotune_precision::{ComputeDtype, DtypePolicy};
use ferrotune_trainer::{Dataset, ForwardArguments, TrainableModel};
use std::{cell::Cell, sync::Arc};
use tch::{Kind, Tensor};

/// Tokenised examples as batches without padding, in torch's order for the seed.
#[derive(Debug)]
pub struct PackedDataset {
    rows: Arc<[Tokenized]>,
    seed: u64,
}

impl PackedDataset {
    /// Epoch `e` sees the rows in the order of `torch.randperm` seeded with `seed + e`.
    pub fn new(rows: impl Into<Arc<[Tokenized]>>, seed: u64) -> Self {
        Self { rows: rows.into(), seed }
    }

    /// A usual batch of `batch_size` rows, for adapters of `rank`.
    pub(super) fn usual_batch(&self, batch_size: usize, rank: usize) -> UsualBatch {
        let mean =
            |total: usize, count: usize| i64::try_from(total / count.max(1)).unwrap_or(i64::MAX).max(1);
        let tokens: usize = self.rows.iter().map(|row| row.input_ids.len()).sum();
        let targets: usize = self.rows.iter().map(Tokenized::target_tokens).sum();
        let batches = self.rows.len().div_ceil(batch_size.max(1));
        UsualBatch {
            tokens: mean(tokens, batches),
            length: mean(tokens, self.rows.len()),
            targets: mean(targets, batches),
            rank: i64::try_from(rank).unwrap_or(i64::MAX),
        }
    }

    /// The rows, in the order of their file.
    pub fn rows(&self) -> &[Tokenized] {
        &self.rows
    }
}

impl Dataset for PackedDataset {
    type Batch = PackedBatch;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn order(&self, epoch: usize) -> Vec<usize> {
        epoch_order(self.rows.len(), self.seed.wrapping_add(epoch as u64))
    }

    fn batch(
        &self,
        indices: &[usize],
    ) -> std::result::Result<PackedBatch, Box<dyn std::error::Error + Send + Sync>> {
        let rows = indices.iter().map(|&index| self.rows.get(index).ok_or("an index beyond the data"));
        Ok(PackedBatch::pack(&rows.collect::<std::result::Result<Vec<_>, _>>()?))
    }
}

/// A packed batch as the model takes it, all sequences on one adapter.
///
/// # Errors
/// [`Error::Kernels`](crate::Error::Kernels) if the batch holds an empty sequence.
pub fn packed_inputs(batch: &PackedBatch, adapter: Option<usize>) -> Result<PackedInputs> {
    let targets = batch.targets();
    Ok(PackedInputs {
        input_ids: batch.input_ids.clone(),
        layout: SequenceLayout::from_cu_seqlens(&batch.cu_seqlens)?.with_adapter(adapter),
        target_rows: targets.rows,
        target_ids: targets.ids,
    })
}

/// Next-token prediction by a frozen model with a trainable adapter.
#[derive(Debug)]
pub struct CausalLmTask<'a> {
    model: &'a CausalLm,
    adapter: &'a Adapter,
    options: ForwardOptions,
    work: Cell<ProductWork>,
}

impl<'a> CausalLmTask<'a> {
    /// Trains `adapter`, which is part of `model`.
    pub fn new(model: &'a CausalLm, adapter: &'a Adapter) -> Self {
        Self { model, adapter, options: ForwardOptions::default(), work: Cell::default() }
    }

    /// Computed as the arguments ask for.
    ///
    /// # Errors
    /// [`Error::Precision`](crate::Error::Precision) if they ask for bf16 and fp16 at once.
    pub fn with_forward_arguments(mut self, arguments: ForwardArguments) -> Result<Self> {
        self.options = ForwardOptions {
            label_smoothing: arguments.label_smoothing_factor,
            neftune_alpha: arguments.neftune_noise_alpha,
            policy: DtypePolicy::from_flags(arguments.bf16, arguments.fp16)?,
            gradient_checkpointing: arguments.gradient_checkpointing,
        };
        Ok(self)
    }

    /// What products are computed in.
    pub(super) fn compute(&self) -> ComputeDtype {
        self.options.policy.compute()
    }

    /// The matrix products of the training batches since this was last asked.
    pub(super) fn take_work(&self) -> ProductWork {
        self.work.take()
    }
}

impl TrainableModel for CausalLmTask<'_> {
    type Batch = PackedBatch;
    type Error = crate::Error;

    fn target_tokens(&self, batch: &PackedBatch) -> usize {
        batch.target_tokens()
    }

    fn tokens(&self, batch: &PackedBatch) -> usize {
        batch.tokens()
    }

    fn loss(&self, batch: &PackedBatch, mode: Mode) -> Result<Tensor> {
        let inputs = packed_inputs(batch, Some(self.adapter.index()))?;
        if let Mode::Train(_) = mode {
            let mut work = self.work.get();
            work.add(&self.model.training_work(&inputs.layout, inputs.target_ids.len()));
            self.work.set(work);
        }
        Ok(self.model.target_losses(&inputs, mode, self.options)?.f_sum(Kind::Float)?)
    }

    fn forward_arguments(&self) -> ForwardArguments {
        ForwardArguments {
            label_smoothing_factor: self.options.label_smoothing,
            neftune_noise_alpha: self.options.neftune_alpha,
            bf16: self.options.policy.compute() == ComputeDtype::Bf16,
            fp16: self.options.policy.compute() == ComputeDtype::F16,
            gradient_checkpointing: self.options.gradient_checkpointing,
        }
    }

    fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.adapter.named_parameters()
    }

    fn sources(&self, batch: &PackedBatch) -> Vec<String> {
        batch.sources.iter().map(Source::to_string).collect()
    }
}
