//! Native execution: makes the stub, feeds it the guest's state, and decides what of the result the guest gets.

use std::collections::HashMap;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::area::{HEADER, fsw};
use super::classify::Entry;
use super::native::{Frame, Slot, StubMemory};
use super::{operand, rules, underflow};
use crate::cpu::{Flow, Stop, Vcpu, cr4, eflags, vector};
use crate::mmu::Access;

/// The six exception flags of MXCSR; the masks are seven bits higher.
const MXCSR_FLAGS: u32 = 0x3f;
const MXCSR_MASKS: u32 = MXCSR_FLAGS << 7;
const MXCSR_UE: u32 = 1 << 4;
const MXCSR_UM: u32 = MXCSR_UE << 7;
const MXCSR_FTZ: u32 = 1 << 15;
/// Invalid, denormal and divide-by-zero: found before anything is computed.
const BEFORE: u32 = 7;
/// x87 exceptions that, unmasked, keep a store from happening: invalid, overflow, underflow (SDM vol. 1, §8.5).
const X87_NO_STORE: u16 = 1 | 1 << 3 | 1 << 4;

/// A stub and what its instruction does with memory.
#[derive(Clone, Copy)]
struct Stub {
    slot: Slot,
    memory: Option<(Access, u32)>,
}

/// The part of an interpreter that runs x87, MMX, SSE and AVX instructions: a cache of stubs, and a frame to run on.
pub struct SimdUnit {
    memory: Result<StubMemory, String>,
    stubs: HashMap<[u8; 16], Stub>,
    frame: Box<Frame>,
}

impl Default for SimdUnit {
    fn default() -> Self {
        Self::new()
    }
}

impl SimdUnit {
    /// An empty cache. Executable memory is mapped here, once; if the host refuses it, the first instruction that needs
    /// it stops the VM with the reason.
    pub fn new() -> Self {
        Self { memory: StubMemory::new(), stubs: HashMap::new(), frame: Frame::new() }
    }

    /// Executes a data instruction: load, run, check, store, commit. A fault leaves the guest's state as it was, but for
    /// MXCSR's exception flags: the computation comes before the store.
    pub(super) fn run(&mut self, vcpu: &mut Vcpu, insn: &Instruction, bytes: &[u8], entry: &Entry) -> Flow<()> {
        let stub = self.stub(vcpu, insn, bytes, entry)?;
        let who = vcpu.privilege();
        if let Some((Access::Read, size)) = stub.memory {
            let linear = operand::locate(vcpu, insn, size, Access::Read, alignment(entry, size))?;
            operand::load(vcpu, linear, &mut self.frame.operand[..size as usize], who)?;
        }
        self.execute(vcpu, stub.slot);
        self.check_simd(vcpu, insn).inspect_err(|_| enter_mmx(vcpu, insn, entry))?;
        if entry.tracked {
            self.track(vcpu, insn, bytes);
        }
        if let Some((Access::Write, size)) = stub.memory
            && self.stored(entry)
        {
            self.put(vcpu, insn, entry, size).inspect_err(|_| {
                // A store of an MMX register that faults has moved TOP already, though no tag.
                if entry.enters_mmx(insn) {
                    vcpu.state.xsave.set_top(0);
                }
            })?;
        }
        vcpu.state.gpr = self.frame.gpr;
        vcpu.state.eflags = vcpu.state.eflags & !eflags::ARITH | self.frame.flags as u32 & eflags::ARITH;
        vcpu.state.xsave.clone_from(&self.frame.area);
        Ok(())
    }

    /// Stores the result of `size` bytes: all or nothing, but for ten-byte results, whose first eight bytes stay if the
    /// last two fault.
    fn put(&self, vcpu: &mut Vcpu, insn: &Instruction, entry: &Entry, size: u32) -> Flow<()> {
        let linear = operand::locate(vcpu, insn, size, Access::Write, alignment(entry, size))?;
        let who = vcpu.privilege();
        let pieces = if size == 10 { [0..8, 8..10] } else { [0..size, size..size] };
        for piece in pieces.into_iter().filter(|p| !p.is_empty()) {
            let at = linear.wrapping_add(piece.start);
            vcpu.probe_write(at, piece.len() as u32, who)?;
            operand::store(vcpu, at, &self.frame.operand[piece.start as usize..piece.end as usize], who)?;
        }
        Ok(())
    }

    /// Runs the stub on a copy of the guest's state that cannot make this process fault: SIMD exceptions masked and
    /// their flags clear, and a pending x87 exception (which the instruction does not look at) out of sight.
    fn execute(&mut self, vcpu: &Vcpu, slot: Slot) {
        let frame = &mut *self.frame;
        let guest = &vcpu.state.xsave;
        frame.area.clone_from(guest);
        frame.area.0[HEADER] = frame.components() as u8;
        // Flush-to-zero is in force only while underflow is masked (SDM vol. 1, §10.2.3.3).
        let ineffective = if guest.mxcsr() & MXCSR_UM == 0 { MXCSR_FTZ } else { 0 };
        frame.area.set_mxcsr(guest.mxcsr() & !(MXCSR_FLAGS | ineffective) | MXCSR_MASKS);
        let pending = if guest.x87_pending() { guest.fsw() & fsw::EXCEPTIONS } else { 0 };
        frame.area.set_fsw(guest.fsw() & !pending);
        frame.gpr = vcpu.state.gpr;
        frame.flags = (vcpu.state.eflags & eflags::ARITH | eflags::FIXED) as u64;
        if let Ok(memory) = &self.memory {
            memory.run(slot, frame);
        }
        frame.area.0[HEADER] = 7;
        frame.area.set_fsw(frame.area.fsw() | pending);
        // What the host recorded about its last x87 instruction is about the stub.
        frame.area.set_fop(guest.fop());
        frame.area.set_fip(guest.fip());
        frame.area.set_fdp(guest.fdp());
        frame.area.0[28..32].copy_from_slice(&guest.0[28..32]);
    }

    /// Adds the flags that the instruction raised to the guest's MXCSR; #XM if one of them is unmasked. An unmasked
    /// invalid, denormal or divide exception comes before the computation and keeps its flags from being seen; an
    /// unmasked underflow needs no loss of accuracy (SDM vol. 1, §4.9.1.5 and §11.5.3).
    fn check_simd(&mut self, vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
        let mxcsr = vcpu.state.xsave.mxcsr();
        let unmasked = !(mxcsr >> 7) & MXCSR_FLAGS;
        if unmasked & MXCSR_UE != 0 && underflow::hidden(insn) {
            return Err(rules::unsupported(vcpu, insn, "a dot product with underflow unmasked in MXCSR".into()));
        }
        let mut raised = self.frame.area.mxcsr() & MXCSR_FLAGS;
        if raised & unmasked & BEFORE != 0 {
            raised &= BEFORE;
        } else if unmasked & MXCSR_UE != 0 && underflow::tiny(insn, &self.frame.area, &self.frame.operand) {
            raised |= MXCSR_UE;
        }
        self.frame.area.set_mxcsr(mxcsr | raised);
        vcpu.state.xsave.set_mxcsr(mxcsr | raised);
        if raised & unmasked == 0 {
            return Ok(());
        }
        let handled = vcpu.state.cr4 & cr4::OSXMMEXCPT != 0;
        Err(if handled { Stop::plain(vector::XM) } else { Stop::ud() })
    }

    /// Updates the last-instruction pointers: FIP always, FOP and FDP if the instruction raised an unmasked exception
    /// (SDM vol. 1, §8.1.8; CPUID.7.0:EBX bit 6).
    fn track(&mut self, vcpu: &Vcpu, insn: &Instruction, bytes: &[u8]) {
        let area = &mut self.frame.area;
        area.set_fip(rules::start(vcpu, insn));
        if !area.x87_pending() {
            return;
        }
        if let Some(at) = bytes.iter().position(|b| (0xd8..=0xdf).contains(b)) {
            let second = bytes.get(at + 1).copied().unwrap_or(0);
            area.set_fop((bytes[at] as u16 & 7) << 8 | second as u16);
        }
        if (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
            area.set_fdp(operand::effective(vcpu, insn).1);
        }
    }

    /// False if an x87 store did not happen, because it raised an unmasked exception that forbids it.
    fn stored(&self, entry: &Entry) -> bool {
        let area = &self.frame.area;
        !(entry.tracked && area.fsw() & !area.fcw() & X87_NO_STORE != 0)
    }

    fn stub(&mut self, vcpu: &Vcpu, insn: &Instruction, bytes: &[u8], entry: &Entry) -> Flow<Stub> {
        let mut key = [0; 16];
        let n = bytes.len().min(15);
        key[..n].copy_from_slice(&bytes[..n]);
        key[15] = insn.code_size() as u8;
        if let Some(stub) = self.stubs.get(&key) {
            return Ok(*stub);
        }
        if let Some(missing) = entry.features.iter().find(|f| !rules::host_has(**f)) {
            return Err(rules::unsupported(vcpu, insn, format!("{missing:?} on the host")));
        }
        if self.frame.components() == 0 {
            return Err(rules::unsupported(vcpu, insn, "XSAVE on the host".into()));
        }
        let stub = self.make(insn).map_err(|why| rules::unsupported(vcpu, insn, why))?;
        self.stubs.insert(key, stub);
        Ok(stub)
    }

    fn make(&mut self, insn: &Instruction) -> Result<Stub, String> {
        let encoded = encode(insn)?;
        let memory = self.memory.as_mut().map_err(|e| format!("executable memory ({e})"))?;
        let slot = match memory.add(&encoded) {
            Some(slot) => slot,
            None => {
                self.stubs.clear();
                memory.clear();
                memory.add(&encoded).ok_or("a shorter encoding")?
            }
        };
        Ok(Stub { slot, memory: memory_use(insn) })
    }
}

/// The step from x87 to MMX comes before an instruction that uses both worlds computes, and stays if it faults.
fn enter_mmx(vcpu: &mut Vcpu, insn: &Instruction, entry: &Entry) {
    if entry.enters_mmx(insn) {
        vcpu.state.xsave.enter_mmx();
    }
}

/// Alignment that the memory operand must have.
fn alignment(entry: &Entry, size: u32) -> u32 {
    if entry.aligned && size >= 16 { size } else { 1 }
}

/// How the instruction uses its memory operand, and the operand's size in bytes.
fn memory_use(insn: &Instruction) -> Option<(Access, u32)> {
    let operand = (0..insn.op_count()).find(|i| insn.op_kind(*i) == OpKind::Memory)?;
    let access = match InstructionInfoFactory::new().info(insn).op_access(operand) {
        OpAccess::Write | OpAccess::CondWrite => Access::Write,
        _ => Access::Read,
    };
    Some((access, insn.memory_size().size() as u32))
}

/// The instruction as the stub runs it in 64-bit mode: memory at `[r8]`, ESP in r9d, no prefix that is not part of the
/// opcode. Encoding again also normalises the VEX bits that 32-bit mode ignores.
fn encode(insn: &Instruction) -> Result<Vec<u8>, String> {
    let mut native = *insn;
    native.set_segment_prefix(Register::None);
    native.set_has_rep_prefix(false);
    native.set_has_repne_prefix(false);
    native.set_has_lock_prefix(false);
    for i in 0..native.op_count() {
        match native.op_kind(i) {
            OpKind::Register if native.op_register(i) == Register::ESP => native.set_op_register(i, Register::R9D),
            OpKind::Memory => {
                native.set_memory_base(Register::R8);
                native.set_memory_index(Register::None);
                native.set_memory_index_scale(1);
                native.set_memory_displacement64(0);
                native.set_memory_displ_size(0);
            }
            _ => {}
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&native, 0).map_err(|e| format!("an encoding in 64-bit mode ({e})"))?;
    Ok(encoder.take_buffer())
}
