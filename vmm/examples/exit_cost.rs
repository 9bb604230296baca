//! Prints what instructions cost that leave emitted code, beside some that stay: `cargo run --release -p vmm --example
//! exit_cost`. A supervisor's, with paging on; the least processor time of several runs counts.

use std::sync::Arc;

use iced_x86::code_asm::*;
use nix::time::{ClockId, clock_gettime};
use vmm::cpu::{EmptyBus, Lines, Segment, Vcpu, attr, cr0, cr4, seg};
use vmm::engine::translate::Translator;
use vmm::engine::{Engine, Exit};
use vmm::mmu::GuestRam;

const CODE: u32 = 0x10_0000;
const DATA: u32 = 0x20_0000;
const DIRECTORY: u32 = 0x30_0000;
const TIMES: u32 = 200_000;
const RUNS: u32 = 7;

/// Puts one instruction, or a few, into the loop.
type Subject = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const SUBJECTS: &[(&str, Subject)] = &[
    ("nothing: the loop alone", |_| Ok(())),
    ("CLI", |a| a.cli()),
    ("PUSHFD and POPFD", |a| a.pushfd().and_then(|()| a.popfd())),
    ("MOV from CR3", |a| a.mov(eax, cr3)),
    ("CPUID, which only leaves", |a| a.cpuid()),
    ("IN from a port with nothing behind it", |a| a.in_(al, 0x80)),
    ("INVLPG of a page in use", |a| a.invlpg(dword_ptr(DATA))),
    ("the same after a change, and a store to the page", |a| {
        a.xor(dword_ptr(DIRECTORY), 0x200)?;
        a.invlpg(dword_ptr(DATA))?;
        a.inc(dword_ptr(DATA))
    }),
    ("MOV to CR3, nothing changed", |a| a.mov(edi, cr3).and_then(|()| a.mov(cr3, edi))),
];

fn machine(program: &[u8]) -> Result<Vcpu, Box<dyn std::error::Error>> {
    let ram = Arc::new(GuestRam::new(16 << 20)?);
    ram.write(CODE as u64, program);
    // Four pages of 4 MiB, one to one: present, writable, accessed, dirty, large.
    for n in 0..4u32 {
        ram.write((DIRECTORY + 4 * n) as u64, &(n << 22 | 0xe3).to_le_bytes());
    }
    let mut v = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
    let flat = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
    for (which, s) in v.state.seg.iter_mut().enumerate() {
        let code = if which == seg::CS { attr::CODE } else { 0 };
        *s = Segment { base: 0, limit: u32::MAX, attr: flat | code, selector: 8, pad: 0 };
    }
    v.state.cr0 |= cr0::PE | cr0::PG;
    v.state.cr4 |= cr4::PSE;
    v.state.cr3 = DIRECTORY;
    v.state.eip = CODE;
    v.state.gpr = [0, 0, 0, 0, 0x28_0000, 0, DATA, DATA];
    Ok(v)
}

fn program(subject: Subject) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut head = a.create_label();
    a.mov(esi, TIMES)?;
    a.set_label(&mut head)?;
    subject(&mut a)?;
    a.dec(esi)?;
    a.jne(head)?;
    a.hlt()?;
    a.assemble(CODE as u64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    for (name, subject) in SUBJECTS {
        let program = program(*subject)?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let mut v = machine(&program)?;
            let mut engine = Translator::new(&v.mmu.ram)?;
            let start = now()?;
            if engine.run(&mut v) != Exit::Halted {
                return Err(format!("{name}: the program did not end in HLT").into());
            }
            best = best.min((now()? - start).as_secs_f64());
        }
        println!("{:8.1} ns  {name}", best * 1e9 / f64::from(TIMES));
    }
    Ok(())
}
