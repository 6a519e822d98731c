//! The Rust side of the C++ shim: every call across the border, with its safety argument.

use crate::function::Recorded;
use std::{
    any::Any,
    ffi::{CStr, CString, c_char, c_void},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::Mutex,
};
use tch::Tensor;
use torch_sys::C_tensor;

#[cfg(not(no_libtorch))]
unsafe extern "C" {
    fn ferrotune_attach(
        function: *mut c_void,
        inputs: *const *const C_tensor,
        input_count: usize,
        outputs: *const *mut C_tensor,
        output_count: usize,
        differentiable: *const bool,
        saved: *const *const C_tensor,
        saved_count: usize,
    ) -> *mut c_char;
    fn ferrotune_free_attach_message(message: *mut c_char);
    fn ferrotune_grad_mode_enabled() -> bool;
    fn ferrotune_reuse_buffers() -> bool;
    fn ferrotune_release_buffers();
    fn ferrotune_kept_buffer_bytes() -> usize;
    fn ferrotune_libtorch_configuration() -> *mut c_char;
    fn ferrotune_free_configuration(configuration: *mut c_char);
    fn ferrotune_mark_changed(tensor: *mut C_tensor);
    fn ferrotune_parallel_for(begin: i64, end: i64, grain_size: i64, body: *const c_void);
}

/// Whether libtorch records graphs on this thread now.
#[cfg(not(no_libtorch))]
pub(crate) fn grad_mode_enabled() -> bool {
    // SAFETY: reads a thread-local flag.
    unsafe { ferrotune_grad_mode_enabled() }
}

/// See [`crate::reuse_buffers`].
#[cfg(not(no_libtorch))]
pub(crate) fn reuse_buffers() -> bool {
    // SAFETY: replaces libtorch's allocator for tensors to come; those that exist carry their own way to be freed.
    unsafe { ferrotune_reuse_buffers() }
}

/// See [`crate::release_buffers`].
#[cfg(not(no_libtorch))]
pub(crate) fn release_buffers() {
    // SAFETY: unmaps, under a lock, buffers that no tensor has.
    unsafe { ferrotune_release_buffers() }
}

/// See [`crate::kept_buffer_bytes`].
#[cfg(not(no_libtorch))]
pub(crate) fn kept_buffer_bytes() -> usize {
    // SAFETY: reads a number under a lock.
    unsafe { ferrotune_kept_buffer_bytes() }
}

/// How the libtorch that is loaded says that it was built.
#[cfg(not(no_libtorch))]
pub(crate) fn libtorch_configuration() -> Option<String> {
    // SAFETY: the shim returns null or a NUL-terminated string of its own allocation, read and freed here once.
    unsafe {
        let configuration = ferrotune_libtorch_configuration();
        if configuration.is_null() {
            return None;
        }
        let text = CStr::from_ptr(configuration).to_string_lossy().into_owned();
        ferrotune_free_configuration(configuration);
        Some(text)
    }
}

/// Counts a change of the tensor's numbers.
#[cfg(not(no_libtorch))]
pub(crate) fn mark_changed(tensor: &mut Tensor) {
    // SAFETY: the pointer comes from a live tensor; the shim changes a counter, which is atomic.
    unsafe { ferrotune_mark_changed(tensor.as_mut_ptr()) }
}

/// Attaches `outputs` to the graph as results of `recorded` on `inputs`.
#[cfg(not(no_libtorch))]
pub(crate) fn attach(
    recorded: Box<Recorded>,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
    differentiable: &[bool],
    saved: &[Tensor],
) -> std::result::Result<(), String> {
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
    let outputs: Vec<*mut C_tensor> = outputs.iter_mut().map(Tensor::as_mut_ptr).collect();
    let saved: Vec<*const C_tensor> = saved.iter().map(Tensor::as_ptr).collect();
    // SAFETY: the pointers come from live tensors that outlive the call, and each count is the length of its array. The shim reads
    // inputs and saved tensors by reference and replaces the outputs' handles, which `&mut` makes ours alone. It takes over
    // `recorded` in every case and gives it back once, through `ferrotune_drop_function`. A returned message is a NUL-terminated
    // string of its own allocation, freed here by its own function.
    unsafe {
        let message = ferrotune_attach(
            Box::into_raw(recorded).cast(),
            inputs.as_ptr(),
            inputs.len(),
            outputs.as_ptr(),
            outputs.len(),
            differentiable.as_ptr(),
            saved.as_ptr(),
            saved.len(),
        );
        if message.is_null() {
            return Ok(());
        }
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        ferrotune_free_attach_message(message);
        Err(text)
    }
}

/// Called by the graph node: runs the function's backward. Returns null, or a message for [`ferrotune_free_message`].
///
/// # Safety
/// `function` is a live `Recorded`; each array holds as many pointers as its count says; `grad_outputs` may hold nulls.
#[unsafe(no_mangle)]
unsafe extern "C" fn ferrotune_backward(
    function: *const c_void,
    grad_outputs: *const *mut C_tensor,
    grad_output_count: usize,
    saved: *const *mut C_tensor,
    saved_count: usize,
    needs_input_grad: *const bool,
    input_count: usize,
    grad_inputs: *mut *mut C_tensor,
) -> *mut c_char {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller keeps `function` alive through the call (the node holds it) and under the node's lock, so the shared
        // reference does not cross threads.
        let recorded = unsafe { &*function.cast::<Recorded>() };
        // SAFETY: the arrays are as long as their counts; an empty one may dangle, which `slice_of` allows for.
        let (grad_outputs, saved, needs) = unsafe {
            (
                slice_of(grad_outputs, grad_output_count),
                slice_of(saved, saved_count),
                slice_of(needs_input_grad, input_count),
            )
        };
        // SAFETY: every non-null pointer is a live tensor; a shallow clone takes a reference of its own.
        let clone = |pointer: &*mut C_tensor| unsafe { Tensor::clone_from_ptr(*pointer) };
        let grad_outputs: Vec<Option<Tensor>> =
            grad_outputs.iter().map(|pointer| (!pointer.is_null()).then(|| clone(pointer))).collect();
        let saved = saved.iter().map(clone).collect();
        let gradients = recorded.backward(&grad_outputs, saved, needs)?;
        for (place, gradient) in gradients.into_iter().enumerate() {
            if let Some(mut gradient) = gradient {
                // SAFETY: `place` is below `input_count`. The shim moves the tensor out of its heap cell and deletes the cell, so
                // Rust must forget it.
                unsafe { *grad_inputs.add(place) = gradient.as_mut_ptr() };
                std::mem::forget(gradient);
            }
        }
        Ok(())
    }));
    let message = match outcome {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(message)) => message,
        Err(_) => "a panic while tensors crossed into Rust".to_owned(),
    };
    CString::new(message.replace('\0', " ")).unwrap_or_default().into_raw()
}

/// # Safety
/// `pointer` leads to `count` values, or `count` is zero.
unsafe fn slice_of<'a, T>(pointer: *const T, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, count) }
}

/// # Safety
/// `message` comes from [`ferrotune_backward`] and is passed once.
#[unsafe(no_mangle)]
unsafe extern "C" fn ferrotune_free_message(message: *mut c_char) {
    // SAFETY: made by `CString::into_raw`.
    drop(unsafe { CString::from_raw(message) });
}

/// # Safety
/// `function` comes from [`attach`] and is passed once.
#[unsafe(no_mangle)]
unsafe extern "C" fn ferrotune_drop_function(function: *mut c_void) {
    // A panic in a user's `Drop` must not unwind into C++; there is no caller to tell.
    // SAFETY: made by `Box::into_raw`.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(function.cast::<Recorded>()) })));
}

/// A closure on its way through C++, and the first panic that it met.
struct Body<'a> {
    run: &'a (dyn Fn(Range<usize>) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[cfg(not(no_libtorch))]
pub(crate) fn parallel_for(count: usize, grain_size: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
    let body = Body { run, panic: Mutex::new(None) };
    // SAFETY: `body` lives until the call returns, and the call returns after every range has ended; it is shared between threads
    // as `&Body`, which is `Sync`. Counts of things in memory fit into `i64`.
    unsafe { ferrotune_parallel_for(0, count as i64, grain_size.max(1) as i64, (&raw const body).cast()) };
    if let Some(panic) = body.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        resume_unwind(panic);
    }
}

/// # Safety
/// `body` is the `Body` of a running [`parallel_for`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ferrotune_parallel_range(body: *const c_void, begin: i64, end: i64) {
    // SAFETY: the caller's promise.
    let body = unsafe { &*body.cast::<Body>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (body.run)(begin as usize..end as usize))) {
        body.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
    }
}

// Documentation can be built without libtorch (`tch`'s feature `doc-only`); nothing runs then.
#[cfg(no_libtorch)]
mod without_libtorch {
    use super::*;
    pub(crate) fn grad_mode_enabled() -> bool {
        false
    }
    pub(crate) fn libtorch_configuration() -> Option<String> {
        None
    }
    pub(crate) fn reuse_buffers() -> bool {
        false
    }
    pub(crate) fn release_buffers() {}
    pub(crate) fn kept_buffer_bytes() -> usize {
        0
    }
    pub(crate) fn mark_changed(_: &mut Tensor) {}
    pub(crate) fn attach(
        _: Box<Recorded>,
        _: &[&Tensor],
        _: &mut [Tensor],
        _: &[bool],
        _: &[Tensor],
    ) -> std::result::Result<(), String> {
        Err("built without libtorch".to_owned())
    }
    pub(crate) fn parallel_for(count: usize, _: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
        run(0..count);
    }
}
#[cfg(no_libtorch)]
pub(crate) use without_libtorch::{
    attach, grad_mode_enabled, kept_buffer_bytes, libtorch_configuration, mark_changed, parallel_for,
    release_buffers, reuse_buffers,
};
