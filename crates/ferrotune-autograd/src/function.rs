//! Differentiable functions written in Rust.

use crate::{
    error::{BoxedError, Error, Result},
    shim,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};
use tch::{Kind, Tensor};

/// A differentiable function: `forward` on tensors, `backward` from the gradients of its outputs to those of its inputs.
///
/// The value that implements the trait carries the non-tensor context (sizes, scales, flags) from forward to backward. Tensors go
/// through [`ForwardContext::save`], so that libtorch frees them as soon as it frees its own and notices when one was modified in
/// place. Both methods run with gradients switched off. An error or a panic in either reaches the caller as an `Err`: from
/// [`apply`], or from the `f_backward` that ran into it.
///
/// A function is differentiable once: under `create_graph` its gradients carry a node that says so when it is reached.
///
/// ```
/// use ferrotune_autograd::{BackwardContext, ForwardContext, Function, apply_one, tch::{Kind, Device, Tensor}};
///
/// /// `y = scale * x^2`
/// struct ScaledSquare { scale: f64 }
///
/// impl Function for ScaledSquare {
///     fn forward(&mut self, inputs: &[Option<&Tensor>], context: &mut ForwardContext)
///         -> Result<Vec<Tensor>, Box<dyn std::error::Error + Send + Sync>> {
///         let x = inputs[0].ok_or("x is required")?;
///         context.save(&[x]);
///         Ok(vec![(x.f_square()?).f_mul_scalar(self.scale)?])
///     }
///     fn backward(&self, grad_outputs: &[Option<Tensor>], context: &BackwardContext)
///         -> Result<Vec<Option<Tensor>>, Box<dyn std::error::Error + Send + Sync>> {
///         let x = &context.saved()[0];
///         Ok(vec![match &grad_outputs[0] {
///             Some(grad) => Some(grad.f_mul(x)?.f_mul_scalar(2.0 * self.scale)?),
///             None => None,
///         }])
///     }
/// }
///
/// let x = Tensor::from_slice(&[1.0, 2.0, 3.0]).set_requires_grad(true);
/// let y = apply_one(ScaledSquare { scale: 0.5 }, &[Some(&x)])?;
/// y.sum(Kind::Double).f_backward()?;
/// assert_eq!(Vec::<f64>::try_from(x.grad())?, [1.0, 2.0, 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Function: Send + Sized + 'static {
    /// Computes the outputs, and saves what backward needs.
    ///
    /// # Errors
    /// Whatever the function returns; [`apply`] passes it on as [`Error::Forward`].
    fn forward(
        &mut self,
        inputs: &[Option<&Tensor>],
        context: &mut ForwardContext,
    ) -> std::result::Result<Vec<Tensor>, BoxedError>;

    /// Computes the gradient of each input, in order; `None` where there is none or none is needed.
    ///
    /// A gradient of an output is `None` where nothing downstream depends on that output.
    ///
    /// # Errors
    /// Whatever the function returns; it reaches the caller of `f_backward` as [`tch::TchError::Torch`] with its message.
    fn backward(
        &self,
        grad_outputs: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError>;
}

/// What forward may say to the graph.
#[derive(Debug)]
pub struct ForwardContext {
    needs_input_grad: Vec<bool>,
    saved: Vec<Tensor>,
    /// For each saved tensor the kind in which backward gets it, if it is stored in another.
    kinds: Vec<Option<Kind>>,
    non_differentiable: Vec<usize>,
}

impl ForwardContext {
    /// Saves tensors (inputs, outputs or others) for backward, after those saved before. Costs no copy.
    pub fn save(&mut self, tensors: &[&Tensor]) {
        for tensor in tensors {
            self.saved.push(tensor.shallow_clone());
            self.kinds.push(None);
        }
    }

    /// [`ForwardContext::save`] in another kind: tensors are stored as `kind`, and backward gets them back in the kind that they have now.
    ///
    /// `Kind::BFloat16` halves what f32 activations take until backward, and keeps 8 bits of each number; `Kind::Half` keeps 11 and turns
    /// what lies beyond 65504 into infinity. Gradients are then those of the rounded numbers. Unlike `save` this copies
    /// tensors of other kinds, so that no later change reaches what is saved. Without a graph to record, nothing is copied.
    ///
    /// # Errors
    /// Those of libtorch.
    pub fn save_as(&mut self, tensors: &[&Tensor], kind: Kind) -> std::result::Result<(), tch::TchError> {
        for tensor in tensors {
            let own = tensor.f_kind()?;
            if own == kind || !self.needs_input_grad.contains(&true) {
                self.save(&[tensor]);
                continue;
            }
            self.saved.push(tensor.f_to_kind(kind)?);
            self.kinds.push(Some(own));
        }
        Ok(())
    }

    /// Whether backward will be asked for the gradient of input `index`: what only that gradient needs need not be saved.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }

    /// Marks output `index` as one that has no gradient (an index, a count).
    pub fn mark_non_differentiable(&mut self, index: usize) {
        self.non_differentiable.push(index);
    }
}

/// What backward is given beside the gradients of the outputs.
#[derive(Debug)]
pub struct BackwardContext {
    pub(crate) saved: Vec<Tensor>,
    pub(crate) needs_input_grad: Vec<bool>,
}

impl BackwardContext {
    /// The tensors saved in forward, in the order in which they were saved and in the kinds that they had.
    pub fn saved(&self) -> &[Tensor] {
        &self.saved
    }

    /// Whether the gradient of input `index` is wanted; returning `None` for the others saves work.
    pub fn needs_input_grad(&self, index: usize) -> bool {
        self.needs_input_grad.get(index).copied().unwrap_or(false)
    }
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// How many functions recorded in graphs are alive in this process: zero when every graph was dropped, so tests can look for leaks.
pub fn live_functions() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// A function as the graph holds it: with its name, the places of its tensor inputs, and its type erased.
pub(crate) struct Recorded {
    function: Box<dyn ErasedBackward>,
    pub(crate) name: &'static str,
    /// For each tensor input of the graph its place among the function's inputs.
    places: Vec<usize>,
    input_count: usize,
    kinds: Vec<Option<Kind>>,
}

trait ErasedBackward: Send {
    fn backward(
        &self,
        grad_outputs: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError>;
}

impl<F: Function> ErasedBackward for F {
    fn backward(
        &self,
        grad_outputs: &[Option<Tensor>],
        context: &BackwardContext,
    ) -> std::result::Result<Vec<Option<Tensor>>, BoxedError> {
        Function::backward(self, grad_outputs, context)
    }
}

impl Recorded {
    /// Runs backward; `needs` and the result speak of the graph's tensor inputs. Errors and panics become messages.
    pub(crate) fn backward(
        &self,
        grad_outputs: &[Option<Tensor>],
        saved: Vec<Tensor>,
        needs: &[bool],
    ) -> std::result::Result<Vec<Option<Tensor>>, String> {
        let mut needs_input_grad = vec![false; self.input_count];
        for (&place, &needed) in self.places.iter().zip(needs) {
            needs_input_grad[place] = needed;
        }
        let name = self.name;
        let saved = saved
            .into_iter()
            .zip(&self.kinds)
            .map(|(tensor, kind)| match kind {
                Some(kind) => tensor.f_to_kind(*kind),
                None => Ok(tensor),
            })
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| format!("backward of {name} failed: {error}"))?;
        let context = BackwardContext { saved, needs_input_grad };
        let mut gradients =
            match catch_unwind(AssertUnwindSafe(|| self.function.backward(grad_outputs, &context))) {
                Ok(Ok(gradients)) => gradients,
                Ok(Err(error)) => return Err(format!("backward of {name} failed: {error}")),
                Err(panic) => return Err(format!("backward of {name} panicked: {}", panic_message(&*panic))),
            };
        if gradients.len() != self.input_count {
            return Err(format!(
                "backward of {name} returned {} gradients for {} inputs",
                gradients.len(),
                self.input_count
            ));
        }
        Ok(self.places.iter().map(|&place| gradients[place].take()).collect())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a function and records it in libtorch's graph.
///
/// `None` stands for an optional input that is not given. Where gradients are switched off, or no input requires one, nothing is
/// recorded and what forward saved is dropped at once.
///
/// # Errors
/// [`Error::Forward`] and [`Error::Panic`] from the function's own forward; [`Error::NoSuchOutput`]; [`Error::Attach`] if libtorch
/// refuses.
pub fn apply<F: Function>(mut function: F, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let name = std::any::type_name::<F>();
    let grad_enabled = shim::grad_mode_enabled();
    let needs_input_grad: Vec<bool> =
        inputs.iter().map(|input| grad_enabled && input.is_some_and(Tensor::requires_grad)).collect();
    let recording = needs_input_grad.contains(&true);
    let mut context = ForwardContext {
        needs_input_grad,
        saved: Vec::new(),
        kinds: Vec::new(),
        non_differentiable: Vec::new(),
    };
    let mut outputs = {
        let _no_grad = tch::no_grad_guard();
        match catch_unwind(AssertUnwindSafe(|| function.forward(inputs, &mut context))) {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(source)) => return Err(Error::Forward { function: name, source }),
            Err(panic) => return Err(Error::Panic { function: name, message: panic_message(&*panic) }),
        }
    };
    let mut differentiable = vec![true; outputs.len()];
    for index in context.non_differentiable {
        match differentiable.get_mut(index) {
            Some(flag) => *flag = false,
            None => return Err(Error::NoSuchOutput { function: name, index, outputs: outputs.len() }),
        }
    }
    if !recording {
        return Ok(outputs);
    }
    let (places, tensors): (Vec<usize>, Vec<&Tensor>) =
        inputs.iter().enumerate().filter_map(|(place, input)| input.map(|tensor| (place, tensor))).unzip();
    LIVE.fetch_add(1, Ordering::Relaxed);
    let recorded = Box::new(Recorded {
        function: Box::new(function),
        name,
        places,
        input_count: inputs.len(),
        kinds: context.kinds,
    });
    shim::attach(recorded, &tensors, &mut outputs, &differentiable, &context.saved)
        .map_err(|message| Error::Attach { function: name, message })?;
    Ok(outputs)
}

/// [`apply`] for a function with a single output.
///
/// # Errors
/// As [`apply`], and [`Error::OutputCount`] if there is not exactly one output.
pub fn apply_one<F: Function>(function: F, inputs: &[Option<&Tensor>]) -> Result<Tensor> {
    let mut outputs = apply(function, inputs)?;
    match (outputs.pop(), outputs.len()) {
        (Some(output), 0) => Ok(output),
        (last, rest) => Err(Error::OutputCount {
            function: std::any::type_name::<F>(),
            found: rest + usize::from(last.is_some()),
        }),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
