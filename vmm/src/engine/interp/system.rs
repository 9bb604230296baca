//! Privileged and system instructions. Privilege is checked here; what a register write means is the processor's rule.

use super::operand::{Op, linear_of, read};
use crate::cpu::{Flow, InterruptShadow, Stop, Vcpu, cr4, eflags, reg};
use crate::mmu::{Access, Flush};

/// #GP(0) unless CPL is 0.
pub(super) fn supervisor(v: &Vcpu) -> Flow<()> {
    if v.state.cpl != 0 { Err(Stop::gp(0)) } else { Ok(()) }
}

/// #UD in real and virtual-8086 mode.
pub(super) fn protected_only(v: &Vcpu) -> Flow<()> {
    if v.state.real_or_v8086() { Err(Stop::ud()) } else { Ok(()) }
}

/// #GP(0) outside CPL 0 with CR4.UMIP set.
pub(super) fn umip(v: &Vcpu) -> Flow<()> {
    if v.state.cr4 & cr4::UMIP != 0 { supervisor(v) } else { Ok(()) }
}

/// HLT.
pub(super) fn hlt(v: &mut Vcpu, _: &Op) -> Flow<()> {
    supervisor(v)?;
    v.state.halted = true;
    Ok(())
}

/// #GP(0) unless CPL is at most IOPL. (The processor has neither VME nor PVI.)
fn interrupt_flag_access(v: &Vcpu) -> Flow<()> {
    if v.state.cpl <= v.state.iopl() { Ok(()) } else { Err(Stop::gp(0)) }
}

/// CLI.
pub(super) fn cli(v: &mut Vcpu, _: &Op) -> Flow<()> {
    interrupt_flag_access(v)?;
    v.state.eflags &= !eflags::IF;
    Ok(())
}

/// STI: interrupts are recognised after the next instruction.
pub(super) fn sti(v: &mut Vcpu, _: &Op) -> Flow<()> {
    interrupt_flag_access(v)?;
    if v.state.eflags & eflags::IF == 0 {
        v.state.shadow = InterruptShadow::Sti;
    }
    v.state.eflags |= eflags::IF;
    Ok(())
}

/// CPUID.
pub(super) fn cpuid(v: &mut Vcpu, _: &Op) -> Flow<()> {
    let [a, b, c, d] = v.cpuid(v.state.gpr[reg::EAX], v.state.gpr[reg::ECX]);
    let g = &mut v.state.gpr;
    (g[reg::EAX], g[reg::EBX], g[reg::ECX], g[reg::EDX]) = (a, b, c, d);
    Ok(())
}

fn set_pair(v: &mut Vcpu, value: u64) {
    v.state.gpr[reg::EAX] = value as u32;
    v.state.gpr[reg::EDX] = (value >> 32) as u32;
}

/// RDTSC.
pub(super) fn rdtsc(v: &mut Vcpu, _: &Op) -> Flow<()> {
    if v.state.cr4 & cr4::TSD != 0 {
        supervisor(v)?;
    }
    let now = v.rdtsc();
    set_pair(v, now);
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp(v: &mut Vcpu, op: &Op) -> Flow<()> {
    rdtsc(v, op)?;
    v.state.gpr[reg::ECX] = v.state.msr.tsc_aux;
    Ok(())
}

/// RDPMC: there are no counters, so every index is out of range.
pub(super) fn rdpmc(_: &mut Vcpu, _: &Op) -> Flow<()> {
    Err(Stop::gp(0))
}

/// RDMSR.
pub(super) fn rdmsr(v: &mut Vcpu, _: &Op) -> Flow<()> {
    supervisor(v)?;
    let value = v.rdmsr(v.state.gpr[reg::ECX])?;
    set_pair(v, value);
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(v: &mut Vcpu, _: &Op) -> Flow<()> {
    supervisor(v)?;
    let value = (v.state.gpr[reg::EDX] as u64) << 32 | v.state.gpr[reg::EAX] as u64;
    v.wrmsr(v.state.gpr[reg::ECX], value)
}

/// MOV r32, CRn.
pub(super) fn mov_from_cr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    v.state.gpr[op.dst as usize & 7] = v.read_cr(op.src)?;
    Ok(())
}

/// MOV CRn, r32.
pub(super) fn mov_to_cr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    let value = v.state.gpr[op.src as usize & 7];
    v.write_cr(op.dst, value)
}

/// MOV r32, DRn.
pub(super) fn mov_from_dr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    v.state.gpr[op.dst as usize & 7] = v.read_dr(op.src)?;
    Ok(())
}

/// MOV DRn, r32.
pub(super) fn mov_to_dr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    let value = v.state.gpr[op.src as usize & 7];
    v.write_dr(op.dst, value)
}

/// CLTS.
pub(super) fn clts(v: &mut Vcpu, _: &Op) -> Flow<()> {
    supervisor(v)?;
    v.clts()
}

/// LMSW.
pub(super) fn lmsw(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    let value = read::<u16>(v, op, op.dst)? as u16;
    v.lmsw(value)
}

/// INVLPG.
pub(super) fn invlpg(v: &mut Vcpu, op: &Op) -> Flow<()> {
    supervisor(v)?;
    let linear = linear_of(v, op);
    v.mmu.flush(Flush::Page(linear));
    Ok(())
}

/// INVD, WBINVD: caches are coherent here, so there is nothing to write back.
pub(super) fn cache_flush(v: &mut Vcpu, _: &Op) -> Flow<()> {
    supervisor(v)
}

/// CLFLUSH, CLFLUSHOPT, CLWB: an access like a load of one byte.
pub(super) fn line_flush(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let at = super::operand::effective(v, op);
    let linear = v.linear(op.seg as usize, at, 1, Access::Read)?;
    v.probe(linear, Access::Read, v.privilege())
}

/// XLAT.
pub(super) fn xlat(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let at = v.state.gpr[reg::EBX].wrapping_add(v.state.gpr[reg::EAX] & 0xff) & op.addr_mask();
    let value = super::operand::load_at::<u8>(v, op.seg as usize, at)?;
    super::operand::write::<u8>(v, op, reg::EAX as u8, value as u32)
}
