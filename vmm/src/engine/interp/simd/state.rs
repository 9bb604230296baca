//! Instructions that save, restore or configure state: FXSAVE, XSAVE and relatives, XCR0, MXCSR (SDM vol. 1, §10.5 and
//! chapter 13). Every one works on the guest's own area: nothing of the host shows.

use iced_x86::{Code, Instruction};

use super::area::{HEADER, LEGACY_END, MXCSR_MASK, ST, XMM, YMM_HIGH};
use super::operand;
use crate::cpu::{Flow, Stop, Vcpu, XsaveArea, cr0, cr4, reg, vector};
use crate::mmu::Access;

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// End of what 32-bit code reaches of the AVX component: eight upper halves.
const AVX_END: usize = YMM_HIGH + 8 * 16;
/// End of the header.
const HEADER_END: usize = HEADER + 64;

/// Executes a state instruction.
pub fn execute(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    use Code::*;
    match insn.code() {
        Fxsave_m512byte => fxsave(vcpu, insn),
        Fxrstor_m512byte => fxrstor(vcpu, insn),
        Xsave_mem => xsave(vcpu, insn),
        Xrstor_mem => xrstor(vcpu, insn),
        Xgetbv => xgetbv(vcpu),
        Xsetbv => xsetbv(vcpu),
        Ldmxcsr_m32 | VEX_Vldmxcsr_m32 => load_mxcsr(vcpu, insn),
        Stmxcsr_m32 | VEX_Vstmxcsr_m32 => store_mxcsr(vcpu, insn),
        _ => Err(Stop::ud()),
    }
}

fn load_mxcsr(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    let linear = operand::locate(vcpu, insn, 4, Access::Read, 1)?;
    let value: u32 = vcpu.load(linear, vcpu.privilege())?;
    check_mxcsr(value)?;
    vcpu.state.xsave.set_mxcsr(value);
    Ok(())
}

fn store_mxcsr(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    let linear = operand::locate(vcpu, insn, 4, Access::Write, 1)?;
    vcpu.store(linear, vcpu.state.xsave.mxcsr(), vcpu.privilege())
}

/// Setting a reserved bit of MXCSR is #GP(0).
fn check_mxcsr(value: u32) -> Flow<()> {
    if value & !MXCSR_MASK != 0 { Err(Stop::gp(0)) } else { Ok(()) }
}

fn check_fxsave(vcpu: &Vcpu) -> Flow<()> {
    if vcpu.state.cr0 & (cr0::TS | cr0::EM) != 0 { Err(Stop::plain(vector::NM)) } else { Ok(()) }
}

/// #AC for a save area to be stored: it comes even before the segment's type is looked at.
fn check_alignment(vcpu: &Vcpu, insn: &Instruction) -> Flow<()> {
    let (segment, offset) = operand::effective(vcpu, insn);
    let segment = &vcpu.state.seg[segment];
    if !segment.usable() {
        return Ok(());
    }
    operand::check_alignment(vcpu, segment.base.wrapping_add(offset), 512)
}

fn fxsave(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    check_fxsave(vcpu)?;
    check_alignment(vcpu, insn)?;
    let linear = operand::locate(vcpu, insn, 512, Access::Write, 16)?;
    let mut image = vcpu.state.xsave.0;
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    let who = vcpu.privilege();
    // The processor tries the last byte first.
    vcpu.probe_write(linear.wrapping_add(511), 1, who)?;
    vcpu.probe_write(linear, 1, who)?;
    operand::store(vcpu, linear, &image[..LEGACY_END], who)
}

fn fxrstor(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    check_fxsave(vcpu)?;
    let linear = operand::locate(vcpu, insn, 512, Access::Read, 16)?;
    let mut image = [0; 512];
    let who = vcpu.privilege();
    // The processor tries the last byte first.
    vcpu.probe(linear.wrapping_add(511), Access::Read, who)?;
    operand::load(vcpu, linear, &mut image, who)?;
    let mxcsr = u32_at(&image, 24);
    check_mxcsr(mxcsr)?;
    let area = &mut vcpu.state.xsave;
    load_x87(area, &image);
    area.0[XMM..LEGACY_END].copy_from_slice(&image[XMM..LEGACY_END]);
    area.set_mxcsr(mxcsr);
    Ok(())
}

/// Loads the x87 component from a legacy region.
fn load_x87(area: &mut XsaveArea, image: &[u8]) {
    let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    for i in 0..8 {
        area.0[ST + 16 * i..][..10].copy_from_slice(&image[ST + 16 * i..][..10]);
    }
    // The image holds the registers relative to its own TOP: nothing rotates.
    area.set_fsw(word(2));
    area.set_fcw(word(0));
    area.set_tags(image[4]);
    area.set_fop(word(6));
    area.set_fip(u32_at(image, 8));
    area.set_fdp(u32_at(image, 16));
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
}
fn u64_at(image: &[u8], at: usize) -> u64 {
    u32_at(image, at) as u64 | (u32_at(image, at + 4) as u64) << 32
}

/// #UD without CR4.OSXSAVE, #NM with CR0.TS: every XSAVE instruction on memory. Returns the requested components.
fn check_xsave(vcpu: &Vcpu) -> Flow<u64> {
    if vcpu.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::ud());
    }
    if vcpu.state.cr0 & cr0::TS != 0 {
        return Err(Stop::plain(vector::NM));
    }
    let requested = vcpu.state.gpr[reg::EDX] as u64;
    Ok((requested << 32 | vcpu.state.gpr[reg::EAX] as u64) & vcpu.state.xcr0)
}

/// Components that are not in their initial configuration (XINUSE, SDM vol. 1, §13.6).
fn in_use(area: &XsaveArea) -> u64 {
    let initial = XsaveArea::default();
    let same = |a: usize, b: usize| area.0[a..b] == initial.0[a..b];
    let x87 = same(0, 24) && same(ST, XMM);
    let sse = same(XMM, LEGACY_END);
    let avx = same(YMM_HIGH, AVX_END);
    let bit = |initial: bool, component| if initial { 0 } else { component };
    bit(x87, X87) | bit(sse, SSE) | bit(avx, AVX)
}

/// Bytes of an area for `requested` components, the halves that only 64-bit code reaches included.
fn area_size(requested: u64) -> u32 {
    if requested & AVX != 0 { size_of::<XsaveArea>() as u32 } else { HEADER_END as u32 }
}

fn xsave(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    let requested = check_xsave(vcpu)?;
    let size = area_size(requested);
    check_alignment(vcpu, insn)?;
    let linear = operand::locate(vcpu, insn, size, Access::Write, 64)?;
    let who = vcpu.privilege();
    // The processor tries the last byte first.
    vcpu.probe_write(linear.wrapping_add(size - 1), 1, who)?;
    vcpu.probe_write(linear, 1, who)?;
    let used = in_use(&vcpu.state.xsave);
    let image = vcpu.state.xsave.0;
    let put = |vcpu: &mut Vcpu, from: usize, to: usize| {
        operand::store(vcpu, linear.wrapping_add(from as u32), &image[from..to], who)
    };
    if requested & X87 != 0 {
        put(vcpu, 0, 24)?;
        put(vcpu, ST, XMM)?;
    }
    if requested & (SSE | AVX) != 0 {
        let both = vcpu.state.xsave.mxcsr() as u64 | (MXCSR_MASK as u64) << 32;
        vcpu.store(linear.wrapping_add(24), both, who)?;
    }
    if requested & SSE != 0 {
        put(vcpu, XMM, LEGACY_END)?;
    }
    if requested & AVX != 0 {
        put(vcpu, YMM_HIGH, AVX_END)?;
    }
    // XSTATE_BV keeps what was not requested.
    let header = linear.wrapping_add(HEADER as u32);
    let old: u64 = vcpu.load(header, who)?;
    vcpu.store(header, old & !requested | requested & used, who)
}

fn xrstor(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    let requested = check_xsave(vcpu)?;
    let who = vcpu.privilege();
    let size = area_size(requested);
    let linear = operand::locate(vcpu, insn, size, Access::Read, 64)?;
    // The processor looks at XCOMP_BV, then tries the last byte, then believes the header.
    vcpu.probe(linear.wrapping_add(HEADER as u32 + 8), Access::Read, who)?;
    vcpu.probe(linear.wrapping_add(size - 1), Access::Read, who)?;
    let mut image = [0; size_of::<XsaveArea>()];
    operand::load(vcpu, linear, &mut image[..HEADER_END], who)?;
    let present = u64_at(&image, HEADER);
    check_header(&image, present, vcpu.state.xcr0)?;
    let loaded = requested & present;
    if loaded & AVX != 0 {
        let from = linear.wrapping_add(YMM_HIGH as u32);
        operand::load(vcpu, from, &mut image[YMM_HIGH..AVX_END], who)?;
    }
    // The standard form loads MXCSR whenever it is requested, whether or not SSE is present.
    let mxcsr = (requested & (SSE | AVX) != 0).then(|| u32_at(&image, 24));
    check_mxcsr(mxcsr.unwrap_or(0))?;
    commit(&mut vcpu.state.xsave, &image, requested, loaded);
    if let Some(mxcsr) = mxcsr {
        vcpu.state.xsave.set_mxcsr(mxcsr);
    }
    Ok(())
}

/// #GP(0) for a header that names components which are not enabled, or asks for the compacted format, which CPUID does
/// not announce (SDM vol. 1, §13.8.1).
fn check_header(image: &[u8], present: u64, xcr0: u64) -> Flow<()> {
    let reserved = image[HEADER + 8..HEADER + 24].iter().any(|b| *b != 0);
    if reserved || present & !xcr0 != 0 { Err(Stop::gp(0)) } else { Ok(()) }
}

/// Loads the components in `loaded` and initialises the other requested ones.
fn commit(area: &mut XsaveArea, image: &[u8], requested: u64, loaded: u64) {
    if loaded & X87 != 0 {
        load_x87(area, image);
    } else if requested & X87 != 0 {
        area.init_x87();
        area.0[ST..XMM].fill(0);
    }
    for (component, range) in [(SSE, XMM..LEGACY_END), (AVX, YMM_HIGH..AVX_END)] {
        if loaded & component != 0 {
            area.0[range.clone()].copy_from_slice(&image[range]);
        } else if requested & component != 0 {
            area.0[range].fill(0);
        }
    }
}

/// XGETBV. ECX = 1 (XINUSE) is not announced.
fn xgetbv(vcpu: &mut Vcpu) -> Flow<()> {
    if vcpu.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::ud());
    }
    if vcpu.state.gpr[reg::ECX] != 0 {
        return Err(Stop::gp(0));
    }
    vcpu.state.gpr[reg::EAX] = vcpu.state.xcr0 as u32;
    vcpu.state.gpr[reg::EDX] = (vcpu.state.xcr0 >> 32) as u32;
    Ok(())
}

fn xsetbv(vcpu: &mut Vcpu) -> Flow<()> {
    let value = (vcpu.state.gpr[reg::EDX] as u64) << 32 | vcpu.state.gpr[reg::EAX] as u64;
    vcpu.xsetbv(vcpu.state.gpr[reg::ECX], value)
}
