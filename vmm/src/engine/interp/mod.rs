//! The interpreter: executes guest instructions one at a time, exactly as the manual says, in plain Rust.
//!
//! It is the engine for real mode and virtual-8086 mode, the slow path for what the translator does not translate, and
//! the oracle that the translator is tested against. Speed comes from a decode cache (`cache`) of digested instructions
//! (`operand::Op`), found by physical frame; nothing is reordered, merged or left out for speed.
//!
//! The path of an instruction: `boundary` (is there anything to look at first?), `cache` (or `decode` and `select`, the
//! first time), then its handler in `alu`, `multiply`, `moves`, `shift`, `bits`, `string`, `stack`, `control`, `segments`, `system` or `io`.
//! x87, MMX, SSE and AVX are the room `simd`'s. Handlers move data; what a segment load, a far transfer or an interrupt
//! means is in `crate::cpu`.

mod alu;
mod bits;
mod boundary;
mod cache;
mod control;
mod decode;
mod flags;
mod io;
mod moves;
mod multiply;
mod operand;
mod random;
mod segments;
mod select;
mod shift;
pub mod simd;
mod stack;
mod string;
mod system;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use iced_x86::{Instruction, Mnemonic};

use super::{Engine, Exit};
use crate::cpu::{Flow, Stop, Vcpu, reg, seg};
use cache::Cache;
use decode::Recent;
use operand::{Op, flag};
use simd::SimdUnit;

/// A decoded instruction with its bytes.
pub struct Prepared {
    decoded: decode::Decoded,
    bytes: Vec<u8>,
}

impl Prepared {
    /// Where the instruction would access memory now, and whether to store there; None if it is not one that moves a few
    /// bytes. Of two places it is the one on the stack.
    pub fn accessed(&self, v: &Vcpu) -> Option<(u32, bool)> {
        let op = &self.decoded.op;
        let stack = |skip: u32| v.state.seg[seg::SS].base.wrapping_add(v.state.gpr[reg::ESP].wrapping_add(skip));
        match self.decoded.full.mnemonic() {
            Mnemonic::Push | Mnemonic::Call => Some((stack((op.size as u32).wrapping_neg()), true)),
            Mnemonic::Pop | Mnemonic::Ret => Some((stack(0), false)),
            mnemonic if [op.dst, op.src, op.third].contains(&operand::MEM) => {
                let only_read = matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
                Some((operand::linear_of(v, op), op.dst == operand::MEM && !only_read))
            }
            _ => None,
        }
    }
}

/// The interpreter of one processor.
pub struct Interpreter {
    cache: Cache,
    recent: Recent,
    simd: SimdUnit,
    instructions: u64,
    uncached: u64,
    exceptions: u64,
    interrupts: u64,
    /// The last instruction entered a handler itself (INT n and its kin): TF was cleared, not earned.
    software_interrupt: bool,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self::new()
    }
}

impl Interpreter {
    /// An interpreter with nothing cached.
    pub fn new() -> Self {
        Self {
            cache: Cache::new(),
            recent: Recent::new(),
            simd: SimdUnit::default(),
            instructions: 0,
            uncached: 0,
            exceptions: 0,
            interrupts: 0,
            software_interrupt: false,
        }
    }

    /// Executes exactly one instruction, delivers the exception or trap that it earns, and returns. Interrupts, NMI and
    /// [`Lines::request`](crate::cpu::Lines) are not looked at. Of a repeated string instruction one stretch of
    /// iterations is executed, and EIP stays on it while more remain. An error is a triple fault or something
    /// unsupported; HLT leaves `state.halted` set.
    ///
    /// The decode cache and the MMU's notices of flushes and code writes are left alone, for a caller that takes those
    /// notices itself: every instruction is fetched anew, and its decoding found by its bytes.
    pub fn step(&mut self, v: &mut Vcpu) -> Flow<()> {
        let done = self.attempt(v);
        if let Err(stop) = done {
            return self.deliver(v, stop);
        }
        if v.mmu.pending_debug != 0 && v.state.shadow != crate::cpu::InterruptShadow::MovSs {
            let hit = std::mem::take(&mut v.mmu.pending_debug);
            return self.deliver(v, crate::cpu::Exception::debug(hit).into());
        }
        Ok(())
    }

    /// Decodes the instruction that `bytes` start with, at CS:EIP, for [`Self::step_prepared`]. None if it is not valid.
    pub fn prepare(&self, v: &Vcpu, bytes: &[u8]) -> Option<Prepared> {
        let decoded = decode::decode(v, bytes, v.state.eip, v.state.seg[seg::CS].big())?;
        let bytes = bytes.get(..decoded.op.len as usize)?.to_vec();
        Some(Prepared { decoded, bytes })
    }

    /// As [`Self::step`], for an instruction that the caller knows to be at CS:EIP still, with no breakpoint, single step
    /// or interrupt shadow in force.
    pub fn step_prepared(&mut self, v: &mut Vcpu, instruction: &Prepared) -> Flow<()> {
        let Prepared { decoded, bytes } = instruction;
        self.instructions += 1;
        match execute(&mut self.simd, v, &decoded.op, &decoded.full, bytes) {
            Ok(()) if v.mmu.pending_debug == 0 => Ok(()),
            Ok(()) => {
                let hit = std::mem::take(&mut v.mmu.pending_debug);
                self.deliver(v, crate::cpu::Exception::debug(hit).into())
            }
            Err(stop) => self.deliver(v, stop),
        }
    }

    /// Exceptions, traps and interrupts delivered so far: tells whether a step was just its instruction.
    pub fn events_taken(&self) -> u64 {
        self.exceptions + self.interrupts
    }

    /// As [`Self::step`], but delivers nothing: an exception comes back as the error, with the state as it was before
    /// the instruction, and a trap (single step, data breakpoint) is left in `Mmu::pending_debug` as DR6 bits. INT n and
    /// its kin do enter their handlers: that is what these instructions do.
    pub fn attempt(&mut self, v: &mut Vcpu) -> Flow<()> {
        self.careful(v, true)
    }

    /// Executes the instruction at CS:EIP. On an error the general registers, EIP and EFLAGS are as before.
    #[inline(always)]
    fn one(&mut self, v: &mut Vcpu) -> Flow<()> {
        let (tag, linear) = cache::tag(v);
        let Some(page) = self.cache.current(tag) else { return self.enter(v, tag, linear) };
        let Some(op) = page.get(linear) else { return self.first_time(v, linear) };
        self.instructions += 1;
        if op.flags & flag::FULL == 0 {
            return guarded(v, op, op.run);
        }
        match page.full(op, linear) {
            Some((full, bytes)) => full_form(&mut self.simd, v, op, full, bytes),
            None => Err(Stop::ud()),
        }
    }

    /// The next instruction is on another page than the last.
    #[inline(never)]
    fn enter(&mut self, v: &mut Vcpu, tag: u32, linear: u32) -> Flow<()> {
        if !self.cache.enter(v, tag, linear)? {
            return self.fetched(v);
        }
        self.one_more(v, tag, linear)
    }

    #[inline(never)]
    fn one_more(&mut self, v: &mut Vcpu, tag: u32, linear: u32) -> Flow<()> {
        match self.cache.current(tag) {
            Some(page) if page.get(linear).is_some() => self.one(v),
            _ => self.first_time(v, linear),
        }
    }

    /// Decodes an instruction, keeps it if it ends in its page, and executes it.
    #[cold]
    fn first_time(&mut self, v: &mut Vcpu, linear: u32) -> Flow<()> {
        let cs = &v.state.seg[seg::CS];
        let (tag, _) = cache::tag(v);
        // The bytes are copied: to insert an instruction may empty the cache.
        let mut bytes = [0; decode::MAX_LENGTH];
        let decoded = self.cache.current(tag).and_then(|page| {
            let tail = page.tail(linear);
            bytes[..tail.len()].copy_from_slice(tail);
            decode::decode(v, tail, v.state.eip, cs.big())
        });
        match decoded {
            Some(decoded) => {
                self.cache.insert(linear, &decoded);
                self.instructions += 1;
                let op = decoded.op;
                let bytes = bytes.get(..op.len as usize).unwrap_or(&bytes);
                execute(&mut self.simd, v, &op, &decoded.full, bytes)
            }
            None => self.fetched(v),
        }
    }

    /// Fetches, decodes and executes without the cache.
    #[cold]
    fn fetched(&mut self, v: &mut Vcpu) -> Flow<()> {
        let (decoded, bytes) = self.recent.fetch(v)?;
        self.instructions += 1;
        self.uncached += 1;
        self.software_interrupt = enters_handler(&decoded.full);
        let bytes = bytes.get(..decoded.op.len as usize).unwrap_or(bytes);
        execute(&mut self.simd, v, &decoded.op, &decoded.full, bytes)
    }

    /// Takes the MMU's notices: what was decoded from changed bytes or through changed mappings is forgotten.
    #[inline(never)]
    fn take_notices(&mut self, v: &mut Vcpu) {
        if !v.mmu.take_flushes().is_empty() {
            self.cache.forget_translations();
        }
        for gpa in v.mmu.take_code_writes() {
            self.cache.written(&v.mmu.ram, gpa);
        }
    }
}

fn enters_handler(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Int1 | Mnemonic::Into)
}

/// Executes `op` by its handler or, where it has none, from its full form.
fn execute(simd: &mut SimdUnit, v: &mut Vcpu, op: &Op, full: &Instruction, bytes: &[u8]) -> Flow<()> {
    if op.flags & flag::FULL == 0 {
        return guarded(v, op, op.run);
    }
    full_form(simd, v, op, full, bytes)
}

/// Executes a SIMD instruction, or says that it cannot.
fn full_form(simd: &mut SimdUnit, v: &mut Vcpu, op: &Op, full: &Instruction, bytes: &[u8]) -> Flow<()> {
    let start = v.state.eip;
    if op.flags & flag::UNSUPPORTED != 0 {
        return Err(decode::unsupported(v, full, start));
    }
    let mut here = *full;
    here.set_ip32(start);
    guarded(v, op, |v, _| simd::execute(simd, v, &here, bytes))
}

/// Runs an instruction with the rules that hold for all: it must lie inside CS, EIP moves on first, and an error leaves
/// general registers, EIP and EFLAGS as they were.
#[inline(always)]
fn guarded(v: &mut Vcpu, op: &Op, run: impl FnOnce(&mut Vcpu, &Op) -> Flow<()>) -> Flow<()> {
    let s = &mut v.state;
    let (gpr, eip, eflags) = (s.gpr, s.eip, s.eflags);
    let limit = s.seg[seg::CS].limit;
    if limit != u32::MAX && eip as u64 + op.len as u64 - 1 > limit as u64 {
        return Err(Stop::gp(0));
    }
    s.eip = eip.wrapping_add(op.len as u32);
    let done = run(v, op);
    if done.is_err() {
        (v.state.gpr, v.state.eip, v.state.eflags) = (gpr, eip, eflags);
    }
    done
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        "interp"
    }

    fn run(&mut self, v: &mut Vcpu) -> Exit {
        self.cache.forget_translations();
        loop {
            if v.mmu.has_notices() {
                self.take_notices(v);
            }
            let flow = if boundary::attention(v) {
                self.boundary(v)
            } else {
                match self.one(v) {
                    Ok(()) => continue,
                    Err(stop) => self.conclude(v, Err(stop)),
                }
            };
            if let ControlFlow::Break(exit) = flow {
                return exit;
            }
        }
    }

    fn invalidate(&mut self, v: &mut Vcpu, start: u64, end: u64) {
        self.cache.written_range(&v.mmu.ram, start, end);
    }

    fn stats(&self) -> Vec<(String, u64)> {
        [
            ("instructions", self.instructions),
            ("instructions executed without the decode cache", self.uncached),
            ("instructions decoded", self.cache.decoded),
            ("decoded instructions dropped by writes", self.cache.dropped),
            ("decode cache emptied", self.cache.emptied),
            ("code frames held", self.cache.frames() as u64),
            ("exceptions", self.exceptions),
            ("interrupts", self.interrupts),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }
}
