//! One instruction: whether it keeps the rules, and what is known after it.

mod branches;

use iced_x86::{Code, FlowControl, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register};

use super::Subject;
use super::memory;
use super::permitted::{Kind, permitted};
use super::state::{Stacked, State, TARGET, Value, number, scratch, writable};
use crate::cpu::eflags;
use crate::engine::translate::context::host;
use crate::engine::translate::mode::HOST_FLAGS;

/// One instruction and what is known before it.
pub struct Step<'a> {
    pub subject: &'a Subject<'a>,
    pub insn: &'a Instruction,
    pub bytes: &'a [u8],
    pub offset: u32,
    pub info: &'a InstructionInfo,
    pub state: State,
}

/// Where execution goes after an instruction, and with what.
pub struct After {
    /// To the next instruction.
    pub falls: Option<State>,
    /// To this offset in the block.
    pub jumps: Option<(u32, State)>,
}

type Rule<T> = Result<T, &'static str>;

/// RCX.
const COUNT: u8 = 1;

impl Step<'_> {
    /// Checks the instruction; where execution goes from it.
    pub fn take(mut self) -> Rule<After> {
        self.prefixes()?;
        match self.insn.flow_control() {
            FlowControl::Next => {
                self.straight()?;
                Ok(After { falls: Some(self.state), jumps: None })
            }
            FlowControl::UnconditionalBranch => self.jump(),
            FlowControl::ConditionalBranch => self.jump_if(),
            FlowControl::IndirectBranch => self.jump_indirect(),
            FlowControl::IndirectCall => self.call_indirect(),
            FlowControl::Call => self.call(),
            FlowControl::Return => self.return_near(),
            _ => Err("an instruction that leaves emitted code"),
        }
    }

    /// No prefix comes twice, and none that 64-bit mode ignores comes before a memory operand: what processors make of
    /// those differs.
    fn prefixes(&self) -> Rule<()> {
        let prefix = |b: &&u8| matches!(**b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        let prefixes: Vec<u8> = self.bytes.iter().take_while(prefix).copied().collect();
        if prefixes.iter().enumerate().any(|(i, b)| prefixes[..i].contains(b)) {
            return Err("a repeated prefix");
        }
        let ignored = prefixes.iter().any(|b| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64));
        if ignored && (!self.info.used_memory().is_empty() || self.explicit_memory()) {
            return Err("a segment prefix other than GS");
        }
        let rest = self.bytes.get(prefixes.len()).copied().unwrap_or_default();
        if (0x40..0x50).contains(&rest) && self.bytes.get(prefixes.len() + 1).is_some_and(|b| prefix(&b)) {
            return Err("a prefix after REX");
        }
        Ok(())
    }

    fn explicit_memory(&self) -> bool {
        (0..self.insn.op_count()).any(|i| self.insn.op_kind(i) == OpKind::Memory)
    }

    /// An instruction that goes on to the next one.
    fn straight(&mut self) -> Rule<()> {
        let insn = self.insn;
        if memory::in_context(insn) && insn.mnemonic() != Mnemonic::Lea {
            return self.context();
        }
        match insn.code() {
            Code::Mov_rm64_r64 | Code::Mov_r64_rm64 => self.copy(),
            Code::Mov_rm32_r32 if cuts(insn) => {
                let early = matches!(self.state.get(number(insn.op0_register())), Value::Time(0..=2));
                if early {
                    return Err("the host's time stamp is shown");
                }
                self.state.set(number(insn.op0_register()), Value::Narrow);
                Ok(())
            }
            Code::Rdtsc | Code::Rdtscp => {
                // The host's: not for the guest to see before its offset has been added.
                self.state.set(0, Value::Time(0));
                self.state.set(2, Value::Time(0));
                if insn.code() == Code::Rdtscp {
                    self.state.set(COUNT, Value::Unknown);
                }
                Ok(())
            }
            Code::VEX_Rorx_r64_rm64_imm8 if insn.op0_register() == Register::RDX => {
                let stage = match (insn.op1_register(), self.state.get(number(insn.op1_register()))) {
                    (Register::RDX, Value::Time(0)) => Value::Time(1),
                    (Register::RAX, Value::Time(3)) => Value::Time(4),
                    _ => return Err("a time stamp that is not put together in order"),
                };
                self.state.set(2, stage);
                if insn.immediate8() == 32 { Ok(()) } else { Err("a time stamp of odd halves") }
            }
            Code::And_rm32_imm32 if insn.op0_register() == Register::R8D => {
                let host = insn.immediate32() & !HOST_FLAGS == 0;
                let flag = insn.immediate32() == eflags::IF;
                let narrow = self.state.narrow(8);
                self.state.set(
                    8,
                    if host {
                        Value::HostFlags
                    } else if flag {
                        Value::Flag
                    } else {
                        Value::Narrow
                    },
                );
                if narrow { Ok(()) } else { Err("flags are made from something that is not guest data") }
            }
            Code::Pushfq | Code::Push_r64 | Code::Pop_r64 | Code::Popfq => self.flags(),
            Code::Lea_r64_m if insn.op0_register() == Register::R14 => {
                self.state.anchored = memory::lea_stack(insn, &self.state)?;
                self.state.set(host::ESP, Value::Stack);
                Ok(())
            }
            Code::Lea_r64_m => {
                let value = memory::lea64(insn, &self.state, self.subject.start, self.subject.code.len())?;
                self.state.set(number(insn.op0_register()), value);
                Ok(())
            }
            Code::VEX_Shrx_r32_rm32_r32 if number(insn.op2_register()) == host::TRIPWIRE => self.quarter(),
            Code::VEX_Pext_r32_r32_rm32 if insn.op2_register() == Register::R13D => self.index(),
            Code::Movzx_r32_rm16 if memory::in_tripwire(insn) => self.tripwire(),
            _ if insn.is_string_instruction() => self.string(),
            _ => self.data(),
        }
    }

    /// A load or store of the context.
    fn context(&mut self) -> Rule<()> {
        if memory::interrupt_store(self.insn) {
            return match self.insn.op1_kind() == OpKind::Register && self.state.get(8) != Value::Flag {
                true => Err("a store of something else than EFLAGS.IF"),
                false => Ok(()),
            };
        }
        if memory::base_store(self.insn) {
            return match self.state.narrow(number(self.insn.op1_register())) {
                true => Ok(()),
                false => Err("a store of something else than a segment base"),
            };
        }
        if self.insn.op0_kind() == OpKind::Memory {
            let site = memory::context_store(self.insn)?;
            if !self.subject.sites.contains(&site) {
                return Err("an exit site of another block");
            }
            self.state.site = true;
            return Ok(());
        }
        let value = memory::context_load(self.insn, &self.state)?;
        self.state.set(number(self.insn.op0_register()), value);
        Ok(())
    }

    /// `pushfq; pop r8` reads the flags, and `push r8; popfq` writes them, RSP being where it was after each pair.
    fn flags(&mut self) -> Rule<()> {
        let r8 = self.insn.op0_register() == Register::R8;
        let (before, after) = match self.insn.code() {
            Code::Pushfq => (Stacked::Nothing, Stacked::Read),
            Code::Pop_r64 if r8 => (Stacked::Read, Stacked::Nothing),
            Code::Push_r64 if r8 && self.state.get(8) == Value::HostFlags => (Stacked::Nothing, Stacked::Write),
            Code::Popfq => (Stacked::Write, Stacked::Nothing),
            _ => return Err("a push or pop that emitted code does not use"),
        };
        if self.state.stacked != before {
            return Err("a push or pop out of place");
        }
        self.state.stacked = after;
        if self.insn.code() == Code::Pop_r64 {
            self.state.set(8, Value::Narrow);
        }
        Ok(())
    }

    /// `mov reg64, reg64` of a number below 2^32.
    fn copy(&mut self) -> Rule<()> {
        if self.insn.op0_kind() != OpKind::Register || self.insn.op1_kind() != OpKind::Register {
            return Err("a 64-bit memory operand");
        }
        let (to, from) = (number(self.insn.op0_register()), number(self.insn.op1_register()));
        if !writable(to) || !writable(from) || !self.state.narrow(from) {
            return Err("a 64-bit copy of something that is not guest data");
        }
        self.state.set(to, Value::Narrow);
        Ok(())
    }

    /// `shrx reg32, linear, r13d`.
    fn quarter(&mut self) -> Rule<()> {
        let (to, linear) = (number(self.insn.op0_register()), self.insn.op1_register());
        let narrow = linear.is_gpr32() && writable(number(linear)) && self.state.narrow(number(linear));
        if !scratch(to) || !narrow {
            return Err("a quarter of something that is not a guest address");
        }
        self.state.set(to, Value::Quarter(number(linear)));
        Ok(())
    }

    /// `pext reg32, r8d, r13d`.
    fn index(&mut self) -> Rule<()> {
        let (to, eip) = (number(self.insn.op0_register()), number(self.insn.op1_register()));
        if !scratch(to) || eip != TARGET || !self.state.narrow(TARGET) {
            return Err("an index of something that is not a guest EIP");
        }
        self.state.set(to, Value::Index);
        Ok(())
    }

    /// `movzx scratch, word [difference + tripwire]`: may leave for the guest EIP in r8d.
    fn tripwire(&mut self) -> Rule<()> {
        memory::tripwire_operand(self.insn, &self.state)?;
        self.state.require_guest_narrow()?;
        if !self.state.narrow(TARGET) {
            return Err("a tripwire that is passed with something that is not a guest EIP");
        }
        self.state.set(number(self.insn.op0_register()), Value::Narrow);
        Ok(())
    }

    /// MOVS, STOS, LODS, SCAS or CMPS.
    fn string(&mut self) -> Rule<()> {
        use Mnemonic::*;
        let movers = [Movsb, Movsw, Movsd, Stosb, Stosw, Stosd, Lodsb, Lodsw, Lodsd];
        let comparers = [Scasb, Scasw, Scasd, Cmpsb, Cmpsw, Cmpsd];
        let known = movers.iter().chain(&comparers).any(|m| *m == self.insn.mnemonic());
        if !known || !self.state.narrow(COUNT) || !self.state.narrow(0) {
            return Err("a string instruction that emitted code does not use");
        }
        self.belongs()?;
        memory::string_operands(self.insn, &mut self.state)
    }

    /// An access to guest memory can fault: it must belong to a guest instruction.
    fn belongs(&self) -> Rule<()> {
        match self.subject.origins.first() {
            Some(first) if first.offset <= self.offset => Ok(()),
            _ => Err("an access to guest memory that belongs to no guest instruction"),
        }
    }

    /// An instruction on guest data.
    fn data(&mut self) -> Rule<()> {
        if permitted(self.insn)? == Kind::Vector && !self.state.fp {
            return Err("x87, SSE or AVX state is used without having been loaded");
        }
        let explicit = self.explicit_memory();
        if self.info.used_memory().len() > explicit as usize {
            return Err("an implicit memory operand");
        }
        let reached = explicit && !matches!(self.insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
        if reached {
            self.belongs()?;
            memory::window_operand(self.insn, &self.state)?;
        }
        self.registers(reached)?;
        self.state.anchored |= memory::anchors(self.insn);
        memory::frame_ends(self.insn, &mut self.state.frame);
        Ok(())
    }

    /// Registers that a data instruction reads hold guest data; those that it writes do afterwards.
    fn registers(&mut self, memory: bool) -> Rule<()> {
        let picked = |r: u8| memory && matches!(self.state.get(r), Value::Window(_));
        for used in self.info.used_registers().iter().filter(|u| u.register().is_gpr()) {
            let (r, access) = (number(used.register()), used.access());
            let window = r == host::WINDOW && memory && access == OpAccess::Read && self.addresses(r);
            if window && self.insn.memory_base() == Register::R12 {
                continue;
            }
            if !writable(r) {
                return Err("a register of the host's is used");
            }
            // Writes that leave some bits as they were count as reads.
            let whole = access == OpAccess::Write && (used.register().is_gpr64() || used.register().is_gpr32());
            let address = access == OpAccess::Read && picked(r) && self.addresses(r);
            let reads = matches!(access, OpAccess::Read | OpAccess::CondRead);
            let low = (reads || self.works_on_esp()) && self.state.shows_guest(r);
            if !whole && !address && !low && !self.state.narrow(r) {
                return Err("a register that may hold something of the host's is used as guest data");
            }
        }
        for used in self.info.used_registers().iter() {
            let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            if used.register().is_gpr() && written {
                self.state.set(number(used.register()), Value::Narrow);
            } else if used.register().is_segment_register() && written {
                return Err("a segment register is written");
            }
        }
        Ok(())
    }

    /// True for arithmetic on r14d of which only the low half goes in, and zeros into the upper half in any case.
    fn works_on_esp(&self) -> bool {
        matches!(self.insn.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::And)
            && self.insn.op0_register() == Register::R14D
    }

    /// True if register `r` is used for the memory operand's address alone.
    fn addresses(&self, r: u8) -> bool {
        let operand = |i| self.insn.op_kind(i) == OpKind::Register && number_of(self.insn.op_register(i)) == Some(r);
        !(0..self.insn.op_count()).any(operand)
    }
}

/// `mov esi, esi`, `mov edi, edi`, `mov eax, eax` or `mov edx, edx`: what is left of a host address is the guest address
/// that it was made from, since windows are aligned to 4 GiB.
fn cuts(insn: &Instruction) -> bool {
    insn.op0_register() == insn.op1_register()
        && matches!(insn.op0_register(), Register::ESI | Register::EDI | Register::EAX | Register::EDX)
}

/// Hardware number of a general register of any width; None for other registers.
fn number_of(r: Register) -> Option<u8> {
    r.is_gpr().then(|| number(r))
}
