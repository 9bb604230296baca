//! Stage 6: the world switch.
#![allow(unsafe_code)]

use super::context::Context;
use super::link::Registry;
use super::trampoline::Trampolines;

/// Runs emitted code from `context.target` until it leaves, and returns `context.site`.
pub fn execute(context: &mut Context, trampolines: &Trampolines) -> u32 {
    // SAFETY: `enter` was assembled by `trampoline` with this signature and keeps the C calling convention: it saves
    // and restores callee-saved registers, RSP and DF, and leaves clean x87 and MXCSR state. What it jumps to is code
    // of the cache, whose every memory operand is inside a window, the context or this thread's stack.
    unsafe {
        let enter: extern "sysv64" fn(*mut Context) = std::mem::transmute(trampolines.enter as *const ());
        enter(context);
    }
    context.site
}

/// Lends the registry that `owner` points to, for the boundary test of a signal handler.
pub fn with_registry<R>(owner: *const (), f: impl FnOnce(&Registry) -> R) -> R {
    // SAFETY: `owner` is the registry's stable heap address given to `fault::attach`; the handler runs only while
    // emitted code does, so no Rust code is changing the registry.
    f(unsafe { &*owner.cast::<Registry>() })
}
