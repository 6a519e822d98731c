//! The crate's error type.

/// Why a fused function could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two things that must fit each other do not.
    #[error("{function}: {what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The function called.
        function: &'static str,
        /// Which argument.
        what: String,
        /// The shape that it has.
        found: Vec<i64>,
        /// The shape that it should have, in words.
        expected: String,
    },
    /// A sequence layout whose borders make no sense.
    #[error("sequence layout: {reason}; found {found:?}")]
    Layout {
        /// What is wrong.
        reason: &'static str,
        /// The offending numbers.
        found: Vec<i64>,
    },
    /// A target id outside the vocabulary.
    #[error("target id {id} is outside the vocabulary of {vocabulary} tokens")]
    TargetOutOfRange {
        /// The id.
        id: i64,
        /// Number of rows of the head's weight.
        vocabulary: i64,
    },
    /// A kind of numbers that the function is not made for.
    #[error("{function}: kind {found:?}, expected {expected}")]
    Kind {
        /// The function called.
        function: &'static str,
        /// The kind.
        found: tch::Kind,
        /// What it may be.
        expected: &'static str,
    },
    /// A row that a weight does not have.
    #[error("row {row} of a weight with {rows} rows; expected one of 0 to {rows}, exclusive")]
    RowOutOfRange {
        /// The row.
        row: i64,
        /// Number of rows.
        rows: i64,
    },
    /// A dropout probability outside `[0, 1)`.
    #[error("dropout probability {0} is outside [0, 1)")]
    Dropout(f64),
    /// An option with a value that makes no sense.
    #[error("{function}: {option} is {found}, expected {expected}")]
    InvalidOption {
        /// The function called.
        function: &'static str,
        /// Which option.
        option: &'static str,
        /// Its value.
        found: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A tensor that would change in place has a gradient, which would be wrong then.
    #[error("{function} changes {what} in place, and {what} has a gradient; call `{instead}`")]
    ChangesGraph {
        /// The function called.
        function: &'static str,
        /// Which argument.
        what: &'static str,
        /// The function that leaves it as it is.
        instead: &'static str,
    },
    /// The function failed inside the graph machinery.
    #[error(transparent)]
    Autograd(#[from] ferrotune_autograd::Error),
    /// libtorch failed, out of memory included.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Demands a shape; `-1` in `expected` stands for any size.
pub(crate) fn check_shape(
    function: &'static str,
    what: &str,
    tensor: &tch::Tensor,
    expected: &[i64],
) -> Result<()> {
    let found = tensor.size();
    let fits = found.len() == expected.len()
        && found.iter().zip(expected).all(|(&found, &expected)| expected == -1 || found == expected);
    if fits {
        return Ok(());
    }
    Err(Error::Shape { function, what: what.to_owned(), found, expected: format!("{expected:?} (-1: any)") })
}
