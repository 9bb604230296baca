//! Random instructions and straight-line blocks, with states that let most of them complete and some of them fault.

mod assemble;
mod build;
pub mod codes;
mod program;
pub mod values;

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, RflagsBits,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::oracle::Case;
use crate::oracle::layout::{CODE, CODE_BYTES, PAGE};
use codes::Group;

/// EFLAGS that a user-mode program always sees: IF and bit 1.
const FLAGS_FIXED: u32 = 0x202;
const FLAGS_ARITHMETIC: u32 = 0x8d5;
const FLAGS_DF: u32 = 0x400;
const FLAGS_AC: u32 = 0x4_0000;

/// A case with what a comparison needs to know of it.
#[derive(Clone, Debug)]
pub struct Generated {
    /// What to run.
    pub case: Case,
    /// The instructions, in order.
    pub instructions: Vec<Instruction>,
    /// EFLAGS bits that the manual leaves undefined at some point.
    pub undefined: u32,
    /// Group of the first instruction.
    pub group: Group,
    /// Where in the code there are 32-bit addresses, counted from [`CODE`], that move with it.
    pub addresses: Vec<usize>,
}

/// A source of cases; equal seeds give equal cases.
pub struct Generator {
    rng: SmallRng,
    codes: Vec<(Code, Group)>,
}

impl Generator {
    /// All instructions for which `wanted` holds.
    pub fn new(seed: u64, wanted: impl Fn(Code, Group) -> bool) -> Self {
        let codes: Vec<_> = codes::all().into_iter().filter(|(c, g)| wanted(*c, *g)).collect();
        assert!(!codes.is_empty(), "nothing to generate");
        Self { rng: SmallRng::seed_from_u64(seed), codes }
    }

    /// How many different instructions there are.
    pub fn variety(&self) -> usize {
        self.codes.len()
    }

    /// Contents for the writable data pages.
    pub fn image(&mut self) -> Vec<u8> {
        values::image(&mut self.rng)
    }

    /// One random instruction, sometimes with prefixes that it does not need.
    pub fn single(&mut self) -> Generated {
        loop {
            let (code, group) = self.codes[self.rng.random_range(0..self.codes.len())];
            let mut case = self.state();
            case.start = self.start();
            let Some(insn) = build::instruction(&mut self.rng, code, &mut case) else { continue };
            if code == Code::Xsave_mem {
                // EDX:EAX may name only the components that the guest's processor has.
                let fixed = |r: Register| matches!(r.full_register32(), Register::EAX | Register::EDX);
                if fixed(insn.memory_base()) || fixed(insn.memory_index()) {
                    continue;
                }
                (case.gpr[0], case.gpr[2]) = (self.rng.random_range(0..8), 0);
            }
            let Some(mut bytes) = encode(&insn, case.start) else { continue };
            if self.rng.random_ratio(1, 12) {
                self.add_prefix(&mut bytes);
            }
            if (case.start & (PAGE - 1)) as usize + bytes.len() > PAGE as usize {
                continue;
            }
            let decoded = decode(&bytes, case.start);
            let unfit = decoded.is_invalid() || decoded.len() != bytes.len() || codes::group(decoded.code()).is_none();
            // Save areas that wrap at 64 KiB: the interpreter does not split them.
            let wraps = decoded.memory_size().size() >= 512 && decoded.memory_base().size() == 2;
            if unfit || wraps || splits_lock(&decoded, &case) {
                continue;
            }
            case.code = bytes;
            mask_underflow(&decoded, &mut case);
            return Generated {
                case,
                undefined: flags(decoded.rflags_undefined()),
                instructions: vec![decoded],
                group,
                addresses: vec![],
            };
        }
    }

    /// One instruction with a byte of its encoding changed: often undefined, and then both sides must say so.
    pub fn damaged(&mut self) -> Generated {
        loop {
            let mut all = self.single();
            let bytes = &mut all.case.code;
            let at = self.rng.random_range(0..bytes.len().min(5));
            bytes[at] = if self.rng.random_ratio(1, 2) {
                bytes[at] ^ 1 << self.rng.random_range(0..8)
            } else {
                self.rng.random()
            };
            let decoded = decode(bytes, all.case.start);
            // What follows are INT3 bytes, so a longer encoding is still the same on both sides; only its meaning counts.
            let mut padded = bytes.clone();
            padded.resize(15, 0xcc);
            let decoded = if decoded.is_invalid() { decode(&padded, all.case.start) } else { decoded };
            let start = all.case.start as u64;
            // Group 0F 01 is full of calls to a hypervisor, which the host may be under.
            if bytes.windows(2).any(|w| w == [0x0f, 0x01]) {
                continue;
            }
            let loops = (start..start + decoded.len() as u64).contains(&decoded.near_branch_target());
            if decoded.is_invalid() {
                all.undefined = 0;
                // How many bytes of an undefined instruction are fetched is its own question: not at the page's end.
                all.case.start = CODE + 0x100;
            } else if loops || decoded.code() == Code::Xsave_mem || splits_lock(&decoded, &all.case) {
                continue;
            } else if codes::group(decoded.code()).is_some() {
                all.undefined = flags(decoded.rflags_undefined());
            } else {
                continue;
            }
            if !decoded.is_invalid() {
                all.case.code.truncate(decoded.len());
            }
            mask_underflow(&decoded, &mut all.case);
            all.instructions = vec![decoded];
            return all;
        }
    }

    /// Up to `length` instructions in a row. Flags that one leaves undefined are not read by a later one. EBX and EBP
    /// are not written, so that memory operands stay in reach.
    pub fn block(&mut self, length: usize) -> Generated {
        let mut case = self.state();
        let mut result: Option<Generated> = None;
        let mut open = 0;
        let (bx, bp) = (values::target(&mut self.rng), values::target(&mut self.rng));
        (case.gpr[3], case.gpr[5]) = (bx, bp);
        for _ in 0..length * 3 {
            let (code, group) = self.codes[self.rng.random_range(0..self.codes.len())];
            let at = case.start + case.code.len() as u32;
            let Some(insn) = build::in_block(&mut self.rng, code, bx, bp) else { continue };
            let Some(bytes) = encode(&insn, at) else { continue };
            let decoded = decode(&bytes, at);
            let fits = case.code.len() + bytes.len() <= CODE_BYTES;
            if decoded.is_invalid() || !fits || !suits_block(&decoded) || flags(decoded.rflags_read()) & open != 0 {
                continue;
            }
            if splits_lock(&decoded, &case) {
                continue;
            }
            case.code.extend(bytes);
            mask_underflow(&decoded, &mut case);
            let undefined = flags(decoded.rflags_undefined());
            open = open & !settled(&decoded) | undefined;
            let all = result.get_or_insert_with(|| Generated {
                case: case.clone(),
                instructions: vec![],
                undefined: 0,
                group,
                addresses: vec![],
            });
            all.instructions.push(decoded);
            all.undefined |= undefined;
            if all.instructions.len() == length {
                break;
            }
        }
        match result {
            Some(mut all) => {
                all.case = case;
                all
            }
            None => self.single(),
        }
    }

    fn state(&mut self) -> Case {
        let rng = &mut self.rng;
        let mut gpr = std::array::from_fn(|_| values::word(rng));
        // The stack, and where strings come from and go to.
        gpr[4] = values::target(rng) & !3;
        for i in [5, 6, 7] {
            if rng.random_ratio(3, 4) {
                gpr[i] = values::target(rng);
            }
        }
        if rng.random_ratio(3, 4) {
            gpr[1] = rng.random_range(0..40);
        }
        let mut eflags = FLAGS_FIXED | (rng.random::<u32>() & FLAGS_ARITHMETIC);
        if rng.random_ratio(1, 8) {
            eflags |= FLAGS_DF;
        }
        if rng.random_ratio(1, 3) {
            eflags |= FLAGS_AC;
        }
        Case { gpr, eflags, start: CODE + 0x100, code: vec![], xsave: values::xsave(rng) }
    }

    fn start(&mut self) -> u32 {
        match self.rng.random_range(0..20) {
            0 => CODE + PAGE - self.rng.random_range(1..16),
            1 => CODE,
            _ => CODE + 0x100,
        }
    }

    fn add_prefix(&mut self, bytes: &mut Vec<u8>) {
        const PREFIXES: [u8; 10] = [0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0xf0];
        for _ in 0..self.rng.random_range(1..3) {
            if bytes.len() < 15 {
                bytes.insert(0, PREFIXES[self.rng.random_range(0..PREFIXES.len())]);
            }
        }
    }
}

/// True for a locked access across cache lines, which the host's kernel may punish with a long sleep.
fn splits_lock(insn: &Instruction, case: &Case) -> bool {
    use iced_x86::Mnemonic::{Bt, Btc, Btr, Bts, Xchg};
    if !insn.has_lock_prefix() && insn.mnemonic() != Xchg {
        return false;
    }
    let value = |r: Register| {
        let index = build::GPR.iter().position(|g| *g == r.full_register32())?;
        let mask = if r.size() == 2 { 0xffff } else { u32::MAX };
        Some((case.gpr[index] & mask) as u64)
    };
    let Some(memory) = (0..insn.op_count()).find(|i| insn.op_kind(*i) == OpKind::Memory) else { return false };
    let address = insn.virtual_address(memory, 0, |r, _, _| if r.is_segment_register() { Some(0) } else { value(r) });
    let Some(address) = address else { return true };
    let size = insn.memory_size().size() as u64;
    // Bit strings reach further by whole operands.
    let line = if matches!(insn.mnemonic(), Bt | Btc | Btr | Bts) { size } else { 64 };
    address % line + size > line
}

/// Dot products with underflow unmasked are not supported: see the interpreter's `underflow`.
fn mask_underflow(insn: &Instruction, case: &mut Case) {
    use iced_x86::Mnemonic::{Dppd, Dpps, Vdppd, Vdpps};
    if matches!(insn.mnemonic(), Dpps | Dppd | Vdpps | Vdppd) {
        case.xsave[25] |= 8;
    }
}

/// Flags that `insn` gives a value whatever its operands are: a count of zero leaves all as they were.
fn settled(insn: &Instruction) -> u32 {
    use iced_x86::Mnemonic::*;
    let shifts = matches!(insn.mnemonic(), Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd);
    let last = insn.op_count().saturating_sub(1);
    // Through CF as many times as the operand and it have bits is not at all.
    let through = matches!(insn.mnemonic(), Rcl | Rcr);
    let known = !through && insn.op_kind(last) == OpKind::Immediate8 && insn.immediate8() & 31 != 0;
    let repeated = insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix());
    match shifts && !known || repeated {
        true => 0,
        false => flags(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set()),
    }
}

/// In a block: no branches, nothing that moves ESP by more than a push or pop, EBX and EBP untouched.
fn suits_block(insn: &Instruction) -> bool {
    use iced_x86::FlowControl::Next;
    use iced_x86::Mnemonic::*;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(insn);
    let writes = |r: Register| {
        info.used_registers().iter().any(|u| {
            let written =
                !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess);
            written && u.register().full_register32() == r
        })
    };
    let pushes = matches!(insn.mnemonic(), Push | Pop | Pushfd | Pushf | Pushad);
    insn.flow_control() == Next
        && !writes(Register::EBX)
        && !writes(Register::EBP)
        && (pushes || !writes(Register::ESP))
        && !matches!(insn.mnemonic(), Popf | Popfd | Ldmxcsr | Vldmxcsr | Fxrstor | Xsave)
}

fn encode(insn: &Instruction, at: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(32);
    encoder.encode(insn, at as u64).ok()?;
    Some(encoder.take_buffer())
}

fn decode(bytes: &[u8], at: u32) -> Instruction {
    Decoder::with_ip(32, bytes, at as u64, DecoderOptions::NONE).decode()
}

/// iced's flag set as EFLAGS bits.
fn flags(bits: u32) -> u32 {
    [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
        (RflagsBits::DF, 1 << 10),
    ]
    .into_iter()
    .fold(0, |all, (bit, flag)| if bits & bit != 0 { all | flag } else { all })
}
