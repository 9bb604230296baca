//! Prints how many guest instructions a second the translator gets through when each runs for the first time, and once:
//! functions as compilers write them, called one after the other. The least processor time of several runs counts.

use std::sync::Arc;

use iced_x86::code_asm::*;
use nix::time::{ClockId, clock_gettime};
use vmm::cpu::{EmptyBus, Lines, Segment, Vcpu, attr, cr0, seg};
use vmm::engine::translate::Translator;
use vmm::engine::{Engine, Exit};
use vmm::mmu::GuestRam;

const CODE: u32 = 0x10_0000;
const DATA: u32 = 0x8_0000;
const FUNCTIONS: u32 = 4000;
const RUNS: u32 = 9;

fn machine(program: &[u8]) -> Result<Vcpu, Box<dyn std::error::Error>> {
    let ram = Arc::new(GuestRam::new(16 << 20)?);
    ram.write(CODE as u64, program);
    let mut v = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
    let flat = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
    for (which, s) in v.state.seg.iter_mut().enumerate() {
        let code = if which == seg::CS { attr::CODE } else { 0 };
        *s = Segment { base: 0, limit: u32::MAX, attr: flat | code, selector: 8, pad: 0 };
    }
    v.state.cr0 |= cr0::PE;
    v.state.eip = CODE;
    v.state.gpr = [0, 0, 0, 0, 0xf_0000, 0, DATA, DATA];
    Ok(v)
}

/// A function of some twenty instructions.
fn function(a: &mut CodeAssembler, n: u32) -> Result<(), IcedError> {
    let (mut other, mut out) = (a.create_label(), a.create_label());
    a.push(ebp)?;
    a.mov(ebp, esp)?;
    a.push(ebx)?;
    a.sub(esp, 20)?;
    a.mov(eax, dword_ptr(ebp + 8))?;
    a.mov(dword_ptr(esp + 4), eax)?;
    a.test(eax, 1 << (n % 3))?;
    a.jne(other)?;
    a.lea(ecx, dword_ptr(eax + eax * 4 + 8))?;
    a.add(dword_ptr(esi + 16), ecx)?;
    a.set_label(&mut other)?;
    a.movzx(edx, byte_ptr(esi + 17))?;
    a.cmp(edx, 5)?;
    a.je(out)?;
    a.mov(ebx, dword_ptr(esi + edx * 4))?;
    a.inc(ebx)?;
    a.mov(dword_ptr(esi + 32), ebx)?;
    a.xor(eax, eax)?;
    a.set_label(&mut out)?;
    a.add(esp, 20)?;
    a.pop(ebx)?;
    a.pop(ebp)?;
    a.ret()
}

fn program() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut start = a.create_label();
    a.jmp(start)?;
    let mut functions = Vec::new();
    for n in 0..FUNCTIONS {
        let mut label = a.create_label();
        a.set_label(&mut label)?;
        function(&mut a, n)?;
        functions.push(label);
    }
    a.set_label(&mut start)?;
    for (n, label) in (0u32..).zip(functions) {
        a.push(n)?;
        a.call(label)?;
        a.pop(ecx)?;
    }
    a.hlt()?;
    a.assemble(CODE as u64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program = program()?;
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    let mut best: Option<(f64, u64)> = None;
    for _ in 0..RUNS {
        let mut v = machine(&program)?;
        let mut engine = Translator::new(&v.mmu.ram)?;
        let start = now()?;
        if engine.run(&mut v) != Exit::Halted {
            return Err("the program did not end in HLT".into());
        }
        let seconds = (now()? - start).as_secs_f64();
        let count = engine.stats().iter().find(|(n, _)| n == "guest instructions translated").map_or(0, |s| s.1);
        if best.is_none_or(|(least, _)| seconds < least) {
            best = Some((seconds, count));
        }
    }
    let (seconds, count) = best.unwrap_or_default();
    println!("{:.2} M instructions/s, {:.0} ns each", count as f64 / seconds / 1e6, seconds * 1e9 / count as f64);
    Ok(())
}
