//! The code that every block shares: entering emitted code, leaving it, missing an indirect branch, loading x87/SSE/AVX
//! state. Emitted once at the start of the code cache.

mod gate;

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::context::{Context, SITE_ABANDONED, SITE_INDIRECT};
use super::gate::Gate;
use super::tables::{SHARED_MASK, SHARED_ROTATE, behind};

/// Executable addresses of the common code.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trampolines {
    /// `extern "sysv64" fn(*mut Context)`: loads guest registers and jumps to `Context::target`.
    pub enter: u64,
    /// From the check of `Context::kicked` on, `enter` must not be interrupted by a kick without being abandoned: the
    /// range is `kick_check..kick_check_end`.
    pub kick_check: u64,
    /// End of that range.
    pub kick_check_end: u64,
    /// Where a kick inside that range sends execution.
    pub abandon: u64,
    /// Saves guest registers and returns from `enter`; `Context::site` is set.
    pub exit: u64,
    /// An indirect branch to r8d found another block, or none: asks further.
    pub miss: u64,
    /// Goes to the block for the guest EIP in r8d, by the indirect-branch table.
    pub branch: u64,
    /// Where a return comes to when the return stack is empty.
    pub underflow: u64,
    /// Loads guest x87/SSE/AVX state and jumps to r9; keeps every register but r10, r11 and rcx.
    pub load_fp: u64,
    /// What `enter` may jump to: loads guest x87/SSE/AVX state and goes on at `Context::resume`, in the middle of a block.
    pub resume_fp: u64,
    /// What stands for an instruction, by [`Gate::index`], or leaves through `Context::site`; 0 where there is none. Those
    /// that load a segment take the selector in r11d and the next EIP in r8d.
    pub gates: [u64; Gate::COUNT],
    /// End of the common code.
    pub end: u64,
}

/// Component mask of the XSAVE area that the guest can have: x87, SSE, AVX.
pub fn xsave_mask() -> u32 {
    if std::is_x86_feature_detected!("avx") { 7 } else { 3 }
}

/// Assembles the common code for address `origin`.
pub fn assemble(origin: u64) -> Result<(Vec<u8>, Trampolines), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut labels = Labels {
        kick_check: a.create_label(),
        kick_check_end: a.create_label(),
        abandon: a.create_label(),
        exit: a.create_label(),
        miss: a.create_label(),
        branch: a.create_label(),
        underflow: a.create_label(),
        load_fp: a.create_label(),
        resume_fp: a.create_label(),
        gates: std::array::from_fn(|_| a.create_label()),
        end: a.create_label(),
    };
    enter(&mut a, &mut labels)?;
    exit(&mut a, &mut labels)?;
    miss(&mut a, &mut labels)?;
    branch(&mut a, &mut labels)?;
    load_fp(&mut a, &mut labels)?;
    resume_fp(&mut a, &mut labels)?;
    gate::gates(&mut a, &mut labels)?;
    a.set_label(&mut labels.end)?;
    a.int3()?;
    let result = a.assemble_options(origin, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let trampolines = Trampolines {
        enter: origin,
        kick_check: result.label_ip(&labels.kick_check)?,
        kick_check_end: result.label_ip(&labels.kick_check_end)?,
        abandon: result.label_ip(&labels.abandon)?,
        exit: result.label_ip(&labels.exit)?,
        miss: result.label_ip(&labels.miss)?,
        branch: result.label_ip(&labels.branch)?,
        underflow: result.label_ip(&labels.underflow)?,
        load_fp: result.label_ip(&labels.load_fp)?,
        resume_fp: result.label_ip(&labels.resume_fp)?,
        gates: labels.gates.map(|label| result.label_ip(&label).unwrap_or(0)),
        end: result.label_ip(&labels.end)?,
    };
    Ok((result.inner.code_buffer, trampolines))
}

struct Labels {
    kick_check: CodeLabel,
    kick_check_end: CodeLabel,
    abandon: CodeLabel,
    exit: CodeLabel,
    miss: CodeLabel,
    branch: CodeLabel,
    underflow: CodeLabel,
    load_fp: CodeLabel,
    resume_fp: CodeLabel,
    gates: [CodeLabel; Gate::COUNT],
    end: CodeLabel,
}

/// A field of the context.
macro_rules! context {
    ($field:ident) => {
        r15 + offset_of!(Context, $field) as i32
    };
}

const GPR: i32 = offset_of!(Context, gpr) as i32;
/// Guest registers but ESP, with their index in `Context::gpr`.
const SAVED: [(AsmRegister32, i32); 7] = [(eax, 0), (ecx, 1), (edx, 2), (ebx, 3), (ebp, 5), (esi, 6), (edi, 7)];

fn enter(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    for r in [rbx, rbp, r12, r13, r14, r15] {
        a.push(r)?;
    }
    a.mov(r15, rdi)?;
    a.mov(qword_ptr(context!(host_rsp)), rsp)?;
    a.set_label(&mut l.kick_check)?;
    a.cmp(dword_ptr(context!(kicked)), 0)?;
    a.jne(l.abandon)?;
    a.mov(rax, qword_ptr(context!(window)))?;
    a.wrgsbase(rax)?;
    a.mov(r12, rax)?;
    a.mov(r13, qword_ptr(context!(tripwire)))?;
    a.mov(r14d, dword_ptr(r15 + GPR + 16))?;
    a.lea(r14, ptr(r12 + r14))?;
    a.push(qword_ptr(context!(flags)))?;
    a.popfq()?;
    for (r, i) in SAVED {
        a.mov(r, dword_ptr(r15 + GPR + 4 * i))?;
    }
    a.mov(rsp, qword_ptr(context!(return_stack)))?;
    a.jmp(qword_ptr(context!(target)))?;
    a.set_label(&mut l.kick_check_end)?;
    a.nop()?;
    Ok(())
}

fn exit(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    a.set_label(&mut l.exit)?;
    for (r, i) in SAVED {
        a.mov(dword_ptr(r15 + GPR + 4 * i), r)?;
    }
    a.mov(dword_ptr(r15 + GPR + 16), r14d)?;
    a.mov(rsp, qword_ptr(context!(host_rsp)))?;
    a.pushfq()?;
    a.pop(qword_ptr(context!(flags)))?;
    a.cld()?;
    let mut done = a.create_label();
    a.cmp(qword_ptr(context!(fp_absent)), 0)?;
    a.jne(done)?;
    a.mov(rcx, qword_ptr(context!(xsave)))?;
    a.mov(eax, xsave_mask())?;
    a.xor(edx, edx)?;
    a.xsave(ptr(rcx))?;
    // MXCSR_MASK as the guest's CPUID promises it, and every component explicit.
    a.mov(dword_ptr(rcx + 28), 0xffffu32)?;
    a.mov(dword_ptr(rcx + 512), xsave_mask())?;
    a.mov(qword_ptr(context!(fp_absent)), 1)?;
    a.fninit()?;
    a.ldmxcsr(dword_ptr(context!(host_mxcsr)))?;
    if xsave_mask() & 4 != 0 {
        a.vzeroupper()?;
    }
    a.set_label(&mut done)?;
    leave(a)?;
    a.set_label(&mut l.abandon)?;
    // The guest's flags may be loaded already, DF among them.
    a.cld()?;
    a.mov(dword_ptr(context!(site)), SITE_ABANDONED)?;
    a.mov(rsp, qword_ptr(context!(host_rsp)))?;
    leave(a)
}

/// Restores what `enter` pushed and returns.
fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for r in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(r)?;
    }
    a.ret()
}

/// Asks the shared table, see [`tables`], without touching a flag; only then Rust code.
fn miss(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    let mut found = a.create_label();
    a.set_label(&mut l.miss)?;
    a.mov(r10, qword_ptr(context!(branches)))?;
    a.rorx(r9d, r8d, SHARED_ROTATE)?;
    a.lea(r9d, ptr(r9 + r8))?;
    a.mov(r11d, dword_ptr(r10 + behind::MIX))?;
    a.lea(r9d, ptr(r9 + r11))?;
    a.mov(r11d, SHARED_MASK)?;
    a.pext(r9d, r9d, r11d)?;
    a.lea(r9, ptr(r9 + r9))?;
    a.mov(r11, qword_ptr(r10 + behind::NUMBER))?;
    a.lea(r11, ptr(r11 + r8))?;
    a.mov(r10, qword_ptr(r10 + behind::SHARED))?;
    a.lea(r10, ptr(r10 + r9 * 8))?;
    a.mov(r9, rcx)?;
    a.mov(rcx, qword_ptr(r10))?;
    a.lea(rcx, ptr(rcx + r11))?;
    a.jrcxz(found)?;
    a.mov(rcx, r9)?;
    a.mov(dword_ptr(context!(branch)), r8d)?;
    a.mov(dword_ptr(context!(site)), SITE_INDIRECT)?;
    a.jmp(l.exit)?;
    a.set_label(&mut found)?;
    a.mov(rcx, r9)?;
    a.jmp(qword_ptr(r10 + 8))
}

fn branch(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    a.set_label(&mut l.underflow)?;
    // Back to the sentinel, without touching a flag.
    a.lea(rsp, ptr(rsp - 8))?;
    a.set_label(&mut l.branch)?;
    a.pext(r9d, r8d, r13d)?;
    a.mov(r10, qword_ptr(context!(branches)))?;
    a.jmp(qword_ptr(r10 + r9 * 8))
}

fn load_fp(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    a.set_label(&mut l.load_fp)?;
    a.mov(r10, rax)?;
    a.mov(r11, rdx)?;
    a.mov(eax, xsave_mask())?;
    a.mov(edx, 0u32)?;
    a.mov(rcx, qword_ptr(context!(xsave)))?;
    a.xrstor(ptr(rcx))?;
    a.mov(qword_ptr(context!(fp_absent)), 0)?;
    a.mov(rax, r10)?;
    a.mov(rdx, r11)?;
    a.jmp(r9)
}

fn resume_fp(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    let mut loaded = a.create_label();
    a.set_label(&mut l.resume_fp)?;
    a.mov(r8, rcx)?;
    a.lea(r9, ptr(loaded))?;
    a.jmp(l.load_fp)?;
    a.set_label(&mut loaded)?;
    a.mov(rcx, r8)?;
    a.jmp(qword_ptr(context!(resume)))
}
