//! A processor in flat 32-bit protected mode (or real mode) with 4 MiB of RAM, and programs made with iced's assembler.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::CodeAssembler;

use crate::cpu::{Bus, Flow, Lines, Segment, Stop, Vcpu, attr, cr0, reg, seg};
use crate::engine::interp::Interpreter;
use crate::engine::{Engine, Exit};
use crate::mmu::GuestRam;

/// Where programs lie.
pub const CODE: u32 = 0x1_0000;
/// Memory for operands.
pub const DATA: u32 = 0x2_0000;
/// Initial ESP.
pub const STACK: u32 = 0x8_0000;

/// Ports read as `input`; writes are recorded.
#[derive(Default)]
pub struct TestBus {
    pub input: AtomicU32,
    pub output: Mutex<Vec<(u16, u8, u32)>>,
    pub vector: Mutex<Option<u8>>,
}

impl Bus for TestBus {
    fn port_read(&self, _: usize, _: u16, _: u8) -> u32 {
        self.input.load(Ordering::Relaxed)
    }
    fn port_write(&self, _: usize, port: u16, width: u8, value: u32) {
        self.output.lock().unwrap().push((port, width, value));
    }
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn acknowledge(&self, _: usize) -> Option<u8> {
        self.vector.lock().unwrap().take()
    }
    fn apic_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn apic_msr_write(&self, _: usize, _: u32, _: u64) -> bool {
        false
    }
}

/// A machine with one processor.
pub struct Machine {
    pub v: Vcpu,
    pub engine: Interpreter,
    pub bus: Arc<TestBus>,
}

impl Machine {
    /// Flat protected mode at CPL 0 with EIP at [`CODE`].
    pub fn flat() -> Self {
        let bus = Arc::new(TestBus::default());
        let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
        let mut v = Vcpu::new(0, ram, bus.clone(), Arc::new(Lines::default()));
        let flat = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
        for (which, s) in v.state.seg.iter_mut().enumerate() {
            let code = if which == seg::CS { attr::CODE } else { 0 };
            *s = Segment { base: 0, limit: u32::MAX, attr: flat | code, selector: 8 + 8 * (which as u16 & 1), pad: 0 };
        }
        v.state.cr0 |= cr0::PE;
        v.state.eip = CODE;
        v.state.gpr = [0; 8];
        v.state.gpr[reg::ESP] = STACK;
        Self { v, engine: Interpreter::new(), bus }
    }

    /// Real mode with CS = CODE / 16, EIP 0, other segments at [`DATA`].
    pub fn real() -> Self {
        let mut m = Self::flat();
        m.v.state.cr0 &= !cr0::PE;
        m.v.state.seg = [Segment::real((DATA >> 4) as u16); 6];
        m.v.state.seg[seg::CS] = Segment::real((CODE >> 4) as u16);
        m.v.state.idtr.base = 0;
        m.v.state.idtr.limit = 0x3ff;
        m.v.state.eip = 0;
        m.v.state.gpr[reg::ESP] = 0x8000;
        m
    }

    /// Puts bytes at a physical address.
    pub fn poke(&mut self, at: u32, bytes: &[u8]) {
        assert!(self.v.mmu.ram.write(at as u64, bytes));
        self.engine.invalidate(&mut self.v, at as u64, at as u64 + bytes.len() as u64);
    }

    /// The u32 at a physical address.
    pub fn peek(&self, at: u32) -> u32 {
        self.v.mmu.ram.read_u32(at as u64).unwrap()
    }

    /// Assembles a program for 32-bit code at [`CODE`].
    pub fn program(&mut self, write: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(32).unwrap();
        write(&mut a);
        let bytes = a.assemble(CODE as u64).unwrap();
        self.poke(CODE, &bytes);
    }

    /// Executes raw bytes as one instruction at the current place.
    pub fn bytes(&mut self, bytes: &[u8]) -> Flow<()> {
        let at = self.v.state.seg[seg::CS].base.wrapping_add(self.v.state.eip);
        self.poke(at, bytes);
        self.engine.attempt(&mut self.v)
    }

    /// Runs a program until HLT.
    pub fn run(&mut self, write: impl FnOnce(&mut CodeAssembler)) {
        self.program(|a| {
            write(a);
            a.hlt().unwrap();
        });
        self.v.state.eip = CODE;
        self.v.state.halted = false;
        assert_eq!(self.engine.run(&mut self.v), Exit::Halted);
    }

    /// Assembles and attempts one instruction at [`CODE`].
    pub fn one(&mut self, write: impl FnOnce(&mut CodeAssembler)) -> Flow<()> {
        self.program(write);
        self.v.state.eip = CODE;
        self.engine.attempt(&mut self.v)
    }

    /// Steps through a program, none of whose instructions may fault, to its end.
    pub fn run_until_ok(&mut self, write: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(32).unwrap();
        write(&mut a);
        let bytes = a.assemble(CODE as u64).unwrap();
        self.poke(CODE, &bytes);
        self.v.state.eip = CODE;
        while self.v.state.eip != CODE + bytes.len() as u32 {
            self.engine.attempt(&mut self.v).unwrap();
        }
    }

    /// The exception vector that one instruction raises.
    pub fn fault(&mut self, write: impl FnOnce(&mut CodeAssembler)) -> u8 {
        let before = self.v.state.clone();
        match self.one(write) {
            Err(Stop::Exception(e)) => {
                assert_eq!(self.v.state.gpr, before.gpr, "a fault must leave the registers");
                assert_eq!(self.v.state.eip, CODE, "a fault must leave EIP");
                e.vector
            }
            other => panic!("expected an exception, got {other:?}"),
        }
    }

    pub fn r(&self, which: usize) -> u32 {
        self.v.state.gpr[which]
    }

    pub fn set(&mut self, which: usize, value: u32) {
        self.v.state.gpr[which] = value;
    }

    pub fn flags(&self) -> u32 {
        self.v.state.eflags
    }
}
