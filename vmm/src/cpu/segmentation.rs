//! Logical addresses: limit and type checks, and the stack (SDM vol. 3, §5.3 to §5.5; vol. 1, §6.2).

use super::{Exception, Flow, Stop, Vcpu, attr, reg, seg, vector};
use crate::mmu::{Access, Datum, Privilege};

impl Vcpu {
    /// Linear address of `size` bytes at `offset` in segment `which`, after the checks of protected mode: null, type and
    /// limit. #GP(0), or #SS(0) for the stack segment.
    #[inline(always)]
    pub fn linear(&self, which: usize, offset: u32, size: u32, access: Access) -> Flow<u32> {
        let s = &self.state.seg[which];
        if s.limit == u32::MAX && s.attr & (attr::UNUSABLE | attr::CODE | attr::EC | attr::RW) == attr::RW {
            return Ok(s.base.wrapping_add(offset));
        }
        self.linear_checked(which, offset, size, access)
    }

    #[cold]
    fn linear_checked(&self, which: usize, offset: u32, size: u32, access: Access) -> Flow<u32> {
        let s = &self.state.seg[which];
        let fault = || Stop::from(Exception::with_error(if which == seg::SS { vector::SS } else { vector::GP }, 0));
        if self.state.real_or_v8086() {
            // Types are not checked; the limit is.
            return match offset.checked_add(size - 1) {
                Some(last) if last <= s.limit => Ok(s.base.wrapping_add(offset)),
                _ => Err(fault()),
            };
        }
        if !s.usable() {
            return Err(fault());
        }
        let is_code = s.attr & attr::CODE != 0;
        let allowed = match access {
            Access::Read => !is_code || s.attr & attr::RW != 0,
            Access::Write => !is_code && s.attr & attr::RW != 0,
            Access::Execute => is_code,
        };
        let last = offset.wrapping_add(size - 1);
        let inside = if !is_code && s.attr & attr::EC != 0 {
            let top = if s.big() { u32::MAX } else { 0xffff };
            offset > s.limit && last <= top && last >= offset
        } else {
            last <= s.limit && (last >= offset || s.limit == u32::MAX)
        };
        if allowed && inside { Ok(s.base.wrapping_add(offset)) } else { Err(fault()) }
    }

    /// Mask of the stack pointer: 16 or 32 bits by SS.B.
    #[inline]
    pub fn stack_mask(&self) -> u32 {
        if self.state.seg[seg::SS].big() { u32::MAX } else { 0xffff }
    }

    /// Sets SP or ESP by SS.B.
    #[inline]
    pub fn set_stack_pointer(&mut self, value: u32) {
        let mask = self.stack_mask();
        let esp = &mut self.state.gpr[reg::ESP];
        *esp = (*esp & !mask) | (value & mask);
    }

    /// Pushes a 16- or 32-bit value at the current privilege. ESP moves only if the store succeeds.
    #[inline]
    pub fn push<T: Datum>(&mut self, value: T) -> Flow<()> {
        let offset = self.state.gpr[reg::ESP].wrapping_sub(T::SIZE as u32) & self.stack_mask();
        let linear = self.linear(seg::SS, offset, T::SIZE as u32, Access::Write)?;
        self.store(linear, value, self.privilege())?;
        self.set_stack_pointer(offset);
        Ok(())
    }

    /// The 16- or 32-bit value `skip` bytes above the top of the stack, at the current privilege. ESP does not move.
    #[inline]
    pub fn peek<T: Datum>(&mut self, skip: u32) -> Flow<T> {
        let offset = self.state.gpr[reg::ESP].wrapping_add(skip) & self.stack_mask();
        let linear = self.linear(seg::SS, offset, T::SIZE as u32, Access::Read)?;
        self.load(linear, self.privilege())
    }

    /// Pops a 16- or 32-bit value at the current privilege.
    #[inline]
    pub fn pop<T: Datum>(&mut self) -> Flow<T> {
        let value = self.peek(0)?;
        self.set_stack_pointer(self.state.gpr[reg::ESP].wrapping_add(T::SIZE as u32));
        Ok(value)
    }

    /// Reads a system structure (descriptor, TSS field) at a linear address, as supervisor.
    pub fn load_system<T: Datum>(&mut self, linear: u32) -> Flow<T> {
        self.load(linear, Privilege::Supervisor)
    }
}
