//! Stage 7: host faults and signals while emitted code runs.
//!
//! The handler does almost nothing: if the interrupted instruction lies in the code cache, it notes what happened in the
//! context and points execution at the common exit, so that all work is done outside a handler. A fault anywhere else
//! is a bug of ours: the previous handler gets it.
//!
//! A kick (see [`crate::cpu::Lines::kick_signal`]) that finds emitted code running must leave at an instruction boundary.
//! There is no poll in emitted code: the handler single-steps the host from where it stands, a few instructions at
//! most, until execution stands at a boundary that the block's table knows.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::block::Point;
use super::context::{Context, SITE_FAULT, SITE_INDIRECT, SITE_KICKED, SITE_TRIPPED};
use super::returns;
use super::trampoline::Trampolines;
use super::tripwire;
use crate::cpu::Lines;

/// Host trap number of a page fault.
pub const TRAP_PAGE_FAULT: u32 = 14;
/// Host EFLAGS.TF.
const TF: i64 = 0x100;

/// What a handler on this thread may use.
#[derive(Clone, Copy)]
pub struct Attachment {
    /// The processor's context: its addresses stay valid until [`detach`], and so do the others here.
    pub context: *mut Context,
    /// The common code.
    pub trampolines: *const Trampolines,
    /// The executable mapping of the cache: first address and end.
    pub cache: (u64, u64),
    /// Tells what kind of place an executable address is, if emitted code may be left there; `owner` is its first argument.
    pub boundary: fn(*const (), u64) -> Option<Point>,
    /// See `boundary`.
    pub owner: *const (),
}

thread_local! {
    static ATTACHED: Cell<Option<Attachment>> = const { Cell::new(None) };
}

/// Installs the handlers, once per process, gives this thread a signal stack, and says what runs on it.
pub fn attach(attachment: Attachment) -> Result<(), nix::Error> {
    install()?;
    signal_stack()?;
    ATTACHED.with(|a| a.set(Some(attachment)));
    Ok(())
}

/// Ends [`attach`].
pub fn detach() {
    ATTACHED.with(|a| a.set(None));
}

const FAULTS: [Signal; 5] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP];
static PREVIOUS: OnceLock<Vec<(Signal, SigAction)>> = OnceLock::new();

/// A handler with SA_SIGINFO.
type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
/// Whose the kick signal was: the machine's own handler, which raises a line for a kick that nobody raised one for.
static BEFORE: OnceLock<Handler> = OnceLock::new();

/// Installs the handlers, once per process.
pub fn install() -> Result<(), nix::Error> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let mut previous = Vec::new();
    for signal in FAULTS {
        let action = SigAction::new(SigHandler::SigAction(on_fault), flags | SaFlags::SA_NODEFER, SigSet::empty());
        // SAFETY: the handler only touches thread-local plain data and the signal frame.
        previous.push((signal, unsafe { sigaction(signal, &action)? }));
    }
    let _ = PREVIOUS.set(previous);
    // SAFETY: zero is a valid bit pattern for sigaction, and the handler is as above. nix has no real-time signals. The
    // previous handler's address and type are what the process itself gave the kernel.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_kick as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut before: libc::sigaction = MaybeUninit::zeroed().assume_init();
        if libc::sigaction(Lines::kick_signal(), &action, &mut before) != 0 {
            return Err(nix::Error::last());
        }
        let ours = before.sa_sigaction == action.sa_sigaction;
        if before.sa_flags & libc::SA_SIGINFO != 0 && before.sa_sigaction > libc::SIG_IGN && !ours {
            let _ = BEFORE.set(std::mem::transmute::<usize, Handler>(before.sa_sigaction));
        }
    }
    Ok(())
}

/// Gives the calling thread a signal stack that holds the processor's whole extended state. It is never freed: threads
/// that run processors live as long as the machine.
fn signal_stack() -> Result<(), nix::Error> {
    // SAFETY: plain queries, and a stack that is leaked on purpose.
    unsafe {
        let mut current: libc::stack_t = MaybeUninit::zeroed().assume_init();
        libc::sigaltstack(std::ptr::null(), &mut current);
        let minimum = libc::getauxval(libc::AT_MINSIGSTKSZ) as usize;
        let size = (minimum + 64 * 1024).next_multiple_of(4096);
        if current.ss_flags & libc::SS_DISABLE == 0 && current.ss_size >= size {
            return Ok(());
        }
        let stack = Box::leak(vec![0u8; size].into_boxed_slice());
        let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: size };
        match libc::sigaltstack(&new, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(nix::Error::last()),
        }
    }
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext; ATTACHED holds pointers that are valid while it is set.
    unsafe {
        let registers = &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let Some(running) = ATTACHED.with(Cell::get) else { return unrelated(signal, info, ucontext) };
        if rip == 0 && left_the_chart(&running, registers) {
            let context = &mut *running.context;
            context.site = SITE_INDIRECT;
            context.branch = registers[libc::REG_R8 as usize] as u32;
            registers[libc::REG_EFL as usize] &= !TF;
            registers[libc::REG_RIP as usize] = (*running.trampolines).exit as i64;
            return;
        }
        if !(running.cache.0..running.cache.1).contains(&rip) {
            return unrelated(signal, info, ucontext);
        }
        if signal == libc::SIGTRAP {
            return step(&running, registers, rip);
        }
        let context = &mut *running.context;
        context.site = SITE_FAULT;
        context.fault_rip = rip;
        context.fault_trap = registers[libc::REG_TRAPNO as usize] as u32;
        // CR2 of any other trap is that of some page fault before.
        context.fault_address = match context.fault_trap {
            TRAP_PAGE_FAULT => registers[libc::REG_CR2 as usize] as u64,
            _ => 0,
        };
        context.fault_error = registers[libc::REG_ERR as usize] as u64;
        // CR2 is an old one unless this is a page fault.
        let page_fault = context.fault_trap == TRAP_PAGE_FAULT;
        if page_fault && tripwire::is_tripped(context.tripwire, context.fault_address) {
            context.site = SITE_TRIPPED;
            context.branch = registers[libc::REG_R8 as usize] as u32;
        }
        registers[libc::REG_EFL as usize] &= !TF;
        registers[libc::REG_RIP as usize] = (*running.trampolines).exit as i64;
    }
}

/// True if execution came to address zero by an empty place of the chart: it is on the return stack, where only emitted
/// code is.
///
/// # Safety
/// `running` is valid.
unsafe fn left_the_chart(running: &Attachment, registers: &[i64; 23]) -> bool {
    // SAFETY: by the caller's promise.
    let top = unsafe { (*running.context).return_stack };
    let on_it = (top - returns::SIZE as u64..=top).contains(&(registers[libc::REG_RSP as usize] as u64));
    on_it && registers[libc::REG_R15 as usize] as u64 == running.context as u64
}

extern "C" fn on_kick(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    // First: whoever sees the context's notes must find the lines raised.
    if let Some(before) = BEFORE.get() {
        before(signal, info, ucontext);
    }
    // SAFETY: as in `on_fault`.
    unsafe {
        let Some(running) = ATTACHED.with(Cell::get) else { return };
        (*running.context).kicked = 1;
        (*running.context).pending = 1;
        (*running.context).stepped = 0;
        let registers = &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        if (running.cache.0..running.cache.1).contains(&rip) {
            step(&running, registers, rip);
        }
    }
}

/// Leaves if execution stands at an instruction boundary, else goes on by one host instruction.
///
/// # Safety
/// `running` is valid and `rip` is in the cache.
unsafe fn step(running: &Attachment, registers: &mut [i64; 23], rip: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        let t = &*running.trampolines;
        let flags = &mut registers[libc::REG_EFL as usize];
        *flags &= !TF;
        if (t.kick_check..t.kick_check_end).contains(&rip) {
            registers[libc::REG_RIP as usize] = t.abandon as i64;
            return;
        }
        if rip >= t.enter && rip < t.end && !(t.miss..t.end).contains(&rip) {
            // Entering before the check, or leaving already: nothing to do.
            return;
        }
        let context = &mut *running.context;
        let last = std::mem::replace(&mut context.stepped, rip);
        match (running.boundary)(running.owner, rip) {
            // A repeated instruction is left after an iteration, so that what is pushed for it can say so (RF). Where a
            // step has not moved execution, one was done and there are more.
            Some(point) if point != Point::Interruptible || last == rip => {
                context.site = SITE_KICKED;
                context.fault_rip = rip;
                registers[libc::REG_RIP as usize] = t.exit as i64;
            }
            _ => *flags |= TF,
        }
    }
}

/// A signal that has nothing to do with emitted code: whoever handled it before does so again. A handler is called rather
/// than put back, since a confined process may not change handlers.
fn unrelated(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let previous = PREVIOUS.get().and_then(|p| p.iter().find(|(s, _)| *s as i32 == signal));
    match previous.map(|(s, action)| (s, action, action.handler())) {
        Some((_, _, SigHandler::SigAction(handler))) => handler(signal, info, ucontext),
        // SAFETY: restores what was valid; returning repeats the faulting instruction under it.
        Some((signal, action, _)) => drop(unsafe { sigaction(*signal, action) }),
        None => {}
    }
}
