//! The guest's side: start-up, printing, and a handler for every vector that prints the exact frame it was given.
//!
//! A report is one line: `#14 err 00000002 at +00000000 cs 0008 fl 00010002 cr2 00800000`; the error code only for
//! vectors that push one, `sp SS:ESP` only if the stack was switched. Then execution goes on at RESUME in ring 0: a
//! report can come from any ring, from v8086, or from a segment that cannot go on.

use iced_x86::code_asm::*;

use super::{Emit, at, sel};

/// Bytes before the entry point: the multiboot header.
pub const HEADER: u32 = 12;
/// Reported EIPs are relative to this variable.
pub const EXPECTED: u32 = at::VARS;
/// Where execution goes on after a report.
pub const RESUME: u32 = at::VARS + 4;
/// With which stack.
pub const RESUME_ESP: u32 = at::VARS + 8;
/// Which bits of the pushed EFLAGS are printed: arithmetic flags are not.
pub const FLAG_MASK: u32 = at::VARS + 12;

/// The registers at the last report, in the order of PUSHA: EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX.
pub const SAVED: u32 = at::VARS + 0x20;

/// Everything but CF, PF, AF, ZF, SF and OF.
const SYSTEM_FLAGS: u32 = !0x8d5;
const COM1: u32 = 0x3f8;
const VECTORS: usize = 48;

/// Routines that a test calls.
pub struct Labels {
    /// Prints the text after the call that put its address on the stack.
    pub print: CodeLabel,
    /// Prints EAX as eight digits.
    pub hex: CodeLabel,
    /// Gate EBX of the IDT: handler EAX, selector in the high half of EDX, access byte in its low half.
    pub set_gate: CodeLabel,
    /// Prints "end" and leaves.
    pub end: CodeLabel,
    /// The reporting handlers of the first vectors.
    pub stubs: Vec<CodeLabel>,
}

/// Emits header, entry code and routines. Code that follows runs once set-up is done.
pub fn emit(a: &mut CodeAssembler) -> Emit<Labels> {
    let mut entry = a.create_label();
    a.dd(&[0x1bad_b002, 0, 0x1bad_b002u32.wrapping_neg()])?;
    a.jmp(entry)?;
    let hex4 = a.create_label();
    let mut labels = Labels {
        print: a.create_label(),
        hex: a.create_label(),
        set_gate: a.create_label(),
        end: a.create_label(),
        stubs: (0..VECTORS).map(|_| a.create_label()).collect(),
    };
    let put = emit_print(a, &mut labels, hex4)?;
    emit_set_gate(a, &mut labels)?;
    let report = emit_report(a, &labels, put, hex4)?;
    emit_stubs(a, &mut labels, report)?;
    emit_end(a, &mut labels, put)?;
    a.set_label(&mut entry)?;
    a.cli()?;
    a.cld()?;
    a.mov(esp, at::STACK)?;
    a.mov(dword_ptr(FLAG_MASK), SYSTEM_FLAGS)?;
    Ok(labels)
}

/// print, hex and their helpers. All keep every register.
fn emit_print(a: &mut CodeAssembler, labels: &mut Labels, mut hex4: CodeLabel) -> Emit<CodeLabel> {
    let (mut put, mut wait, mut next, mut done) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    let (mut digits, mut digit) = (a.create_label(), a.create_label());
    // put: the character in AL, once the transmitter is ready.
    a.set_label(&mut put)?;
    a.push(edx)?;
    a.push(eax)?;
    a.mov(edx, COM1 + 5)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(edx, COM1)?;
    a.mov(eax, dword_ptr(esp))?;
    a.out(dx, al)?;
    a.pop(eax)?;
    a.pop(edx)?;
    a.ret()?;
    // print: [esp+4] is the text; drops it.
    a.set_label(&mut labels.print)?;
    a.xchg(dword_ptr(esp + 4), esi)?;
    a.push(eax)?;
    a.set_label(&mut next)?;
    a.mov(al, byte_ptr(esi))?;
    a.inc(esi)?;
    a.test(al, al)?;
    a.jz(done)?;
    a.call(put)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.pop(eax)?;
    a.mov(esi, dword_ptr(esp + 4))?;
    a.ret_1(4)?;
    // hex4 and hex: EAX by four or eight digits.
    a.set_label(&mut hex4)?;
    a.pushad()?;
    a.shl(eax, 16)?;
    a.mov(ecx, 4)?;
    a.jmp(digits)?;
    a.set_label(&mut labels.hex)?;
    a.pushad()?;
    a.mov(ecx, 8)?;
    a.set_label(&mut digits)?;
    a.mov(ebx, eax)?;
    a.set_label(&mut digit)?;
    a.rol(ebx, 4)?;
    a.mov(eax, ebx)?;
    a.and(eax, 15)?;
    a.cmp(al, 10)?;
    // Digits by decimal adjustment: 0-9 and a-f without a table.
    a.sbb(al, 0x69)?;
    a.das()?;
    a.or(al, 0x20)?;
    a.call(put)?;
    a.dec(ecx)?;
    a.jnz(digit)?;
    a.popad()?;
    a.ret()?;
    Ok(put)
}

fn emit_set_gate(a: &mut CodeAssembler, labels: &mut Labels) -> Emit {
    a.set_label(&mut labels.set_gate)?;
    a.lea(ebx, dword_ptr(ebx * 8 + at::IDT))?;
    a.mov(word_ptr(ebx), ax)?;
    a.shr(eax, 16)?;
    a.mov(word_ptr(ebx + 6), ax)?;
    a.mov(byte_ptr(ebx + 4), 0)?;
    a.mov(byte_ptr(ebx + 5), dl)?;
    a.shr(edx, 16)?;
    a.mov(word_ptr(ebx + 2), dx)?;
    a.ret()
}

/// Stack at `report`: PUSHA's eight words, vector, error code, EIP, CS, EFLAGS, and ESP, SS if switched.
fn emit_report(a: &mut CodeAssembler, labels: &Labels, put: CodeLabel, hex4: CodeLabel) -> Emit<CodeLabel> {
    let mut report = a.create_label();
    let (mut no_error, mut same_stack, mut no_cr2) = (a.create_label(), a.create_label(), a.create_label());
    let text = |a: &mut CodeAssembler, text: &str| -> Emit {
        for byte in text.bytes() {
            a.mov(al, u32::from(byte))?;
            a.call(put)?;
        }
        Ok(())
    };
    a.set_label(&mut report)?;
    a.pushad()?;
    for segment in [ds, es, fs, gs] {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(segment, eax)?;
    }
    a.mov(ebp, esp)?;
    a.cld()?;
    a.mov(esi, esp)?;
    a.mov(edi, SAVED)?;
    a.mov(ecx, 8)?;
    a.rep().movsd()?;
    text(a, "#")?;
    a.mov(eax, dword_ptr(ebp + 32))?;
    // Two decimal digits.
    a.aam(10)?;
    a.mov(edx, eax)?;
    a.mov(al, dh)?;
    a.add(al, 0x30)?;
    a.call(put)?;
    a.mov(al, dl)?;
    a.add(al, 0x30)?;
    a.call(put)?;
    // Vectors 8, 10 to 14, 17 and 21 have an error code.
    a.mov(eax, 0x0022_7d00u32)?;
    a.mov(ecx, dword_ptr(ebp + 32))?;
    a.cmp(ecx, 32)?;
    a.jae(no_error)?;
    a.bt(eax, ecx)?;
    a.jnc(no_error)?;
    text(a, " err ")?;
    a.mov(eax, dword_ptr(ebp + 36))?;
    a.call(labels.hex)?;
    a.set_label(&mut no_error)?;
    text(a, " at +")?;
    a.mov(eax, dword_ptr(ebp + 40))?;
    a.sub(eax, dword_ptr(EXPECTED))?;
    a.call(labels.hex)?;
    text(a, " cs ")?;
    a.mov(eax, dword_ptr(ebp + 44))?;
    a.call(hex4)?;
    text(a, " fl ")?;
    a.mov(eax, dword_ptr(ebp + 48))?;
    a.and(eax, dword_ptr(FLAG_MASK))?;
    a.call(labels.hex)?;
    // The stack was switched if CS has another RPL, or in v8086.
    a.test(byte_ptr(ebp + 44), 3)?;
    let mut switched = a.create_label();
    a.jnz(switched)?;
    a.test(dword_ptr(ebp + 48), 0x2_0000)?;
    a.jz(same_stack)?;
    a.set_label(&mut switched)?;
    text(a, " sp ")?;
    a.mov(eax, dword_ptr(ebp + 56))?;
    a.call(hex4)?;
    text(a, ":")?;
    a.mov(eax, dword_ptr(ebp + 52))?;
    a.call(labels.hex)?;
    a.set_label(&mut same_stack)?;
    a.cmp(dword_ptr(ebp + 32), 14)?;
    a.jne(no_cr2)?;
    text(a, " cr2 ")?;
    a.mov(eax, cr2)?;
    a.call(labels.hex)?;
    a.set_label(&mut no_cr2)?;
    text(a, "\n")?;
    a.mov(esp, dword_ptr(RESUME_ESP))?;
    a.push(2)?;
    a.popfd()?;
    a.jmp(dword_ptr(RESUME))?;
    Ok(report)
}

fn emit_stubs(a: &mut CodeAssembler, labels: &mut Labels, report: CodeLabel) -> Emit {
    for (vector, stub) in labels.stubs.iter_mut().enumerate() {
        a.set_label(stub)?;
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            a.push(0)?;
        } else {
            a.nop()?;
        }
        a.push(vector as i32)?;
        a.jmp(report)?;
    }
    Ok(())
}

fn emit_end(a: &mut CodeAssembler, labels: &mut Labels, put: CodeLabel) -> Emit {
    a.set_label(&mut labels.end)?;
    for byte in *b"end\n" {
        a.mov(al, u32::from(byte))?;
        a.call(put)?;
    }
    a.xor(eax, eax)?;
    a.out(0xf4, al)?;
    let mut halt = a.create_label();
    a.set_label(&mut halt)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(halt)
}
