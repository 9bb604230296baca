//! What a confined process says when it dies of its own doing: a broken profile, an abort, a fault.
//!
//! The handlers are installed at the start of the program, before the filter, and cannot be replaced after it, since
//! rt_sigaction is denied. Each writes one line to standard error and ends the process with exit code 128 + signal: in a
//! PID namespace of its own a process is number 1, whom most signals do not kill. The line is untrusted to whoever
//! reads it: a process that was taken over writes what it likes.
//!
//! Signal-safe throughout: a buffer on the stack, three system calls that every profile must allow, no allocation.
#![allow(unsafe_code)]

mod line;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use syscalls::Sysno;

use crate::profile::Profile;
use line::Line;

/// Exit code of a process that broke its profile: 128 + SIGSYS.
pub const VIOLATION: i32 = 128 + libc::SIGSYS;

/// Exit code of a process that was sent a deadly signal by another: it is not to blame.
pub const FOREIGN: i32 = 126;

/// Signals that mean that the process is at its end, beside SIGSYS.
const FATAL: [Signal; 6] =
    [Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP];

/// What the SIGSYS handler knows of the profile.
struct Known {
    role: &'static str,
    file: &'static str,
    /// System call number and line, in the order of the file.
    lines: Vec<(u32, usize)>,
}

static KNOWN: OnceLock<Known> = OnceLock::new();
/// Our process id as we see it, which no other process has.
static OWN: AtomicI32 = AtomicI32::new(0);

/// Installs the handlers for faults, aborts and violations. An engine with handlers of its own installs them after, and
/// hands on to these what is not its own.
pub fn install() -> nix::Result<()> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    OWN.store(std::process::id() as i32, Ordering::Relaxed);
    let on = |signal, handler| {
        let action = SigAction::new(SigHandler::SigAction(handler), flags, SigSet::all());
        // SAFETY: the handlers make system calls on data of their own, and read one initialised-once value.
        unsafe { sigaction(signal, &action) }.map(drop)
    };
    for signal in FATAL {
        on(signal, on_fatal)?;
    }
    on(Signal::SIGSYS, on_violation)
}

/// Says which profile is in force: what is explained from now on.
pub(crate) fn explain(profile: &Profile) {
    let lines = profile.rules.iter().map(|r| (r.syscall.id() as u32, r.line)).collect();
    let (role, file) = (profile.role.name(), profile.role.file());
    // A second profile cannot come: the first filter forbids installing another.
    let _ = KNOWN.set(Known { role, file, lines });
}

extern "C" fn on_violation(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    end_if_sent(signal, info);
    // SAFETY: the kernel passes a valid ucontext to a handler with SA_SIGINFO.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |r: libc::c_int| registers[r as usize] as u64;
    let number = register(libc::REG_RAX);
    let arguments =
        [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9].map(register);
    let mut line = Line::new();
    violation(&mut line, number, arguments, register(libc::REG_RIP));
    end(&line, VIOLATION)
}

/// Puts the explanation of a violation together.
fn violation(line: &mut Line, number: u64, arguments: [u64; 6], at: u64) {
    let known = KNOWN.get();
    line.text("bulkhead: ").text(known.map_or("process", |k| k.role)).text(" thread ").number(thread());
    line.text(" broke its profile: ");
    match Sysno::new(number as usize) {
        Some(call) => line.text(call.name()),
        None => line.text("system call ").number(number),
    };
    line.text("(");
    for (i, argument) in arguments.into_iter().enumerate() {
        line.text(if i > 0 { ", " } else { "" }).hex(argument);
    }
    line.text(") at ").hex(at);
    let Some(known) = known else { return };
    let mut lines = known.lines.iter().filter(|(n, _)| u64::from(*n) == number).map(|(_, l)| *l as u64).peekable();
    if lines.peek().is_none() {
        line.text("; to allow it, ").text(known.file).text(" would need an [[allow]] for it");
        return;
    }
    line.text("; ").text(known.file).text(" allows it with other arguments only, line");
    for (i, l) in lines.enumerate() {
        line.text(if i > 0 { ", " } else { " " }).number(l);
    }
}

extern "C" fn on_fatal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as in `on_violation`; si_addr is read from a union of plain integers and addresses.
    let (rip, address) = unsafe {
        let registers = (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        (registers[libc::REG_RIP as usize] as u64, (*info).si_addr() as u64)
    };
    end_if_sent(signal, info);
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    let mut line = Line::new();
    line.text("bulkhead: ").text(KNOWN.get().map_or("process", |k| k.role)).text(" thread ").number(thread());
    line.text(" died of ").text(name).text(" at ").hex(rip);
    if signal != libc::SIGABRT {
        line.text(", address ").hex(address);
    }
    line.text(": a bug, or an attack");
    end(&line, 128 + signal)
}

/// Ends the process without blame if another one sent `signal`. What the kernel found has a positive code, and an abort is
/// sent by the process itself (sigaction(2)).
fn end_if_sent(signal: i32, info: *const libc::siginfo_t) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO; both are plain integers.
    let (code, sender) = unsafe { ((*info).si_code, (*info).si_pid()) };
    if code <= 0 && sender != OWN.load(Ordering::Relaxed) {
        let mut line = Line::new();
        line.text("bulkhead: ").text(KNOWN.get().map_or("process", |k| k.role)).text(" was sent ");
        line.text(Signal::try_from(signal).map_or("a signal", Signal::as_str)).text(" by another process");
        end(&line, FOREIGN)
    }
}

fn thread() -> u64 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::gettid() as u64 }
}

fn end(line: &Line, code: i32) -> ! {
    let text = line.bytes();
    // SAFETY: writes bytes of our own stack; exit_group ends every thread and never returns.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;

    #[test]
    fn a_violation_names_call_arguments_and_the_line_to_change() {
        explain(&Profile::of(Role::Vmm).unwrap());
        let said = |number: Sysno| {
            let mut line = Line::new();
            violation(&mut line, number.id() as u64, [0xffff_ff9c, 1, 2, 0, 0, 0], 0x1234);
            String::from_utf8(line.bytes().to_vec()).unwrap()
        };
        let open = said(Sysno::openat);
        assert!(open.contains("openat(0xffffff9c, 0x1, 0x2, 0x0, 0x0, 0x0) at 0x1234"), "{open}");
        assert!(open.contains("policy/profiles/vmm.toml would need an [[allow]]"), "{open}");
        let mmap = said(Sysno::mmap);
        let line = Profile::of(Role::Vmm).unwrap().rules.iter().find(|r| r.syscall == Sysno::mmap).unwrap().line;
        assert!(mmap.ends_with(&format!("with other arguments only, line {line}\n")), "{mmap}");
    }
}
