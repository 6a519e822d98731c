//! Work on a stack of its own, for code that recurses as deep as its input says.
//!
//! A template engine follows expressions and nested values by recursion. A chat template comes out of a downloaded folder: with a
//! chain of a hundred thousand operators it would end the process where the stack has the usual 2 or 8 MiB. Its length and its
//! steps are limited, so its recursion is, and this stack is large enough for that. Only pages that are used take memory.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

/// Room for the deepest recursion that a template of [`MAX_TEMPLATE_BYTES`](crate::chat_template::MAX_TEMPLATE_BYTES) can ask for,
/// with a kilobyte a level.
const STACK_BYTES: usize = 256 << 20;

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Why the work has no result.
#[derive(Debug)]
pub(crate) struct Failed(pub &'static str);

/// Runs `work` on a large stack: on this one if it is such a one. A panic within is an error.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Failed> {
    let guarded = || catch_unwind(AssertUnwindSafe(work)).map_err(|_| Failed("the template engine panicked"));
    if IS_OWN.get() {
        return guarded();
    }
    thread::scope(|scope| match spawn(scope, guarded) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        Err(_) => Err(Failed("there is no memory for its stack")),
    })
}

/// Starts a thread whose stack is large; [`run`] stays on it.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || {
        IS_OWN.set(true);
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::{Failed, run};

    #[inline(never)]
    fn deep(levels: u64) -> u64 {
        let here = std::hint::black_box([levels; 16]);
        if levels == 0 { 0 } else { deep(levels - 1) + here[7] / levels }
    }

    #[test]
    fn recursion_has_room_and_a_panic_is_an_error() {
        assert_eq!(run(|| deep(200_000)).unwrap(), 200_000);
        assert_eq!(run(|| run(|| deep(200_000)).unwrap()).unwrap(), 200_000);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        assert!(matches!(run(|| -> u8 { panic!("no") }), Err(Failed("the template engine panicked"))));
        std::panic::set_hook(hook);
    }
}
