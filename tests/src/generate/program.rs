//! Programs with control flow: jumps, loops, calls, stack frames, strings, code that rewrites itself, and at ring 0 what
//! only ring 0 may do, between random instructions.
//!
//! Instructions name labels by made-up addresses; the block encoder resolves them.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use rand::Rng;

use super::assemble::{Program, encode};
use super::{Generated, Generator, build, flags, mask_underflow, splits_lock, suits_block, values};
use crate::oracle::layout::DATA;

/// Bytes of a program at most.
const MAX_BYTES: usize = 600;
/// Where a loop counts.
const COUNTER: u32 = DATA + 0x1ff0;
/// General registers that are freely written: not ESP, and not EBX and EBP, which memory operands use.
const FREE: [Register; 5] = [Register::EAX, Register::ECX, Register::EDX, Register::ESI, Register::EDI];
const ALL: [Register; 8] = build::GPR;

impl Generator {
    /// A program of about `length` instructions, for ring 0 if `supervisor`.
    pub fn program(&mut self, length: usize, supervisor: bool) -> Generated {
        loop {
            let mut case = self.state();
            let bases = (values::target(&mut self.rng), values::target(&mut self.rng));
            (case.gpr[3], case.gpr[5]) = bases;
            let mut p = Program { all: vec![], addresses: vec![], undefined: 0, bases };
            while p.all.len() < length {
                match self.rng.random_range(0..20) {
                    0..=6 => self.random_instruction(&mut p, &mut case, supervisor),
                    7..=11 => self.stack_work(&mut p),
                    12..=14 => self.jump(&mut p),
                    15 => self.calls(&mut p),
                    16 => self.string(&mut p),
                    17 => self.rewrite(&mut p),
                    18 if supervisor => self.privileged(&mut p),
                    _ => self.flag_work(&mut p),
                }
            }
            let Some((code, addresses)) = encode(&mut p) else { continue };
            if code.len() > MAX_BYTES {
                continue;
            }
            case.code = code;
            return Generated {
                case,
                instructions: p.all,
                undefined: p.undefined,
                group: super::codes::Group::Integer,
                addresses,
            };
        }
    }

    /// About `length` user-mode instructions, repeated some thousand times, with the stack where it was each time.
    pub fn looped(&mut self, length: usize) -> Generated {
        loop {
            let mut case = self.state();
            let near = |rng: &mut rand::rngs::SmallRng| DATA + 0x400 + 16 * rng.random_range(0..0x100);
            let bases = (near(&mut self.rng), near(&mut self.rng));
            (case.gpr[3], case.gpr[5]) = bases;
            let mut p = Program { all: vec![], addresses: vec![], undefined: 0, bases };
            let counter = MemoryOperand::with_displ(COUNTER as u64, 4);
            p.all.extend(Instruction::with2(Code::Mov_rm32_imm32, counter, self.rng.random_range(500..4000)).ok());
            for (register, value) in [(Register::ESP, case.gpr[4]), (Register::EBP, bases.1), (Register::EBX, bases.0)]
            {
                p.two(Code::Mov_r32_imm32, register, value as i32);
            }
            while p.all.len() < length {
                match self.rng.random_range(0..16) {
                    0..=4 => self.random_instruction(&mut p, &mut case, false),
                    5..=9 => self.stack_work(&mut p),
                    10 | 11 => self.jump(&mut p),
                    12 => self.calls(&mut p),
                    13 => self.string(&mut p),
                    _ => self.flag_work(&mut p),
                }
            }
            p.all.extend(Instruction::with2(Code::Sub_rm32_imm8, counter, 1).ok());
            p.branch(Code::Jne_rel32_32, 1);
            let Some((code, addresses)) = encode(&mut p).filter(|(code, _)| code.len() <= MAX_BYTES) else { continue };
            case.code = code;
            let group = super::codes::Group::Integer;
            return Generated { case, instructions: p.all, undefined: p.undefined, group, addresses };
        }
    }

    fn label(&mut self, p: &Program) -> usize {
        let here = p.all.len();
        match self.rng.random_range(0..8) {
            0 => self.rng.random_range(0..=here),
            _ => here + 1 + self.rng.random_range(0..8),
        }
    }

    fn free(&mut self) -> Register {
        FREE[self.rng.random_range(0..FREE.len())]
    }

    fn random_instruction(&mut self, p: &mut Program, case: &mut crate::oracle::Case, supervisor: bool) {
        let (code, _) = self.codes[self.rng.random_range(0..self.codes.len())];
        let Some(mut insn) = build::in_block(&mut self.rng, code, p.bases.0, p.bases.1) else { return };
        if supervisor && reconfigures(&insn) || !suits_block(&insn) || splits_lock(&insn, case) {
            return;
        }
        // Where EBX and EBP point by then is not known.
        let locks = insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg;
        if locks && insn.memory_base() != Register::None {
            return;
        }
        if insn.memory_base() != Register::None && !insn.is_vsib() && self.rng.random_ratio(1, 3) {
            insn.set_memory_base(Register::ESP);
            insn.set_memory_displacement64(self.rng.random_range(-32i64..64) as u32 as u64);
        }
        mask_underflow(&insn, case);
        p.add(insn);
        let undefined = flags(insn.rflags_undefined());
        if undefined != 0 {
            p.undefined |= undefined;
            let with = self.rng.random_range(0..4);
            p.two(Code::Cmp_rm32_imm8, FREE[with], 3);
        }
    }

    fn stack_work(&mut self, p: &mut Program) {
        let r = ALL[self.rng.random_range(0..8)];
        let free = self.free();
        let near = |rng: &mut rand::rngs::SmallRng| {
            let index = [Register::None, Register::None, Register::ECX][rng.random_range(0..3)];
            MemoryOperand::new(Register::ESP, index, 1, rng.random_range(-64i64..64), 1, false, Register::None)
        };
        match self.rng.random_range(0..22) {
            0..=3 => p.one(Code::Push_r32, r),
            4..=6 => p.one(Code::Pop_r32, free),
            7 => p.all.extend(Instruction::with1(Code::Push_rm32, near(&mut self.rng)).ok()),
            8 => p.all.extend(Instruction::with1(Code::Pop_rm32, near(&mut self.rng)).ok()),
            9 => p.all.extend(Instruction::with2(Code::Mov_r32_rm32, free, near(&mut self.rng)).ok()),
            10 => p.all.extend(Instruction::with2(Code::Mov_rm32_r32, near(&mut self.rng), r).ok()),
            11 => p.two(Code::Sub_rm32_imm8, Register::ESP, 4 * self.rng.random_range(0..16)),
            12 => p.two(Code::Add_rm32_imm8, Register::ESP, 4 * self.rng.random_range(0..16)),
            13 => p.all.extend(Instruction::with2(Code::Lea_r32_m, Register::ESP, near(&mut self.rng)).ok()),
            14 => {
                p.one(Code::Push_r32, Register::EBP);
                p.all.extend(Instruction::with2(Code::Mov_r32_rm32, Register::EBP, Register::ESP).ok());
                p.two(Code::Sub_rm32_imm8, Register::ESP, 16);
            }
            15 => p.all.push(Instruction::with(Code::Leaved)),
            16 => p.all.extend(Instruction::with2(Code::Mov_r32_rm32, Register::ESP, Register::EBP).ok()),
            17 => p.one(Code::Pop_r32, Register::ESP),
            18 => p.all.extend(Instruction::with2(Code::Xchg_rm32_r32, Register::EBP, Register::ESP).ok()),
            19 => p.all.push(Instruction::with([Code::Pushad, Code::Popad][self.rng.random_range(0..2)])),
            20 => p.two(Code::And_rm32_imm8, Register::ESP, -16),
            _ => p.one([Code::Push_r16, Code::Pop_r16][self.rng.random_range(0..2)], Register::AX),
        }
    }

    fn jump(&mut self, p: &mut Program) {
        use Code::*;
        const CONDITIONS: [Code; 16] = [
            Jo_rel32_32,
            Jno_rel32_32,
            Jb_rel32_32,
            Jae_rel32_32,
            Je_rel32_32,
            Jne_rel32_32,
            Jbe_rel32_32,
            Ja_rel32_32,
            Js_rel32_32,
            Jns_rel32_32,
            Jp_rel32_32,
            Jnp_rel32_32,
            Jl_rel32_32,
            Jge_rel32_32,
            Jle_rel32_32,
            Jg_rel32_32,
        ];
        let label = self.label(p);
        match self.rng.random_range(0..10) {
            0..=4 => p.branch(CONDITIONS[self.rng.random_range(0..16)], label),
            5 => p.branch(Jmp_rel32_32, p.all.len() + 1 + self.rng.random_range(0..4)),
            6 => p.branch(Jecxz_rel8_32, label),
            7 | 8 => {
                // A loop around what was generated last.
                p.two(Mov_r32_imm32, Register::ECX, self.rng.random_range(1..12));
                let head = p.all.len();
                for _ in 0..self.rng.random_range(1..4) {
                    self.stack_work(p);
                }
                let code = [Loop_rel8_32_ECX, Loope_rel8_32_ECX, Loopne_rel8_32_ECX]
                    [[0, 0, 0, 1, 2][self.rng.random_range(0..5)]];
                p.branch(code, head);
            }
            _ => {
                p.two(Mov_r32_imm32, Register::EDX, self.rng.random_range(1..12));
                let head = p.all.len();
                self.flag_work(p);
                p.one(Dec_r32, Register::EDX);
                p.branch(Jne_rel32_32, head);
            }
        }
    }

    fn calls(&mut self, p: &mut Program) {
        let label = self.label(p);
        let free = self.free();
        match self.rng.random_range(0..7) {
            0 | 1 => p.branch(Code::Call_rel32_32, label),
            2 => p.add(Instruction::with(Code::Retnd)),
            3 => p.all.extend(Instruction::with1(Code::Retnd_imm16, 4 * self.rng.random_range(0..4)).ok()),
            4 => {
                p.address(Some(free), label);
                p.one([Code::Jmp_rm32, Code::Call_rm32][self.rng.random_range(0..2)], free);
            }
            5 => {
                p.address(None, label);
                p.add(Instruction::with(Code::Retnd));
            }
            _ => {
                // Call over a function, which returns.
                let end = p.all.len();
                p.branch(Code::Jmp_rel32_32, end + 4);
                self.flag_work(p);
                p.all.truncate(end + 2);
                p.all.resize(end + 2, Instruction::with(Code::Nopd));
                p.one(Code::Push_r32, free);
                p.all[end + 1] = Instruction::with1(Code::Pop_r32, Register::EAX).unwrap_or_default();
                p.add(Instruction::with(Code::Retnd));
                p.branch(Code::Call_rel32_32, end + 1);
            }
        }
    }

    fn string(&mut self, p: &mut Program) {
        use Code::*;
        const STRINGS: [Code; 15] = [
            Movsb_m8_m8,
            Movsw_m16_m16,
            Movsd_m32_m32,
            Stosb_m8_AL,
            Stosw_m16_AX,
            Stosd_m32_EAX,
            Lodsb_AL_m8,
            Lodsw_AX_m16,
            Lodsd_EAX_m32,
            Scasb_AL_m8,
            Scasw_AX_m16,
            Scasd_EAX_m32,
            Cmpsb_m8_m8,
            Cmpsw_m16_m16,
            Cmpsd_m32_m32,
        ];
        let (from, to) = (values::target(&mut self.rng), values::target(&mut self.rng));
        p.two(Mov_r32_imm32, Register::ESI, from as i32);
        match self.rng.random_ratio(1, 12) {
            // To the program itself.
            true => {
                let label = self.label(p);
                p.address(Some(Register::EDI), label);
            }
            false => p.two(Mov_r32_imm32, Register::EDI, to as i32),
        }
        p.two(Mov_r32_imm32, Register::ECX, self.rng.random_range(0..90));
        let code = STRINGS[self.rng.random_range(0..15)];
        p.all.extend(build::in_block(&mut self.rng, code, p.bases.0, p.bases.1));
        if self.rng.random_ratio(1, 4) {
            p.add(Instruction::with(Cld));
        }
    }

    /// A store into the page of the code itself.
    fn rewrite(&mut self, p: &mut Program) {
        if self.rng.random_ratio(1, 2) {
            return self.flag_work(p);
        }
        let index = p.all.len();
        let label = (index + self.rng.random_range(0..12)).saturating_sub(4);
        let free = self.free();
        p.address(Some(free), label);
        let at = MemoryOperand::new(free, Register::None, 1, 0, 0, false, Register::None);
        match self.rng.random_range(0..3) {
            0 => p.all.extend(
                Instruction::with2(Code::Mov_rm8_imm8, at, [0x90, 0x40, 0xf8, 0xcc][self.rng.random_range(0..4)]).ok(),
            ),
            1 => p.all.extend(Instruction::with2(Code::Mov_rm32_imm32, at, 0x4240_9040).ok()),
            _ => p.all.extend(Instruction::with2(Code::Xor_rm8_imm8, at, 0).ok()),
        }
    }

    fn flag_work(&mut self, p: &mut Program) {
        use Code::*;
        let (a, b) = (self.free(), ALL[self.rng.random_range(0..8)]);
        let pair =
            [Add_r32_rm32, Adc_r32_rm32, Sbb_r32_rm32, Sub_r32_rm32, Cmp_r32_rm32, Cmovb_r32_rm32, Cmovle_r32_rm32];
        match self.rng.random_range(0..14) {
            0..=5 => p.all.extend(Instruction::with2(pair[self.rng.random_range(0..7)], a, b).ok()),
            6 => p.one(Inc_r32, a),
            7 => p.one([Setb_rm8, Seto_rm8, Setp_rm8][self.rng.random_range(0..3)], Register::AL),
            8 => p.add(Instruction::with([Lahf, Sahf, Cmc, Stc, Clc][self.rng.random_range(0..5)])),
            9 => p.add(Instruction::with(Pushfd)),
            10 => {
                p.add(Instruction::with(Pushfd));
                p.one(Pop_r32, a);
            }
            11 => {
                // Any flags but, mostly, TF.
                let value = self.rng.random::<u32>() & if self.rng.random_ratio(1, 8) { !0 } else { !0x4_4100 };
                p.all.extend(Instruction::with1(Pushd_imm32, value as i32).ok());
                p.add(Instruction::with(Popfd));
            }
            12 => p.two(Add_rm32_imm32, a, values::word(&mut self.rng) as i32),
            _ => p.add(Instruction::with([Cli, Sti, Std, Cld][[0, 1, 1, 2, 3, 3][self.rng.random_range(0..6)]])),
        }
    }

    fn privileged(&mut self, p: &mut Program) {
        use Code::*;
        let a = self.free();
        let target = values::target(&mut self.rng);
        let at = MemoryOperand::new(Register::None, Register::None, 1, target as i64, 4, false, Register::None);
        match self.rng.random_range(0..12) {
            0 | 1 => p.add(Instruction::with(Cli)),
            2 | 3 => p.add(Instruction::with(Sti)),
            4 => {
                p.add(Instruction::with(Pushfd));
                p.add(Instruction::with(Cli));
                self.flag_work(p);
                p.add(Instruction::with(Popfd));
            }
            5 => p.all.extend(Instruction::with1(Invlpg_m, at).ok()),
            6 => {
                p.all.extend(Instruction::with2(Mov_r32_cr, a, Register::CR3).ok());
                p.all.extend(Instruction::with2(Mov_cr_r32, Register::CR3, a).ok());
            }
            7 => p.all.extend(
                Instruction::with2(
                    Mov_r32_cr,
                    a,
                    [Register::CR0, Register::CR2, Register::CR4][self.rng.random_range(0..3)],
                )
                .ok(),
            ),
            8 => p.add(Instruction::with(Clts)),
            9 => {
                p.two(
                    Mov_r32_imm32,
                    Register::EAX,
                    [0x10, 0x38, 0x40, 0x23, 0x08, 0, 0x28][self.rng.random_range(0..7)],
                );
                let to =
                    [Register::DS, Register::ES, Register::FS, Register::GS, Register::SS][self.rng.random_range(0..5)];
                p.all.extend(Instruction::with2(Mov_Sreg_r32m16, to, Register::EAX).ok());
            }
            _ => p.add(Instruction::with(Hlt)),
        }
    }
}

/// Would take the processor out of the setting that a case is about.
fn reconfigures(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let system = |r: Register| r.is_cr() || r.is_dr() || r.is_tr();
    matches!(insn.mnemonic(), Lgdt | Lidt | Lldt | Ltr | Lmsw | Hlt | Xsetbv)
        || insn.mnemonic() == Mov && insn.op0_kind() == OpKind::Register && system(insn.op0_register())
}
