//! What runs on one model and one data have in common.

use super::{
    Assistant, Prompts,
    data::{Data, DataFiles},
    default_cache_dir,
    evaluation::{Pass, TestSet},
    run::Observer,
};
use crate::{
    Result,
    recipe::Recipe,
    report::{DataMetrics, Split},
};
use ferrotune_data::{Preflight, Tokenized};
use ferrotune_metrics::Metric;
use ferrotune_precision::{ComputeDtype, DtypePolicy, parse_device};
use std::sync::Arc;

/// A frozen model in memory with the tokens of its data, on which any number of adapters can be trained one after the other.
pub(crate) struct Base {
    pub assistant: Assistant,
    pub(super) train: Arc<[Tokenized]>,
    pub(super) validation: Option<Arc<[Tokenized]>>,
    pub(super) test: Option<TestSet>,
    /// The prompts of the validation data, where they are to be answered during the training.
    pub(super) validation_prompts: Option<TestSet>,
    pub(super) preflight: Preflight,
    pub(super) data: DataMetrics,
    /// For the report.
    pub(super) splits: Vec<Split>,
    /// What the model answered before anything was trained, once it was asked.
    pub(super) before: Option<Pass>,
}

impl Base {
    /// Loads what the recipe names; `None` if the observer cancels.
    pub(super) fn load(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Option<Self>> {
        let device = parse_device(&recipe.runtime.device)?;
        let policy = DtypePolicy::for_compute(recipe.runtime.compute_dtype.parse::<ComputeDtype>()?)?;
        let metrics = recipe.evaluation.metrics.iter().map(|name| name.parse());
        let metrics = metrics.collect::<std::result::Result<Vec<Metric>, _>>()?;
        observer.stage("reading data");
        let files = DataFiles::read(recipe, observer)?;
        if observer.cancelled() {
            return Ok(None);
        }
        observer.stage("loading model");
        let assistant = Assistant::load(&recipe.model.path, device, policy, &default_cache_dir())?;
        if observer.cancelled() {
            return Ok(None);
        }
        let Data { train, validation, validation_prompts, test, preflight, metrics: data, splits } =
            files.prepare(recipe, &assistant, observer)?;
        let to_answer = |prompts: Prompts| TestSet {
            examples: prompts.examples,
            prompts: prompts.prompt_ids,
            metrics: metrics.clone(),
            max_new_tokens: recipe.generation.max_new_tokens,
            batch_size: recipe.generation.batch_size,
        };
        let (test, validation_prompts) = (test.map(to_answer), validation_prompts.map(to_answer));
        let (train, validation) = (train.into(), validation.map(Arc::from));
        let before = None;
        Ok(Some(Self {
            assistant,
            train,
            validation,
            validation_prompts,
            test,
            preflight,
            data,
            splits,
            before,
        }))
    }

    /// Answers the test prompts and scores the answers; `None` if there are none, or the observer cancels.
    pub(super) fn answers(&self, stage: &str, observer: &mut dyn Observer) -> Result<Option<Pass>> {
        let Some(test) = &self.test else { return Ok(None) };
        observer.stage(stage);
        test.run(&self.assistant, observer)
    }
}
