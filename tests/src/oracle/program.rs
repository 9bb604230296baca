//! The child's program, assembled here: no 32-bit compiler or libc is needed to run 32-bit code.
//!
//! It maps the shared file, unmaps what the kernel gave it, installs one signal handler on an alternate stack, and then
//! runs cases. A case ends by a signal, always: INT3 surrounds its code. The handler copies what the kernel saved to
//! the result and goes on with the next case; it never returns to where the signal came from.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::layout::*;

/// int 80h numbers (i386).
mod nr {
    pub const EXIT: u32 = 1;
    pub const READ: u32 = 3;
    pub const WRITE: u32 = 4;
    pub const MUNMAP: u32 = 91;
    pub const RT_SIGACTION: u32 = 174;
    pub const SIGALTSTACK: u32 = 186;
    pub const MMAP2: u32 = 192;
}

/// What surrounds the code.
const INT3: u32 = 0xcc;
const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
/// MAP_SHARED | MAP_FIXED | MAP_POPULATE: error codes must not depend on what was touched before.
const MAP_FLAGS: u32 = 0x8011;
/// SA_SIGINFO | SA_ONSTACK | SA_NODEFER.
const SA_FLAGS: u32 = 4 | 0x0800_0000 | 0x4000_0000;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV.
const SIGNALS: [u32; 5] = [4, 5, 7, 8, 11];

/// Descriptors: the shared file, and the socket that carries one byte a batch each way.
const FILE: u32 = 0;
const SOCKET: u32 = 1;

// In BSS, from low to high: variables, the loop's stack, the signal stack.
const SCRATCH: u32 = BSS;
const TARGET: u32 = BSS + 64;
const LOOP_STACK: u32 = BSS + 0x8000;
const SIGNAL_STACK: u32 = BSS + 0x1_0000;
const SIGNAL_STACK_BYTES: u32 = 0x1_0000;

/// In the kernel's frame: `ucontext` pointer at 12; in it, `sigcontext` at 20; in that, the FPU pointer at 76, whose
/// XSAVE image follows 112 bytes of FNSAVE.
const FRAME_UCONTEXT: u32 = 12;
const UCONTEXT_SIGCONTEXT: u32 = 20;
const SIGCONTEXT_FPSTATE: u32 = 76;
const FPSTATE_XSAVE: u32 = 112;

/// Machine code for [`TEXT`].
pub fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let (mut start, mut next) = (a.create_label(), a.create_label());
    // The call's return address is the handler's.
    a.call(start)?;
    finish_case(&mut a, next)?;
    a.set_label(&mut start)?;
    set_up(&mut a)?;
    run_batches(&mut a, &mut next)?;
    a.assemble(TEXT as u64)
}

fn system_call(a: &mut CodeAssembler, number: u32, arguments: &[u32]) -> Result<(), IcedError> {
    for (register, value) in [ebx, ecx, edx, esi, edi, ebp].into_iter().zip(arguments) {
        a.mov(register, *value)?;
    }
    a.mov(eax, number)?;
    a.int(0x80)
}

fn set_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(dword_ptr(TARGET))?;
    let map = |a: &mut CodeAssembler, at, bytes, protection, offset| {
        system_call(a, nr::MMAP2, &[at, bytes, protection, MAP_FLAGS, FILE, offset / PAGE])
    };
    map(a, SHARED, FILE_BYTES, PROT_READ | PROT_WRITE, 0)?;
    map(a, CODE, PAGE, PROT_READ | PROT_EXEC, CODE_AT)?;
    map(a, DATA, DATA_PAGES * PAGE, PROT_READ | PROT_WRITE, DATA_AT)?;
    map(a, READ_ONLY, PAGE, PROT_READ, DATA_AT + DATA_PAGES * PAGE)?;
    // The kernel's stack and vDSO: a case must find nothing there.
    a.mov(esp, LOOP_STACK)?;
    system_call(a, nr::MUNMAP, &[0x8000_0000, 0x7fff_e000])?;
    for (i, value) in [SIGNAL_STACK, 0, SIGNAL_STACK_BYTES].into_iter().enumerate() {
        a.mov(dword_ptr(SCRATCH + 4 * i as u32), value)?;
    }
    system_call(a, nr::SIGALTSTACK, &[SCRATCH, 0])?;
    a.mov(eax, dword_ptr(TARGET))?;
    a.mov(dword_ptr(SCRATCH), eax)?;
    a.mov(dword_ptr(SCRATCH + 4), SA_FLAGS)?;
    for at in [8, 12, 16] {
        a.mov(dword_ptr(SCRATCH + at), 0)?;
    }
    for signal in SIGNALS {
        system_call(a, nr::RT_SIGACTION, &[signal, SCRATCH, 0, 8])?;
    }
    Ok(())
}

/// Waits for a batch, then for each case: reset memory and code, load state, jump.
fn run_batches(a: &mut CodeAssembler, next: &mut CodeLabel) -> Result<(), IcedError> {
    let (mut wait, mut first, mut quit) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(wait)?;
    a.set_label(next)?;
    a.mov(eax, dword_ptr(SHARED + INDEX))?;
    a.cmp(eax, dword_ptr(SHARED + COUNT))?;
    a.jb(first)?;
    system_call(a, nr::WRITE, &[SOCKET, SCRATCH, 1])?;
    a.set_label(&mut wait)?;
    system_call(a, nr::READ, &[SOCKET, SCRATCH, 1])?;
    a.cmp(eax, 1)?;
    a.jne(quit)?;
    a.mov(dword_ptr(SHARED + INDEX), 0)?;
    a.mov(edi, SHARED + CODE_AT)?;
    a.mov(ecx, PAGE)?;
    a.mov(eax, INT3)?;
    a.rep().stosb()?;
    a.jmp(*next)?;
    a.set_label(&mut quit)?;
    system_call(a, nr::EXIT, &[0])?;
    a.set_label(&mut first)?;
    start_case(a)
}

fn start_case(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // EBP stays the case until the very end.
    this_case(a)?;
    copy(a, SHARED + IMAGE_AT, SHARED + DATA_AT, DATA_PAGES * PAGE)?;
    a.lea(esi, ptr(ebp + CASE_CODE))?;
    code_range(a)?;
    a.mov(edx, ptr(ebp + CASE_START))?;
    a.mov(dword_ptr(TARGET), edx)?;
    a.rep().movsb()?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xrstor(ptr(ebp + CASE_XSAVE))?;
    a.mov(esp, LOOP_STACK)?;
    a.push(dword_ptr(ebp + CASE_FLAGS))?;
    a.popfd()?;
    for (i, register) in [eax, ecx, edx, ebx, esp].into_iter().enumerate() {
        a.mov(register, dword_ptr(ebp + CASE_GPR + 4 * i as u32))?;
    }
    for (i, register) in [(6, esi), (7, edi), (5, ebp)] {
        a.mov(register, dword_ptr(ebp + CASE_GPR + 4 * i))?;
    }
    a.jmp(dword_ptr(TARGET))
}

/// The signal handler.
fn finish_case(a: &mut CodeAssembler, next: CodeLabel) -> Result<(), IcedError> {
    a.cld()?;
    a.mov(ebp, dword_ptr(esp + FRAME_UCONTEXT))?;
    a.add(ebp, UCONTEXT_SIGCONTEXT as i32)?;
    a.imul_3(edi, dword_ptr(SHARED + INDEX), RESULT_BYTES as i32)?;
    a.add(edi, (SHARED + RESULTS_AT) as i32)?;
    a.mov(edx, edi)?;
    a.mov(esi, ebp)?;
    a.mov(ecx, CONTEXT_BYTES / 4)?;
    a.rep().movsd()?;
    a.mov(eax, dword_ptr(esp + 4))?;
    a.mov(dword_ptr(edx + RESULT_SIGNAL), eax)?;
    a.mov(esi, dword_ptr(ebp + SIGCONTEXT_FPSTATE))?;
    a.add(esi, FPSTATE_XSAVE as i32)?;
    a.lea(edi, ptr(edx + RESULT_XSAVE))?;
    a.mov(ecx, XSAVE_BYTES / 4)?;
    a.rep().movsd()?;
    a.lea(edi, ptr(edx + RESULT_MEMORY))?;
    a.mov(esi, SHARED + DATA_AT)?;
    a.mov(ecx, DATA_PAGES * PAGE / 4)?;
    a.rep().movsd()?;
    // Only the lines that held code: each write to a line that was executed costs a machine clear.
    this_case(a)?;
    code_range(a)?;
    a.mov(eax, INT3)?;
    a.rep().stosb()?;
    a.inc(dword_ptr(SHARED + INDEX))?;
    a.mov(esp, LOOP_STACK)?;
    a.jmp(next)
}

/// EBP: the case that runs.
fn this_case(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.imul_3(ebp, dword_ptr(SHARED + INDEX), CASE_BYTES as i32)?;
    a.add(ebp, (SHARED + CASES_AT) as i32)
}

/// EDI and ECX: where the code of the case at EBP lies in the shared file's mapping, and its length.
fn code_range(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edi, ptr(ebp + CASE_START))?;
    a.add(edi, (SHARED + CODE_AT).wrapping_sub(CODE) as i32)?;
    a.mov(ecx, ptr(ebp + CASE_LENGTH))
}

fn copy(a: &mut CodeAssembler, from: u32, to: u32, bytes: u32) -> Result<(), IcedError> {
    a.mov(esi, from)?;
    a.mov(edi, to)?;
    a.mov(ecx, bytes / 4)?;
    a.rep().movsd()
}
