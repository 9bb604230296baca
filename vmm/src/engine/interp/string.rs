//! String instructions, with REP as the manual has it: each iteration is a boundary.
//!
//! A repeated instruction runs a bounded number of iterations and, when not done, leaves EIP on itself with ECX, ESI and
//! EDI exact: interrupts are taken there, and a fault in a later iteration is raised by executing it again. SCAS and CMPS
//! show their flags only when done: faults, interrupts and single steps in between find EFLAGS as before the instruction
//! (SDM vol. 2, REP, says so of faults; Intel processors do the same for the others). MOVS and STOS copy whole stretches of RAM at once where that cannot be told from one element at a time.

use super::alu::{compare_values, kind};
use super::decode::MAX_LENGTH;
use super::io::{input, output};
use super::operand::{Op, Width, flag, load_at, store_at};
use crate::cpu::eflags::{AC, DF, RF, TF, ZF};
use crate::cpu::{Flow, Vcpu, reg, seg};
use crate::mmu::{Access, GuestRam};

/// Iterations after which interrupts get a look.
const CHUNK: u32 = 1024;
/// Bytes below which a bulk copy's two page walks do not pay.
const WORTH_BULK: u32 = 32;

fn address(v: &Vcpu, op: &Op, which: usize) -> u32 {
    v.state.gpr[which] & op.addr_mask()
}

/// Adds to ESI, EDI or ECX in the instruction's address size.
fn advance(v: &mut Vcpu, op: &Op, which: usize, by: u32) {
    let mask = op.addr_mask();
    let r = &mut v.state.gpr[which];
    *r = (*r & !mask) | (r.wrapping_add(by) & mask);
}

fn step<T: Width>(v: &Vcpu) -> u32 {
    if v.state.eflags & DF != 0 { (T::SIZE as u32).wrapping_neg() } else { T::SIZE as u32 }
}

/// Where the instruction being executed lies, for one that stores and is repeated: when a store has changed it, the rest
/// of its iterations are those of what stands there now.
struct Own {
    /// Physical address and length of each part; no length where there is none, or it is not in RAM.
    parts: [(u64, usize); 2],
    bytes: [u8; MAX_LENGTH],
}

impl Own {
    fn of(v: &mut Vcpu, op: &Op) -> Self {
        let mut own = Self { parts: [(0, 0); 2], bytes: [0; MAX_LENGTH] };
        if !op.repeated() {
            return own;
        }
        let length = (op.len as usize).min(MAX_LENGTH);
        let start = v.state.seg[seg::CS].base.wrapping_add(v.state.eip.wrapping_sub(op.len as u32));
        let first = (0x1000 - (start & 0xfff) as usize).min(length);
        for (i, (from, to)) in [(0, first), (first, length)].into_iter().enumerate() {
            let at = v.physical(start.wrapping_add(from as u32), Access::Execute, v.privilege());
            if from < to
                && let Ok(at) = at
                && v.mmu.ram.read(at, &mut own.bytes[from..to])
            {
                own.parts[i] = (at, to - from);
            }
        }
        own
    }

    fn stands(&self, ram: &GuestRam) -> bool {
        let [first, second] = self.parts;
        let same =
            |(at, length): (u64, usize), from: usize| length == 0 || ram.equals(at, &self.bytes[from..from + length]);
        same(first, 0) && same(second, first.1)
    }

    /// True if a store of `length` bytes to `at` reaches it.
    fn meets(&self, at: u64, length: u64) -> bool {
        self.parts.iter().any(|&(own, n)| at < own + n as u64 && own < at + length)
    }
}

/// Runs `body` once, or as REP says. `stops` looks at EFLAGS after an iteration (SCAS and CMPS).
fn repeat(v: &mut Vcpu, op: &Op, stops: impl Fn(u32) -> bool, body: impl FnMut(&mut Vcpu) -> Flow<()>) -> Flow<()> {
    repeat_while(v, op, stops, |_| true, body)
}

/// The same for a `body` that stores.
fn repeat_stores(v: &mut Vcpu, op: &Op, own: &Own, body: impl FnMut(&mut Vcpu) -> Flow<()>) -> Flow<()> {
    repeat_while(v, op, |_| false, |ram| own.stands(ram), body)
}

/// The same, as long as `stands` says that the instruction is still there.
fn repeat_while(
    v: &mut Vcpu,
    op: &Op,
    stops: impl Fn(u32) -> bool,
    stands: impl Fn(&GuestRam) -> bool,
    mut body: impl FnMut(&mut Vcpu) -> Flow<()>,
) -> Flow<()> {
    if !op.repeated() {
        return body(v);
    }
    let start = v.state.eip.wrapping_sub(op.len as u32);
    let flags = v.state.eflags;
    let single = flags & TF != 0 || v.state.dr7 & 0xff != 0;
    for i in 0..if single { 1 } else { CHUNK } {
        if address(v, op, reg::ECX) == 0 {
            return Ok(());
        }
        let before = v.state.gpr;
        if let Err(stop) = body(v) {
            if i == 0 {
                return Err(stop);
            }
            // The fault belongs to this iteration: the next attempt starts with it.
            v.state.gpr = before;
            go_on_at(v, start, flags);
            return Ok(());
        }
        advance(v, op, reg::ECX, u32::MAX);
        if stops(v.state.eflags) {
            return Ok(());
        }
        if !stands(&v.mmu.ram) {
            break;
        }
    }
    if address(v, op, reg::ECX) != 0 {
        go_on_at(v, start, flags);
    }
    Ok(())
}

/// Iterations remain for the instruction at `start`, which found EFLAGS as `flags`. RF is set meanwhile: what arrives now
/// saves it so, and no breakpoint hits the instruction a second time (SDM vol. 3, §17.3.1.1).
fn go_on_at(v: &mut Vcpu, start: u32, flags: u32) {
    v.state.eip = start;
    v.state.eflags = flags | RF;
}

/// REPE goes on while ZF is set, REPNE while it is clear.
fn compare_stops(op: &Op) -> impl Fn(u32) -> bool + use<> {
    let go_on_if_equal = op.flags & flag::REPNE == 0;
    move |flags| (flags & ZF != 0) != go_on_if_equal
}

fn value<T: Width>(x: T) -> u32 {
    let wide: u64 = x.into();
    wide as u32
}

/// MOVS.
pub(super) fn movs<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let own = Own::of(v, op);
    if op.repeated() && bulk::<T>(v, op, Some(op.seg as usize), &own) {
        return Ok(());
    }
    repeat_stores(v, op, &own, |v| {
        let x = load_at::<T>(v, op.seg as usize, address(v, op, reg::ESI))?;
        store_at::<T>(v, seg::ES, address(v, op, reg::EDI), x)?;
        let by = step::<T>(v);
        advance(v, op, reg::ESI, by);
        advance(v, op, reg::EDI, by);
        Ok(())
    })
}

/// STOS.
pub(super) fn stos<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let own = Own::of(v, op);
    if op.repeated() && bulk::<T>(v, op, None, &own) {
        return Ok(());
    }
    repeat_stores(v, op, &own, |v| {
        let x = T::truncate(v.state.gpr[reg::EAX] as u64);
        store_at::<T>(v, seg::ES, address(v, op, reg::EDI), x)?;
        let by = step::<T>(v);
        advance(v, op, reg::EDI, by);
        Ok(())
    })
}

/// LODS.
pub(super) fn lods<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    repeat(
        v,
        op,
        |_| false,
        |v| {
            let x = load_at::<T>(v, op.seg as usize, address(v, op, reg::ESI))?;
            T::set(&mut v.state.gpr, reg::EAX as u8, value(x));
            let by = step::<T>(v);
            advance(v, op, reg::ESI, by);
            Ok(())
        },
    )
}

/// SCAS.
pub(super) fn scas<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    repeat(v, op, compare_stops(op), |v| {
        let x = load_at::<T>(v, seg::ES, address(v, op, reg::EDI))?;
        let a = T::get(&v.state.gpr, reg::EAX as u8);
        compare_values::<T, { kind::CMP }>(a, value(x), &mut v.state.eflags);
        let by = step::<T>(v);
        advance(v, op, reg::EDI, by);
        Ok(())
    })
}

/// CMPS.
pub(super) fn cmps<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    repeat(v, op, compare_stops(op), |v| {
        // The order shows when both fault: processors read ES:EDI first.
        let b = load_at::<T>(v, seg::ES, address(v, op, reg::EDI))?;
        let a = load_at::<T>(v, op.seg as usize, address(v, op, reg::ESI))?;
        compare_values::<T, { kind::CMP }>(value(a), value(b), &mut v.state.eflags);
        let by = step::<T>(v);
        advance(v, op, reg::ESI, by);
        advance(v, op, reg::EDI, by);
        Ok(())
    })
}

/// INS. The destination is checked before the port is read, so that a fault loses no input. The permission to use the
/// port comes before everything, a count of zero included.
pub(super) fn ins<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.check_io(v.state.gpr[reg::EDX] as u16, T::SIZE as u8)?;
    let own = Own::of(v, op);
    repeat_stores(v, op, &own, |v| {
        let port = v.state.gpr[reg::EDX] as u16;
        let at = v.linear(seg::ES, address(v, op, reg::EDI), T::SIZE as u32, Access::Write)?;
        v.probe_write(at, T::SIZE as u32, v.privilege())?;
        let x = input(v, port, T::SIZE as u8);
        v.store(at, T::truncate(x as u64), v.privilege())?;
        let by = step::<T>(v);
        advance(v, op, reg::EDI, by);
        Ok(())
    })
}

/// OUTS.
pub(super) fn outs<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.check_io(v.state.gpr[reg::EDX] as u16, T::SIZE as u8)?;
    repeat(
        v,
        op,
        |_| false,
        |v| {
            let port = v.state.gpr[reg::EDX] as u16;
            let x = load_at::<T>(v, op.seg as usize, address(v, op, reg::ESI))?;
            output(v, port, T::SIZE as u8, value(x));
            let by = step::<T>(v);
            advance(v, op, reg::ESI, by);
            Ok(())
        },
    )
}

/// Tries a stretch of a repeated MOVS (from segment `source`) or STOS that ends with the nearer page. False if nothing
/// was done; true with the registers advanced and EIP on the instruction itself while iterations remain.
fn bulk<T: Width>(v: &mut Vcpu, op: &Op, source: Option<usize>, own: &Own) -> bool {
    let size = T::SIZE as u32;
    let ecx = address(v, op, reg::ECX);
    if v.state.eflags & (AC | DF | TF) != 0 || v.state.dr7 & 0xff != 0 || ecx.saturating_mul(size) < WORTH_BULK {
        return false;
    }
    let Some(n) = stretch::<T>(v, op, source, ecx, own) else { return false };
    let bytes = n * size;
    advance(v, op, reg::EDI, bytes);
    if source.is_some() {
        advance(v, op, reg::ESI, bytes);
    }
    advance(v, op, reg::ECX, n.wrapping_neg());
    if n < ecx {
        go_on_at(v, v.state.eip.wrapping_sub(op.len as u32), v.state.eflags);
    }
    true
}

/// Moves up to `count` elements and says how many; None where the element-wise path must decide.
fn stretch<T: Width>(v: &mut Vcpu, op: &Op, source: Option<usize>, count: u32, own: &Own) -> Option<u32> {
    let size = T::SIZE as u32;
    let to = address(v, op, reg::EDI);
    let from = address(v, op, reg::ESI);
    let who = v.privilege();
    let first = v.linear(seg::ES, to, size, Access::Write).ok()?;
    let mut n = count.min((0x1000 - (first & 0xfff)) / size).min((op.addr_mask() - to) / size);
    let mut origin = 0;
    if let Some(which) = source {
        origin = v.linear(which, from, size, Access::Read).ok()?;
        n = n.min((0x1000 - (origin & 0xfff)) / size).min((op.addr_mask() - from) / size);
    }
    if n * size < WORTH_BULK {
        return None;
    }
    let bytes = n * size;
    v.linear(seg::ES, to, bytes, Access::Write).ok()?;
    let mut buffer = [0u8; 0x1000];
    let data = &mut buffer[..bytes as usize];
    let mut source_gpa = None;
    if let Some(which) = source {
        v.linear(which, from, bytes, Access::Read).ok()?;
        source_gpa = Some(v.physical(origin, Access::Read, who).ok()?);
    }
    let target = v.physical(first, Access::Write, who).ok()?;
    if own.meets(target, bytes as u64) {
        return None;
    }
    match source_gpa {
        // A forward copy onto what it has yet to read repeats a pattern: one element at a time.
        Some(gpa) if target > gpa && target < gpa + bytes as u64 => return None,
        Some(gpa) => v.mmu.ram.read(gpa, data).then_some(())?,
        None => {
            let pattern = v.state.gpr[reg::EAX].to_le_bytes();
            data.chunks_exact_mut(T::SIZE).for_each(|c| c.copy_from_slice(&pattern[..T::SIZE]));
        }
    }
    v.mmu.ram.write(target, data).then_some(())?;
    if v.mmu.ram.is_code(target) {
        v.mmu.note_code_write(target);
    }
    Some(n)
}
