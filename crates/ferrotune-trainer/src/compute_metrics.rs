//! What an evaluation measures besides the loss.

use std::collections::BTreeMap;

use crate::error::BoxError;
use crate::{Error, Result};

type Compute<'a> = dyn FnMut() -> std::result::Result<Option<BTreeMap<String, f64>>, BoxError> + 'a;

/// The metrics of a caller.
pub(crate) struct ComputeMetrics<'a> {
    pub(crate) names: Vec<String>,
    pub(crate) compute: Box<Compute<'a>>,
}

/// What `eval_` stands before in a log already.
const TAKEN: [&str; 6] = ["loss", "perplexity", "nll", "target_tokens", "examples", "runtime"];

impl ComputeMetrics<'_> {
    /// Refuses names that mean something else already.
    pub(crate) fn check_names(&self) -> Result<()> {
        let is_taken = |name: &String| TAKEN.contains(&name.as_str()) || name.starts_with("eval_");
        match self.names.iter().find(|name| is_taken(name)) {
            Some(found) => Err(Error::InvalidArgument {
                field: "compute_metrics",
                found: found.clone(),
                expected: "a name other than loss, perplexity, nll, target_tokens, examples and runtime, without eval_ before it",
            }),
            None => Ok(()),
        }
    }

    /// A finite value for each name, and no other; `None` if it was cancelled.
    pub(crate) fn compute(&mut self) -> Result<Option<BTreeMap<String, f64>>> {
        let failed = |reason: BoxError| Error::Callback {
            name: "compute_metrics".to_owned(),
            event: "evaluate",
            source: reason,
        };
        let Some(mut found) = tch::no_grad(|| (self.compute)()).map_err(failed)? else { return Ok(None) };
        found.retain(|name, _| self.names.contains(name));
        for name in &self.names {
            match found.get(name) {
                None => return Err(failed(format!("there is no value for {name}").into())),
                Some(value) if !value.is_finite() => return Err(failed(format!("{name} is {value}").into())),
                Some(_) => {}
            }
        }
        Ok(Some(found))
    }
}
