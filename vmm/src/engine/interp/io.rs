//! Port I/O, with I/O breakpoints (SDM vol. 3, §17.2.4).

use super::operand::{IMM, Op, Width, read, write};
use crate::cpu::{Flow, Vcpu, cr4, reg};

/// Reads a port; the permission was checked.
pub(super) fn input(v: &mut Vcpu, port: u16, width: u8) -> u32 {
    note_access(v, port, width);
    v.bus.port_read(v.index, port, width)
}

/// Writes a port; the permission was checked.
pub(super) fn output(v: &mut Vcpu, port: u16, width: u8, value: u32) {
    note_access(v, port, width);
    v.bus.port_write(v.index, port, width, value);
}

/// Notes the I/O breakpoints that `width` bytes at `port` hit; the #DB follows the instruction.
fn note_access(v: &mut Vcpu, port: u16, width: u8) {
    if v.state.dr7 & 0xff == 0 || v.state.cr4 & cr4::DE == 0 {
        return;
    }
    for i in 0..4 {
        let control = v.state.dr7 >> (16 + 4 * i);
        let enabled = v.state.dr7 >> (2 * i) & 3 != 0;
        let length = [1u64, 2, 8, 4][(control >> 2 & 3) as usize];
        let start = v.state.dr[i as usize] as u64 & !(length - 1);
        let hits = (port as u64) < start + length && start < port as u64 + width as u64;
        if enabled && control & 3 == 2 && hits {
            v.mmu.pending_debug |= 1 << i;
        }
    }
}

fn port(v: &Vcpu, op: &Op, place: u8) -> u16 {
    if place == IMM { op.imm as u16 & 0xff } else { v.state.gpr[reg::EDX] as u16 }
}

/// IN: the port is the second operand.
pub(super) fn in_<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let port = port(v, op, op.src);
    v.check_io(port, T::SIZE as u8)?;
    let value = input(v, port, T::SIZE as u8);
    write::<T>(v, op, reg::EAX as u8, value)
}

/// OUT: the port is the first operand.
pub(super) fn out<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let port = port(v, op, op.dst);
    v.check_io(port, T::SIZE as u8)?;
    let value = read::<T>(v, op, reg::EAX as u8)?;
    output(v, port, T::SIZE as u8, value);
    Ok(())
}
