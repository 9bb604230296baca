//! Which handler executes an instruction: one table by mnemonic, with the width taken from the operands.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::alu::{self, kind as alu_kind};
use super::bits::{self, kind as bit_kind};
use super::decode::width_of;
use super::operand::{Handler, IMM, NONE, Op, flag};
use super::shift::{self, kind as shift_kind};
use super::{control, io, moves, multiply, random, segments, simd, stack, string, system};
use crate::cpu::{Vcpu, eflags, seg};
use crate::engine::features::{announced, available};

/// The instance of a handler for an operand of `$width` bytes.
macro_rules! sized {
    ($width:expr, $f:path $(, $k:expr)?) => {{
        use $f as handler;
        match $width {
            1 => handler::<u8 $(, { $k })?> as Handler,
            2 => handler::<u16 $(, { $k })?>,
            _ => handler::<u32 $(, { $k })?>,
        }
    }};
}

/// The instance of a handler for each condition code.
macro_rules! by_condition {
    ($cc:expr, $f:path) => {{
        use $f as handler;
        const TABLE: [Handler; 16] = [
            handler::<0>,
            handler::<1>,
            handler::<2>,
            handler::<3>,
            handler::<4>,
            handler::<5>,
            handler::<6>,
            handler::<7>,
            handler::<8>,
            handler::<9>,
            handler::<10>,
            handler::<11>,
            handler::<12>,
            handler::<13>,
            handler::<14>,
            handler::<15>,
        ];
        TABLE[$cc as usize & 15]
    }};
}

/// Completes `op` with what executes it.
pub(super) fn select(v: &Vcpu, i: &Instruction, op: &mut Op) {
    if let Some(run) = integer(i, op) {
        op.run = if available(&v.model, i) { run } else { substitute(i, op).unwrap_or(control::undefined) };
        return;
    }
    if simd::is_simd(i.code()) {
        op.flags |= flag::FULL;
    } else if i.cpuid_features().iter().all(|f| announced(&v.model, *f)) {
        op.flags |= flag::FULL | flag::UNSUPPORTED;
    }
}

/// The handler of an integer or system instruction; None for those of other rooms.
fn integer(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if i.condition_code() != ConditionCode::None
        && let Some(run) = conditional(i, op)
    {
        return Some(run);
    }
    arithmetic(i, op)
        .or_else(|| data_moves(i, op))
        .or_else(|| bit_operations(i, op))
        .or_else(|| strings(i, op))
        .or_else(|| transfers(i, op))
        .or_else(|| system_group(i))
}

fn conditional(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let code = (i.condition_code() as u16).wrapping_sub(1) & 15;
    op.imm2 = code;
    if i.is_jcc_short_or_near() {
        return Some(by_condition!(code, control::jcc));
    }
    if i.is_setcc() {
        return Some(moves::setcc);
    }
    i.is_cmovcc().then(|| sized!(op.size, moves::cmov))
}

trait Kinds {
    fn is_setcc(&self) -> bool;
    fn is_cmovcc(&self) -> bool;
}

impl Kinds for Instruction {
    fn is_setcc(&self) -> bool {
        (Code::Seto_rm8..=Code::Setg_rm8).contains(&self.code())
    }
    fn is_cmovcc(&self) -> bool {
        (Code::Cmovo_r16_rm16..=Code::Cmovg_r64_rm64).contains(&self.code())
    }
}

fn arithmetic(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let w = op.size;
    Some(match i.mnemonic() {
        Mnemonic::Add => sized!(w, alu::binary, alu_kind::ADD),
        Mnemonic::Or => sized!(w, alu::binary, alu_kind::OR),
        Mnemonic::Adc => sized!(w, alu::binary, alu_kind::ADC),
        Mnemonic::Sbb => sized!(w, alu::binary, alu_kind::SBB),
        Mnemonic::And => sized!(w, alu::binary, alu_kind::AND),
        Mnemonic::Sub => sized!(w, alu::binary, alu_kind::SUB),
        Mnemonic::Xor => sized!(w, alu::binary, alu_kind::XOR),
        Mnemonic::Cmp => sized!(w, alu::compare, alu_kind::CMP),
        Mnemonic::Test => sized!(w, alu::compare, alu_kind::TEST),
        Mnemonic::Inc => sized!(w, alu::inc),
        Mnemonic::Dec => sized!(w, alu::dec),
        Mnemonic::Neg => sized!(w, alu::neg),
        Mnemonic::Not => sized!(w, alu::not),
        Mnemonic::Mul => sized!(w, multiply::mul),
        Mnemonic::Div => sized!(w, multiply::div),
        Mnemonic::Idiv => sized!(w, multiply::idiv),
        Mnemonic::Imul => match i.op_count() {
            1 => sized!(w, multiply::imul1),
            n => {
                if n == 2 {
                    op.third = op.dst;
                }
                sized!(w, multiply::imul)
            }
        },
        Mnemonic::Daa => multiply::daa,
        Mnemonic::Das => multiply::das,
        Mnemonic::Aaa => multiply::aaa,
        Mnemonic::Aas => multiply::aas,
        Mnemonic::Aam => multiply::aam,
        Mnemonic::Aad => multiply::aad,
        Mnemonic::Rol => sized!(w, shift::shift, shift_kind::ROL),
        Mnemonic::Ror => sized!(w, shift::shift, shift_kind::ROR),
        Mnemonic::Rcl => sized!(w, shift::shift, shift_kind::RCL),
        Mnemonic::Rcr => sized!(w, shift::shift, shift_kind::RCR),
        Mnemonic::Shl | Mnemonic::Sal => sized!(w, shift::shift, shift_kind::SHL),
        Mnemonic::Shr => sized!(w, shift::shift, shift_kind::SHR),
        Mnemonic::Sar => sized!(w, shift::shift, shift_kind::SAR),
        Mnemonic::Shld => sized!(w, shift::shld),
        Mnemonic::Shrd => sized!(w, shift::shrd),
        Mnemonic::Crc32 => sized!(width_of(i, 1), alu::crc32),
        _ => return None,
    })
}

/// Segment, control or debug register, if operand `n` is one.
fn special_register(i: &Instruction, n: u32) -> Option<Register> {
    (i.op_kind(n) == OpKind::Register).then(|| i.op_register(n)).filter(|r| !r.is_gpr())
}

fn data_moves(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let w = op.size;
    Some(match i.mnemonic() {
        Mnemonic::Mov => match (special_register(i, 0), special_register(i, 1)) {
            (Some(r), _) if r.is_segment_register() => segments::mov_to_segment,
            (_, Some(r)) if r.is_segment_register() => segments::mov_from_segment,
            (Some(r), _) if r.is_cr() => system::mov_to_cr,
            (_, Some(r)) if r.is_cr() => system::mov_from_cr,
            (Some(r), _) if r.is_dr() => system::mov_to_dr,
            (_, Some(r)) if r.is_dr() => system::mov_from_dr,
            (None, None) => sized!(w, moves::mov),
            _ => return None,
        },
        Mnemonic::Movzx => sized!(width_of(i, 1), moves::movzx),
        Mnemonic::Movsx => sized!(width_of(i, 1), moves::movsx),
        Mnemonic::Movbe => sized!(w, moves::movbe),
        Mnemonic::Lea => moves::lea,
        Mnemonic::Xchg => {
            if op.src == super::operand::MEM {
                std::mem::swap(&mut op.dst, &mut op.src);
            }
            sized!(w, alu::xchg)
        }
        Mnemonic::Xadd => sized!(w, alu::xadd),
        Mnemonic::Cmpxchg => sized!(w, alu::cmpxchg),
        Mnemonic::Cmpxchg8b => alu::cmpxchg8b,
        Mnemonic::Bswap => moves::bswap,
        Mnemonic::Cbw | Mnemonic::Cwde => moves::cbw,
        Mnemonic::Cwd | Mnemonic::Cdq => moves::cwd,
        Mnemonic::Salc => moves::salc,
        Mnemonic::Lahf => moves::lahf,
        Mnemonic::Sahf => moves::sahf,
        Mnemonic::Xlatb => system::xlat,
        Mnemonic::Clc => flag_bits(op, eflags::CF, 0),
        Mnemonic::Stc => flag_bits(op, eflags::CF, eflags::CF),
        Mnemonic::Cmc => flag_bits(op, 0, eflags::CF),
        Mnemonic::Cld => flag_bits(op, eflags::DF, 0),
        Mnemonic::Std => flag_bits(op, eflags::DF, eflags::DF),
        Mnemonic::Les => load_far(op, seg::ES),
        Mnemonic::Lds => load_far(op, seg::DS),
        Mnemonic::Lss => load_far(op, seg::SS),
        Mnemonic::Lfs => load_far(op, seg::FS),
        Mnemonic::Lgs => load_far(op, seg::GS),
        _ => return None,
    })
}

fn flag_bits(op: &mut Op, clear: u32, flip: u32) -> Handler {
    (op.imm, op.disp) = (clear, flip);
    moves::flag_bits
}

fn load_far(op: &mut Op, which: usize) -> Handler {
    op.third = which as u8;
    segments::load_far
}

fn bit_operations(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let w = op.size;
    Some(match i.mnemonic() {
        Mnemonic::Bt => sized!(w, bits::bit_test, bit_kind::BT),
        Mnemonic::Bts => sized!(w, bits::bit_test, bit_kind::BTS),
        Mnemonic::Btr => sized!(w, bits::bit_test, bit_kind::BTR),
        Mnemonic::Btc => sized!(w, bits::bit_test, bit_kind::BTC),
        Mnemonic::Bsf => sized!(w, bits::bsf),
        Mnemonic::Bsr => sized!(w, bits::bsr),
        Mnemonic::Tzcnt => sized!(w, bits::tzcnt),
        Mnemonic::Lzcnt => sized!(w, bits::lzcnt),
        Mnemonic::Popcnt => sized!(w, bits::popcnt),
        Mnemonic::Andn => bits::andn,
        Mnemonic::Blsi => bits::blsi,
        Mnemonic::Blsmsk => bits::blsmsk,
        Mnemonic::Blsr => bits::blsr,
        Mnemonic::Bextr => bits::bextr,
        Mnemonic::Bzhi => bits::bzhi,
        Mnemonic::Mulx => bits::mulx,
        Mnemonic::Pdep => bits::pdep,
        Mnemonic::Pext => bits::pext,
        Mnemonic::Rorx => bits::rorx,
        Mnemonic::Sarx => bits::sarx,
        Mnemonic::Shlx => bits::shlx,
        Mnemonic::Shrx => bits::shrx,
        Mnemonic::Adcx => bits::adcx,
        Mnemonic::Adox => bits::adox,
        _ => return None,
    })
}

fn strings(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if matches!(i.mnemonic(), Mnemonic::In | Mnemonic::Out) {
        return Some(match i.mnemonic() {
            Mnemonic::In => sized!(width_of(i, 0), io::in_),
            _ => sized!(width_of(i, 1), io::out),
        });
    }
    if !i.is_string_instruction() {
        return None;
    }
    let w = match i.mnemonic() {
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => width_of(i, 1),
        _ => i.memory_size().size() as u8,
    };
    op.size = w;
    Some(match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd => sized!(w, string::movs),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd => sized!(w, string::cmps),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd => sized!(w, string::stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd => sized!(w, string::lods),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd => sized!(w, string::scas),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => sized!(w, string::ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => sized!(w, string::outs),
        _ => return None,
    })
}

fn transfers(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let relative = matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32);
    let direct = matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    let segment = i.op_count() > 0 && special_register(i, 0).is_some_and(|r| r.is_segment_register());
    Some(match i.mnemonic() {
        Mnemonic::Jmp if relative => control::jmp_relative,
        Mnemonic::Jmp if direct => control::far_jmp_direct,
        Mnemonic::Jmp if i.is_jmp_far_indirect() => control::far_jmp_indirect,
        Mnemonic::Jmp => control::jmp_indirect,
        Mnemonic::Call if relative => control::call_relative,
        Mnemonic::Call if direct => control::far_call_direct,
        Mnemonic::Call if i.is_call_far_indirect() => control::far_call_indirect,
        Mnemonic::Call => control::call_indirect,
        Mnemonic::Ret => control::ret,
        Mnemonic::Retf => control::retf,
        Mnemonic::Iret | Mnemonic::Iretd => control::iret,
        Mnemonic::Loop => control::loop_,
        Mnemonic::Loope => control::loope,
        Mnemonic::Loopne => control::loopne,
        Mnemonic::Jcxz | Mnemonic::Jecxz => control::jcxz,
        Mnemonic::Int => control::int,
        Mnemonic::Int3 => control::int3,
        Mnemonic::Int1 => control::int1,
        Mnemonic::Into => control::into,
        Mnemonic::Sysenter => control::sysenter,
        Mnemonic::Sysexit => control::sysexit,
        Mnemonic::Push if segment => stack::push_segment,
        Mnemonic::Pop if segment => stack::pop_segment,
        Mnemonic::Push => stack::push,
        Mnemonic::Pop => stack::pop,
        Mnemonic::Pusha | Mnemonic::Pushad => stack::pusha,
        Mnemonic::Popa | Mnemonic::Popad => stack::popa,
        Mnemonic::Pushf | Mnemonic::Pushfd => stack::pushf,
        Mnemonic::Popf | Mnemonic::Popfd => stack::popf,
        Mnemonic::Enter => stack::enter,
        Mnemonic::Leave => stack::leave,
        Mnemonic::Bound => stack::bound,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Rsm => control::undefined,
        Mnemonic::Nop | Mnemonic::Pause | Mnemonic::Reservednop | Mnemonic::Endbr32 | Mnemonic::Endbr64 => control::nop,
        _ if is_hint(i.code()) => control::nop,
        _ => return None,
    })
    .inspect(|_| op.third = if op.third == IMM { NONE } else { op.third })
}

/// Encodings in the hint space (0F 0D, 0F 18 to 0F 1F), which do nothing where their feature is absent.
fn is_hint(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Prefetch_m8
            | Prefetchw_m8
            | Prefetchwt1_m8
            | Prefetchreserved3_m8
            | Prefetchreserved4_m8
            | Prefetchreserved5_m8
            | Prefetchreserved6_m8
            | Prefetchreserved7_m8
            | Prefetchnta_m8
            | Prefetcht0_m8
            | Prefetcht1_m8
            | Prefetcht2_m8
            | Rdsspd_r32
            | Cldemote_m8
            | Prefetchit0_m8
            | Prefetchit1_m8
    )
}

fn system_group(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Hlt => system::hlt,
        Mnemonic::Cli => system::cli,
        Mnemonic::Sti => system::sti,
        Mnemonic::Cpuid => system::cpuid,
        Mnemonic::Rdtsc => system::rdtsc,
        Mnemonic::Rdtscp => system::rdtscp,
        Mnemonic::Rdpmc => system::rdpmc,
        Mnemonic::Rdmsr => system::rdmsr,
        Mnemonic::Wrmsr => system::wrmsr,
        Mnemonic::Rdrand => random::rdrand,
        Mnemonic::Rdseed => random::rdseed,
        Mnemonic::Clts => system::clts,
        Mnemonic::Lmsw => system::lmsw,
        Mnemonic::Smsw => segments::smsw,
        Mnemonic::Invlpg => system::invlpg,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => system::cache_flush,
        Mnemonic::Clflush => system::line_flush,
        Mnemonic::Lgdt => segments::lgdt,
        Mnemonic::Lidt => segments::lidt,
        Mnemonic::Sgdt => segments::sgdt,
        Mnemonic::Sidt => segments::sidt,
        Mnemonic::Lldt => segments::lldt,
        Mnemonic::Ltr => segments::ltr,
        Mnemonic::Sldt => segments::sldt,
        Mnemonic::Str => segments::str_,
        Mnemonic::Lar => segments::lar,
        Mnemonic::Lsl => segments::lsl,
        Mnemonic::Verr => segments::verr,
        Mnemonic::Verw => segments::verw,
        Mnemonic::Arpl => segments::arpl,
        _ => return None,
    })
}

/// Without their feature LZCNT and TZCNT are BSR and BSF with an ignored prefix.
fn substitute(i: &Instruction, op: &Op) -> Option<Handler> {
    match i.mnemonic() {
        Mnemonic::Tzcnt => Some(sized!(op.size, bits::bsf)),
        Mnemonic::Lzcnt => Some(sized!(op.size, bits::bsr)),
        _ => None,
    }
}
