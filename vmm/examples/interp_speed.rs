//! Prints how many guest instructions a second the interpreter executes, on a few small loops.

use std::sync::Arc;
use std::time::Instant;

use iced_x86::code_asm::*;
use vmm::cpu::{EmptyBus, Lines, Segment, Vcpu, attr, cr0, seg};
use vmm::engine::interp::Interpreter;
use vmm::engine::{Engine, Exit};
use vmm::mmu::GuestRam;

const CODE: u32 = 0x1_0000;
const ROUNDS: u32 = 10_000_000;

fn machine() -> Result<Vcpu, Box<dyn std::error::Error>> {
    let ram = Arc::new(GuestRam::new(4 << 20)?);
    let mut v = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
    let flat = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
    for (which, s) in v.state.seg.iter_mut().enumerate() {
        let code = if which == seg::CS { attr::CODE } else { 0 };
        *s = Segment { base: 0, limit: u32::MAX, attr: flat | code, selector: 8, pad: 0 };
    }
    v.state.cr0 |= cr0::PE;
    v.state.eip = CODE;
    v.state.gpr = [0, ROUNDS, 0, 0, 0x8_0000, 0, 0x2_0000, 0x2_0000];
    Ok(v)
}

/// Runs `body` `ROUNDS` times and prints the speed.
fn measure(
    name: &str,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut v = machine()?;
    let mut a = CodeAssembler::new(32)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    body(&mut a)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()?;
    v.mmu.ram.write(CODE as u64, &a.assemble(CODE as u64)?);
    let mut engine = Interpreter::new();
    let start = Instant::now();
    if engine.run(&mut v) != Exit::Halted {
        return Err("the loop did not end in HLT".into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let count = engine.stats().iter().find(|(n, _)| *n == "instructions").map_or(0, |s| s.1);
    println!("{name:10} {:6.1} M instructions/s", count as f64 / seconds / 1e6);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    measure("registers", |a| {
        a.add(eax, ecx)?;
        a.xor(ebx, eax)?;
        a.lea(edx, dword_ptr(eax + ebx * 4 + 8))?;
        a.shr(edx, 3)
    })?;
    measure("memory", |a| {
        a.mov(eax, dword_ptr(esi))?;
        a.add(dword_ptr(esi + 4), eax)?;
        a.mov(dword_ptr(edi + ebx * 4 + 64), edx)?;
        a.cmp(byte_ptr(esi + 1), 3)
    })?;
    measure("calls", |a| {
        let mut f = a.create_label();
        let mut over = a.create_label();
        a.call(f)?;
        a.jmp(over)?;
        a.set_label(&mut f)?;
        a.push(ebx)?;
        a.pop(ebx)?;
        a.ret()?;
        a.set_label(&mut over)
    })
}
