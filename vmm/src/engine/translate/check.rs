//! The independent checker of emitted code.
//!
//! Guest code runs in this process, so what keeps it inside its windows is the shape of every emitted instruction. The
//! checker decodes a finished block from its bytes, from scratch and sharing no code with the emitter, and proves:
//!
//! * every byte belongs to exactly one instruction, and branches lead to instructions, to the common code that is meant
//!   for them, or to where a live block may be come into: its main entry, or the start of an instruction at which all
//!   guest state is in place;
//! * every memory operand is inside a window or is one of the few fields of the context that emitted code uses
//!   ([`memory`]);
//! * no instruction changes segments, enters the kernel, is privileged, or touches RSP, r12, r13 or r15 ([`permitted`]);
//! * guest registers have zero upper halves wherever the block can be left or started again, and what a scratch register
//!   holds is known where it is used ([`state`]). Scratch registers are forgotten at each point where an instruction can
//!   be started again, so the proof also covers starting again;
//! * guest x87, SSE and AVX state is in host registers wherever an instruction uses it.
//!
//! The proof is a forward data flow over the block ([`rules`]). It says nothing about the block doing what the guest asked
//! for: that is for the differential tests. It runs on every block in tests and debug builds, and where
//! [`super::Translator::verify`] asks for it.

mod memory;
mod permitted;
mod rules;
mod state;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, InstructionInfoFactory, IntelFormatter};

use self::rules::Step;
use self::state::State;
use super::Translator;
use super::block::{Origin, Point};
use super::trampoline::Trampolines;

/// A finished block, as far as the checker must know it.
pub struct Subject<'a> {
    /// The bytes as they execute.
    pub code: &'a [u8],
    /// Executable address of the first.
    pub start: u64,
    /// Offset of the entry for direct branches.
    pub main: u32,
    /// Where it may be started again or be left by a signal.
    pub origins: &'a [Origin],
    /// Exit sites that belong to it.
    pub sites: Range<u32>,
    /// Guest x87, SSE and AVX state is loaded before an instruction in the middle of the block is started again.
    pub restarts_load_fp: bool,
    /// The common code.
    pub trampolines: &'a Trampolines,
    /// True where a direct branch may come into a live block; the flag says that guest x87, SSE and AVX state is in host
    /// registers.
    pub linked: &'a dyn Fn(u64, bool) -> bool,
}

/// A rule that a block breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Offset of the instruction.
    pub offset: u32,
    /// The rule, in words.
    pub rule: &'static str,
}

/// Proves that `subject` keeps the rules, or names the first that it breaks.
pub fn check(subject: &Subject<'_>) -> Result<(), Violation> {
    let mut checker = Checker::decode(subject)?;
    checker.entries()?;
    checker.flow()?;
    // Code that nothing reaches now: stubs of branches that are linked, which can be unlinked at any time.
    while let Some(index) = checker.states.iter().position(Option::is_none) {
        checker.arrive(checker.offset(index), State::entry())?;
        checker.flow()?;
    }
    Ok(())
}

/// Index of an instruction by offset in the block.
const NONE: u32 = u32::MAX;

struct Checker<'a> {
    subject: &'a Subject<'a>,
    instructions: Vec<Instruction>,
    /// Index of the instruction that starts at an offset, or [`NONE`].
    at: Vec<u32>,
    /// What is known before each instruction; None until it is reached.
    states: Vec<Option<State>>,
    /// Instructions whose state changed since they were last looked at.
    work: Vec<usize>,
    info: InstructionInfoFactory,
}

impl<'a> Checker<'a> {
    /// Decodes the block from end to end.
    fn decode(subject: &'a Subject<'a>) -> Result<Self, Violation> {
        let mut decoder = Decoder::with_ip(64, subject.code, subject.start, DecoderOptions::NONE);
        let mut instructions = Vec::new();
        let mut at = vec![NONE; subject.code.len()];
        while decoder.can_decode() {
            let offset = decoder.position();
            let insn = decoder.decode();
            if insn.is_invalid() {
                return Err(Violation { offset: offset as u32, rule: "bytes are not an instruction" });
            }
            at[offset] = instructions.len() as u32;
            instructions.push(insn);
        }
        let states = vec![None; instructions.len()];
        Ok(Self { subject, instructions, at, states, work: Vec::new(), info: InstructionInfoFactory::new() })
    }

    fn offset(&self, index: usize) -> u32 {
        (self.instructions[index].ip() - self.subject.start) as u32
    }

    fn bytes(&self, index: usize) -> &'a [u8] {
        let from = self.offset(index) as usize;
        &self.subject.code[from..from + self.instructions[index].len()]
    }

    /// Marks every place where execution can enter.
    fn entries(&mut self) -> Result<(), Violation> {
        self.arrive(0, State::indirect_entry())?;
        self.arrive(self.subject.main, State::entry())?;
        for origin in self.subject.origins {
            match origin.point {
                Point::Start | Point::Shadowed => {
                    let restart = State::restart(self.subject.restarts_load_fp, origin.is_entry());
                    self.arrive(origin.offset, restart)?
                }
                Point::Interruptible | Point::Inside => {
                    self.index(origin.offset)?;
                }
            }
        }
        Ok(())
    }

    /// Index of the instruction at `offset`.
    fn index(&self, offset: u32) -> Result<usize, Violation> {
        match self.at.get(offset as usize) {
            Some(&index) if index != NONE => Ok(index as usize),
            _ => Err(Violation { offset, rule: "execution reaches a place where no instruction starts" }),
        }
    }

    /// Execution may come to `offset` with `state`.
    fn arrive(&mut self, offset: u32, mut state: State) -> Result<(), Violation> {
        let index = self.index(offset)?;
        match self.point(offset) {
            Some(Point::Start | Point::Shadowed) => {
                state.require_guest_narrow().map_err(|rule| Violation { offset, rule })?;
                state.meet(&State::restart(self.subject.restarts_load_fp, false));
            }
            Some(Point::Interruptible) => {
                state.require_interruptible().map_err(|rule| Violation { offset, rule })?;
            }
            Some(Point::Inside) | None => {}
        }
        let changed = match &mut self.states[index] {
            Some(known) => known.meet(&state),
            unknown => {
                *unknown = Some(state);
                true
            }
        };
        if changed {
            self.work.push(index);
        }
        Ok(())
    }

    fn point(&self, offset: u32) -> Option<Point> {
        let found = self.subject.origins.binary_search_by_key(&offset, |o| o.offset).ok()?;
        Some(self.subject.origins[found].point)
    }

    /// Follows execution until nothing new is learnt.
    fn flow(&mut self) -> Result<(), Violation> {
        while let Some(index) = self.work.pop() {
            let Some(state) = self.states[index].clone() else { continue };
            let offset = self.offset(index);
            let insn = self.instructions[index];
            let bytes = self.bytes(index);
            let info = self.info.info(&insn);
            let step = Step { subject: self.subject, insn: &insn, bytes, offset, info, state };
            let after = step.take().map_err(|rule| Violation { offset, rule })?;
            if let Some(state) = after.falls {
                self.arrive(offset + insn.len() as u32, state)?;
            }
            if let Some((target, state)) = after.jumps {
                self.arrive(target, state)?;
            }
        }
        Ok(())
    }
}

/// `violation` with the disassembled block around it.
fn report(subject: &Subject<'_>, violation: Violation) -> String {
    let mut text = format!("emitted code breaks a rule at {:#x}: {}\n", violation.offset, violation.rule);
    let mut formatter = IntelFormatter::new();
    for insn in Decoder::with_ip(64, subject.code, subject.start, DecoderOptions::NONE).iter() {
        let offset = (insn.ip() - subject.start) as u32;
        let mark = if offset == violation.offset { "=>" } else { "  " };
        let origin = subject.origins.iter().find(|o| o.offset == offset);
        let _ = write!(text, "{mark} {offset:4x}  ");
        formatter.format(&insn, &mut text);
        if let Some(o) = origin {
            let _ = write!(text, "    ; {:#x} {:?}", o.eip, o.point);
        }
        text.push('\n');
    }
    text
}

impl Translator {
    /// Has every block checked after translation (`on`), at about the cost of translating it twice, or not. Tests and
    /// debug builds check without being asked.
    pub fn verify(&mut self, on: bool) {
        self.verify = on;
    }

    /// Checks every block as it is in the cache now, with the links that were made since.
    #[cfg(test)]
    pub(super) fn check_all(&mut self) {
        self.registry.ids().into_iter().for_each(|id| self.check_block(id));
    }

    /// Checks block `id` as it is in the cache, if that is wanted. A violation is a bug of the translator: nothing may
    /// run after it.
    pub(super) fn check_block(&mut self, id: u32) {
        if !self.verify {
            return;
        }
        self.stats.checked += 1;
        let block = self.registry.block(id);
        let code = self.cache.read(block.start, block.length as usize);
        let linked = |target: u64, fp: bool| self.registry.is_entry(target, fp);
        let origins: Vec<Origin> = block.origins.collect();
        let subject = Subject {
            code: &code,
            start: block.start,
            main: block.main,
            origins: &origins,
            sites: block.sites.0..block.sites.0 + block.sites.1,
            restarts_load_fp: block.fp,
            trampolines: &self.trampolines,
            linked: &linked,
        };
        if let Err(violation) = check(&subject) {
            panic!("block of guest address {:#x}: {}", block.key.eip, report(&subject, violation));
        }
    }
}
