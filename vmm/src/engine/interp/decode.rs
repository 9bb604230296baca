//! From bytes to an [`Op`]: fetch with exact faults, decode with iced-x86, digest.

use iced_x86::{CodeSize, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

use super::operand::{IMM, MEM, NONE, Op, flag};
use super::{control, select};
use crate::cpu::{Flow, Stop, Unsupported, Vcpu, seg};
use crate::mmu::Access;

/// The longest instruction (SDM vol. 2, §2.3.11); anything longer is #GP(0).
pub(super) const MAX_LENGTH: usize = 15;

/// A decoded instruction with what it was decoded from.
pub(super) struct Decoded {
    pub op: Op,
    /// The full instruction; its IP is where it was decoded.
    pub full: Instruction,
}

/// Decodes the first instruction of `bytes`, which lies at `eip` in a segment of `wide` (32-bit) or 16-bit code. None if
/// it goes on beyond `bytes`. An encoding that does not exist gives an op that raises #UD.
pub(super) fn decode(v: &Vcpu, bytes: &[u8], eip: u32, wide: bool) -> Option<Decoded> {
    let mut decoder = Decoder::with_ip(if wide { 32 } else { 16 }, bytes, eip as u64, DecoderOptions::NONE);
    let full = decoder.decode();
    if full.is_invalid() {
        if decoder.last_error() == DecoderError::NoMoreBytes || too_long(bytes, &full, wide) {
            return None;
        }
        let op = Op { run: control::undefined, len: full.len().max(1) as u8, ..EMPTY };
        return Some(Decoded { op, full });
    }
    let mut op = digest(&full);
    select::select(v, &full, &mut op);
    Some(Decoded { op, full })
}

/// True if an invalid instruction is one that goes on beyond the 15th byte. The decoder calls that invalid, not short, so
/// it is asked again without the first byte, which in an instruction that long is a prefix.
fn too_long(bytes: &[u8], full: &Instruction, wide: bool) -> bool {
    if bytes.len() < MAX_LENGTH || full.len() < MAX_LENGTH {
        return false;
    }
    let mut decoder = Decoder::new(if wide { 32 } else { 16 }, &bytes[1..MAX_LENGTH], DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

const EMPTY: Op = Op {
    run: control::undefined,
    imm: 0,
    disp: 0,
    imm2: 0,
    full: 0,
    len: 1,
    size: 4,
    dst: NONE,
    src: NONE,
    third: NONE,
    seg: seg::DS as u8,
    base: NONE,
    index: NONE,
    scale: 0,
    flags: 0,
};

/// The parts of `i` that handlers use, with no handler yet.
fn digest(i: &Instruction) -> Op {
    let mut op = Op { len: i.len() as u8, size: operand_size(i), ..EMPTY };
    if i.has_rep_prefix() {
        op.flags |= flag::REP;
    }
    if i.has_repne_prefix() {
        op.flags |= flag::REPNE;
    }
    if i.op_code().address_size() == 16 {
        op.flags |= flag::ADDR16;
    }
    for n in 0..i.op_count().min(3) {
        let place = place(i, n, &mut op);
        match n {
            0 => op.dst = place,
            1 => op.src = place,
            _ => op.third = place,
        }
    }
    op
}

fn place(i: &Instruction, n: u32, op: &mut Op) -> u8 {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).number() as u8,
        OpKind::NearBranch16 | OpKind::NearBranch32 => {
            op.imm = (i.near_branch_target() as u32).wrapping_sub(i.next_ip32());
            IMM
        }
        OpKind::FarBranch16 => {
            (op.imm, op.imm2) = (i.far_branch16() as u32, i.far_branch_selector());
            IMM
        }
        OpKind::FarBranch32 => {
            (op.imm, op.imm2) = (i.far_branch32(), i.far_branch_selector());
            IMM
        }
        OpKind::Immediate8_2nd => {
            op.imm2 = i.immediate8_2nd() as u16;
            IMM
        }
        OpKind::Memory => {
            memory(i, op);
            MEM
        }
        OpKind::MemorySegSI | OpKind::MemorySegDI => {
            op.flags |= flag::ADDR16;
            op.seg = i.memory_segment().number() as u8;
            MEM
        }
        OpKind::MemorySegESI | OpKind::MemorySegEDI => {
            op.seg = i.memory_segment().number() as u8;
            MEM
        }
        OpKind::MemoryESDI => {
            op.flags |= flag::ADDR16;
            MEM
        }
        OpKind::MemoryESEDI => MEM,
        _ => {
            op.imm = i.immediate(n) as u32;
            IMM
        }
    }
}

fn memory(i: &Instruction, op: &mut Op) {
    let part = |r: Register| if r == Register::None { NONE } else { r.number() as u8 };
    let (base, index) = (i.memory_base(), i.memory_index());
    op.base = part(base);
    op.index = part(index);
    op.scale = i.memory_index_scale().trailing_zeros() as u8;
    op.disp = i.memory_displacement64() as u32;
    op.seg = i.memory_segment().number() as u8;
    let short = match (base, index) {
        (Register::None, Register::None) => i.memory_displ_size() == 2,
        (Register::None, index) => index.size() == 2,
        (base, _) => base.size() == 2,
    };
    if short {
        op.flags |= flag::ADDR16;
    }
}

/// Bytes of operand `n`.
pub(super) fn width_of(i: &Instruction, n: u32) -> u8 {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size() as u8,
        OpKind::Immediate8 | OpKind::Immediate8_2nd => 1,
        _ => i.memory_size().size() as u8,
    }
}

/// The operand-size attribute where the encoding has one, else the first operand's size.
fn operand_size(i: &Instruction) -> u8 {
    match i.op_code().operand_size() {
        16 => 2,
        32 => 4,
        _ if i.op_count() > 0 => width_of(i, 0),
        _ if i.code_size() == CodeSize::Code16 => 2,
        _ => 4,
    }
}

/// Instructions decoded lately, found by their bytes: valid whatever happens to memory and mappings. For code that the
/// decode cache does not hold.
pub(super) struct Recent(Box<[Option<Remembered>; RECENT]>);

const RECENT: usize = 512;

/// What follows the instruction is part of the key, which saves finding its length first.
struct Remembered {
    bytes: [u8; MAX_LENGTH],
    wide: bool,
    decoded: Decoded,
}

impl Recent {
    pub fn new() -> Self {
        Self(Box::new([const { None }; RECENT]))
    }

    /// Fetches and decodes the instruction at CS:EIP with the faults of an instruction fetch: #GP(0) beyond the
    /// segment's limit or for more than 15 bytes, #PF with the address of the first byte that cannot be fetched. Returns
    /// its bytes too, with what follows them.
    pub fn fetch(&mut self, v: &mut Vcpu) -> Flow<(&Decoded, &[u8; MAX_LENGTH])> {
        let cs = v.state.seg[seg::CS];
        let eip = v.state.eip;
        if eip > cs.limit {
            return Err(Stop::gp(0));
        }
        let allowed = ((cs.limit - eip) as usize).saturating_add(1).min(MAX_LENGTH);
        let linear = cs.base.wrapping_add(eip);
        let mut bytes = [0; MAX_LENGTH];
        let wide = cs.big();
        let first = allowed.min(0x1000 - (linear & 0xfff) as usize);
        let mut got = v.fetch(linear, &mut bytes[..first])?;
        // The next page is fetched, and marked accessed, only by an instruction that goes on there.
        if first < allowed && runs_over(&bytes[..first], wide) {
            let rest = v.fetch(linear.wrapping_add(first as u32), &mut bytes[first..allowed]);
            got += rest.unwrap_or(0);
        }
        let slot = &mut self.0[slot(&bytes)];
        let known = slot.as_ref().is_some_and(|r| r.bytes == bytes && r.wide == wide && got == MAX_LENGTH);
        if !known {
            let Some(decoded) = decode(v, &bytes[..got], eip, wide) else {
                if got < allowed {
                    v.physical(linear.wrapping_add(got as u32), Access::Execute, v.privilege())?;
                }
                return Err(Stop::gp(0));
            };
            *slot = Some(Remembered { bytes, wide, decoded });
        }
        slot.as_ref().map(|r| (&r.decoded, &r.bytes)).ok_or_else(Stop::ud)
    }
}

/// True if `bytes` are the beginning of an instruction that goes on beyond them.
fn runs_over(bytes: &[u8], wide: bool) -> bool {
    let mut decoder = Decoder::new(if wide { 32 } else { 16 }, bytes, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// Where instructions that begin with `bytes` are remembered.
fn slot(bytes: &[u8; MAX_LENGTH]) -> usize {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let mixed = (word(0) ^ word(4).rotate_left(9) ^ word(8).rotate_left(18)).wrapping_mul(0x9e37_79b1);
    (mixed >> 16) as usize % RECENT
}

/// Names an instruction that the guest may use by CPUID but that is not implemented. `start` is its EIP.
#[cold]
pub(super) fn unsupported(v: &Vcpu, full: &Instruction, start: u32) -> Stop {
    let features: Vec<String> = full.cpuid_features().iter().map(|f| format!("{f:?}")).collect();
    Stop::Unsupported(Box::new(Unsupported {
        instruction: full.to_string(),
        cs: v.state.seg[seg::CS].selector,
        eip: start,
        feature: format!("{:?} ({})", full.code(), features.join(", ")),
    }))
}
