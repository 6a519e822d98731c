//! The crate's error type.

/// What user code may return from [`Function`](crate::Function)'s methods.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why a differentiable function could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The function's own forward returned an error.
    #[error("forward of {function} failed: {source}")]
    Forward {
        /// Name of the function's type.
        function: &'static str,
        /// What it returned.
        source: BoxedError,
    },
    /// The function's own forward panicked; the panic was caught.
    #[error("forward of {function} panicked: {message}")]
    Panic {
        /// Name of the function's type.
        function: &'static str,
        /// The panic's message.
        message: String,
    },
    /// A function applied for one output returned another number of them.
    #[error(
        "{function} returned {found} outputs where exactly one was expected; call `apply` instead of `apply_one`"
    )]
    OutputCount {
        /// Name of the function's type.
        function: &'static str,
        /// Number of outputs returned.
        found: usize,
    },
    /// Forward marked an output that it does not have.
    #[error("{function} marked output {index} as non-differentiable but has {outputs} outputs")]
    NoSuchOutput {
        /// Name of the function's type.
        function: &'static str,
        /// The index marked.
        index: usize,
        /// Number of outputs returned.
        outputs: usize,
    },
    /// libtorch refused to record the function in its graph.
    #[error("libtorch could not record {function}: {message}")]
    Attach {
        /// Name of the function's type.
        function: &'static str,
        /// libtorch's message.
        message: String,
    },
    /// A gradient from backward is not the one that differences of the function give.
    #[error(
        "the derivative of element {output_element} of output {output} with respect to element {input_element} of input {input} is \
         {numerical} by differences, and backward gave {analytic}"
    )]
    GradientMismatch {
        /// Index of the input.
        input: usize,
        /// Its element, in row-major order.
        input_element: i64,
        /// Index of the output.
        output: usize,
        /// Its element, in row-major order.
        output_element: i64,
        /// The derivative by backward.
        analytic: f64,
        /// The derivative by central differences.
        numerical: f64,
    },
    /// The same backward gave two results.
    #[error(
        "backward gave two different gradients of output {output} with respect to input {input} in two runs: is something random in it, \
         or is a saved tensor changed?"
    )]
    GradientChanged {
        /// Index of the input.
        input: usize,
        /// Index of the output.
        output: usize,
    },
    /// A gradient check could not be made.
    #[error("the gradients cannot be checked: {reason}")]
    GradientCheck {
        /// Why not, and what to change.
        reason: String,
    },
    /// Two ways to compute a training step do not agree.
    #[error("`{way}` does not train the same: {what} is off by {distance:.3e} ({how})")]
    TrainingDiffers {
        /// The name of the way that was compared with the first.
        way: String,
        /// The loss, or the name of a parameter.
        what: String,
        /// The relative distance; infinite where one of the two has no gradient.
        distance: f64,
        /// In words.
        how: String,
    },
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
