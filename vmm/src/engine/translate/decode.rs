//! Stage 1: guest bytes to instructions, along one trace.
//!
//! A trace starts at one EIP, follows fall-through and direct jumps, and ends where it meets code that is translated
//! already; but where that code soon branches, the few instructions up to there are translated once more. It saves a jump
//! in the middle of loops. A trace stays in one page: what happens between pages is for links to check. Only its first
//! instruction may run over into the next page; it is then alone. It is decoded from a copy of the page, so a guest that
//! rewrites it meanwhile changes nothing half-way.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
};

use crate::cpu::{CpuModel, Vcpu};
use crate::engine::features;
use crate::mmu::{Access, FRAME_SIZE, walk};

/// Guest instructions in a trace at most.
const MAX_INSTRUCTIONS: usize = 64;
/// Guest instructions at most in a trace that is compared with its source each time.
const MAX_CHECKED: usize = 12;
/// Jumps followed in a trace at most.
const MAX_JUMPS: usize = 8;

/// Guest instructions at most that are translated once more, up to a branch.
const MAX_AGAIN: usize = 8;

/// The guest instructions of one block, in execution order.
#[derive(Default)]
pub struct Trace {
    /// Guest linear address of the first instruction.
    pub eip: u32,
    /// Physical address of the second page, if the only instruction runs over into it.
    pub second: Option<u64>,
    /// The instructions; `ip` is the guest EIP. Empty if the first one cannot be taken from this page.
    pub instructions: Vec<Instruction>,
    /// Their bytes, one after the other.
    pub bytes: Vec<u8>,
    /// Where execution goes after the last instruction if that does not transfer control itself.
    pub next: u32,
}

impl Trace {
    /// Begins anew at `eip`.
    fn begin(&mut self, eip: u32) {
        (self.eip, self.second, self.next) = (eip, None, eip);
        self.instructions.clear();
        self.bytes.clear();
    }

    /// Goes on with `insn`, whose bytes are `bytes`.
    fn push(&mut self, insn: Instruction, bytes: &[u8]) {
        self.next = self.next.wrapping_add(insn.len() as u32);
        self.instructions.push(insn);
        self.bytes.extend_from_slice(bytes);
    }

    /// Goes on with `insn`, which ends inside `page`.
    fn push_from(&mut self, page: &[u8; FRAME_SIZE], insn: Instruction) {
        let start = self.next as usize % FRAME_SIZE;
        self.push(insn, &page[start..start + insn.len()]);
    }

    /// The range of page offsets that holds every instruction's bytes.
    pub fn source(&self) -> (u16, u16) {
        let offset = |eip: u32| eip as u16 & 0xfff;
        let ranges = self.instructions.iter().map(|i| (offset(i.ip32()), offset(i.ip32()) + i.len() as u16));
        let both = ranges.reduce(|(from, to), (first, end)| (from.min(first), to.max(end)));
        both.unwrap_or((offset(self.eip), offset(self.eip) + 15))
    }

    /// Where the trace is now: how many instructions and bytes it has, and where it goes on.
    fn mark(&self) -> (usize, usize, u32) {
        (self.instructions.len(), self.bytes.len(), self.next)
    }

    /// Goes back to where it was at `mark`.
    fn cut(&mut self, mark: (usize, usize, u32)) {
        self.instructions.truncate(mark.0);
        self.bytes.truncate(mark.1);
        self.next = mark.2;
    }

    /// Leaves the instruction that the trace begins with to the interpreter.
    pub fn leave_out(&mut self) {
        self.begin(self.eip);
    }

    /// True if the trace stopped within an instruction's length of the end of its page.
    pub fn ends_short(&self) -> bool {
        self.next & 0xfff > 0xfff - 15
    }
}

/// Decodes the trace at `eip` from `page`, the bytes of its page, into `trace`; code is 32-bit with base 0. The trace ends
/// where `known`, given an EIP, says that there is a translation to go on in, or at the next branch if that is near.
pub fn decode(vcpu: &Vcpu, eip: u32, page: &[u8; FRAME_SIZE], known: impl Fn(u32) -> bool, trace: &mut Trace) {
    trace.begin(eip);
    let mut decoder = Decoder::new(32, page, DecoderOptions::NONE);
    let mut jumps = 0;
    // Where it met what is known, until it has met a branch there.
    let mut met: Option<(usize, usize, u32)> = None;
    while trace.instructions.len() < MAX_INSTRUCTIONS {
        let insn = match one(&vcpu.model, &mut decoder, trace.next) {
            Ok(insn) => insn,
            Err(DecoderError::NoMoreBytes) if trace.instructions.is_empty() => return straddling(vcpu, page, trace),
            Err(_) => break,
        };
        trace.push_from(page, insn);
        match insn.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch if met.take().is_some() => break,
            FlowControl::ConditionalBranch => {}
            _ if met.is_some() && !insn.is_jmp_short_or_near() && insn.flow_control() != FlowControl::Return => break,
            // What follows a call is where it most likely returns to.
            FlowControl::Call | FlowControl::IndirectCall if insn.is_call_near() || insn.is_call_near_indirect() => {}
            FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() => {
                let target = insn.near_branch32();
                let seen = trace.instructions.iter().any(|i| i.ip32() == target);
                jumps += 1;
                if seen || (target ^ eip) & !0xfff != 0 || jumps > MAX_JUMPS {
                    met = None;
                    break;
                }
                trace.next = target;
            }
            _ => {
                met = None;
                break;
            }
        }
        // What follows STI is translated with it.
        if (trace.next ^ eip) & !0xfff != 0
            || met.is_some_and(|(count, ..)| trace.instructions.len() >= count + MAX_AGAIN)
        {
            break;
        }
        if met.is_none() && insn.mnemonic() != Mnemonic::Sti && known(trace.next) {
            met = Some(trace.mark());
        }
    }
    if let Some(mark) = met {
        trace.cut(mark);
    }
}

/// Decodes the trace at `eip` from `page`, whose bytes a guest may change with nobody told: instructions that follow each
/// other, up to the first that stores anything, since that may be to the trace itself. What is behind it is then looked at
/// again before it is executed, as the processor does (SDM vol. 3, §8.1.3).
pub fn decode_checked(vcpu: &Vcpu, eip: u32, page: &[u8; FRAME_SIZE], trace: &mut Trace) {
    trace.begin(eip);
    let mut decoder = Decoder::new(32, page, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    while trace.instructions.len() < MAX_CHECKED {
        let Ok(insn) = one(&vcpu.model, &mut decoder, trace.next) else { break };
        trace.push_from(page, insn);
        let reads =
            |access| matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        let stores = info.info(&insn).used_memory().iter().any(|m| !reads(m.access()));
        let goes_on = matches!(insn.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        if stores || !goes_on || (trace.next ^ eip) & !0xfff != 0 {
            break;
        }
    }
}

/// Decodes the instruction at the end of `page` together with the page after it. Fetching both is what the processor
/// is about to do, so setting the accessed bit is right.
fn straddling(vcpu: &Vcpu, page: &[u8; FRAME_SIZE], trace: &mut Trace) {
    let user = vcpu.privilege().is_user();
    // Code does not wrap: a fetch beyond 4 GiB is beyond the segment's limit.
    let Some(next) = (trace.eip & !0xfff).checked_add(FRAME_SIZE as u32) else { return };
    let Ok(second) = walk(&vcpu.mmu.ram, &vcpu.state, next, Access::Execute, user) else { return };
    let tail = &page[trace.eip as usize % FRAME_SIZE..];
    let mut bytes = [0; 30];
    if tail.len() > 15 || !vcpu.mmu.ram.read(second.gpa, &mut bytes[tail.len()..tail.len() + 15]) {
        return;
    }
    bytes[..tail.len()].copy_from_slice(tail);
    let mut decoder = Decoder::with_ip(32, &bytes[..tail.len() + 15], trace.eip as u64, DecoderOptions::NONE);
    let insn = decoder.decode();
    if decoder.last_error() == DecoderError::None && insn.len() > tail.len() && offered(&vcpu.model, &insn) {
        trace.push(insn, &bytes[..insn.len()]);
        trace.second = Some(second.gpa & !0xfff);
    }
}

/// False if the guest's processor is short of a feature that the host has and `insn` needs.
fn offered(model: &CpuModel, insn: &Instruction) -> bool {
    !model.reduced() || features::available(model, insn)
}

/// The instruction at `at`, if it is valid, of this processor, and ends inside the page that `decoder` is over.
fn one(model: &CpuModel, decoder: &mut Decoder<'_>, at: u32) -> Result<Instruction, DecoderError> {
    // The offset lies inside the page.
    let _ = decoder.set_position(at as usize % FRAME_SIZE);
    decoder.set_ip(at as u64);
    let insn = decoder.decode();
    match decoder.last_error() {
        DecoderError::None if insn.len() <= 15 && offered(model, &insn) => Ok(insn),
        DecoderError::None => Err(DecoderError::InvalidInstruction),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::translate::tests::{CODE, machine};

    /// The trace at CODE of `program`, where `known` is translated already: its instructions, and where it goes on.
    fn trace(program: &[u8], known: u32) -> (usize, u32) {
        let v = machine(program);
        let (mut page, mut trace) = ([0; FRAME_SIZE], Trace::default());
        assert!(v.mmu.ram.read(CODE as u64, &mut page));
        decode(&v, CODE, &page, |eip| eip == CODE + known, &mut trace);
        assert_eq!(trace.bytes.len(), trace.instructions.iter().map(Instruction::len).sum::<usize>());
        (trace.instructions.len(), trace.next - CODE)
    }

    #[test]
    fn a_branch_soon_after_what_is_known_is_taken_in() {
        // inc eax; (known) cmp byte [eax], 0; jne; nop
        assert_eq!(trace(&[0x40, 0x80, 0x38, 0, 0x75, 0xfa, 0x90], 1), (3, 6));
        // jmp over ud2; (known) dec ecx; jne; nop
        assert_eq!(trace(&[0xeb, 2, 0x0f, 0x0b, 0x49, 0x75, 0xfd, 0x90], 4), (3, 7));
        // inc eax; (known) pop ebx; ret
        assert_eq!(trace(&[0x40, 0x5b, 0xc3], 1).0, 3);
        // inc eax; (known) a call, or no branch for long, or none at all
        assert_eq!(trace(&[0x40, 0xe8, 0, 0, 0, 0, 0x75, 0], 1), (1, 1));
        assert_eq!(trace(&[[0x40; 12].as_slice(), &[0x75, 0]].concat(), 1), (1, 1));
        assert_eq!(trace(&[0x40, 0x40, 0x0f, 0x0b], 1), (1, 1));
    }
}
