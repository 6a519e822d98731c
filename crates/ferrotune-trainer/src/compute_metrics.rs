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

impl ComputeMetrics<'_> {
    /// A value for each name; `None` if it was cancelled.
    pub(crate) fn compute(&mut self) -> Result<Option<BTreeMap<String, f64>>> {
        let failed =
            |source| Error::Callback { name: "compute_metrics".to_owned(), event: "evaluate", source };
        let found = (self.compute)().map_err(failed)?;
        match found.as_ref().and_then(|found| self.names.iter().find(|name| !found.contains_key(*name))) {
            Some(missing) => Err(failed(format!("there is no value for {missing}").into())),
            None => Ok(found),
        }
    }
}
