//! Loads and stores at guest linear addresses, for Rust code. Translated code reaches memory through windows instead.
#![allow(unsafe_code)]

use super::walk::Access;
use crate::cpu::{Flow, Vcpu};

/// On whose behalf memory is accessed: descriptor tables and exception frames are reached as supervisor from any ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 0 to 2, and implicit system accesses.
    Supervisor,
    /// CPL 3.
    User,
}

impl Privilege {
    /// True for user accesses.
    #[inline]
    pub fn is_user(self) -> bool {
        self == Privilege::User
    }
}

/// A little-endian integer that one load or store moves.
pub trait Datum: Copy + Default + Into<u64> {
    /// Bytes.
    const SIZE: usize;
    /// The low bytes of `v`.
    fn truncate(v: u64) -> Self;
}
macro_rules! datum {
    ($($t:ty),*) => { $(impl Datum for $t {
        const SIZE: usize = size_of::<$t>();
        #[inline(always)]
        fn truncate(v: u64) -> Self { v as $t }
    })* };
}
datum!(u8, u16, u32, u64);

impl Vcpu {
    /// Privilege of explicit accesses at the current CPL.
    #[inline]
    pub fn privilege(&self) -> Privilege {
        if self.state.cpl == 3 { Privilege::User } else { Privilege::Supervisor }
    }

    /// Loads the integer at linear address `linear`, which may cross pages; wraps at 4 GiB.
    #[inline(always)]
    pub fn load<T: Datum>(&mut self, linear: u32, who: Privilege) -> Flow<T> {
        let e = self.mmu.entry(linear, who.is_user());
        if e.read == linear & !0xfff && (linear & 0xfff) as usize + T::SIZE <= 0x1000 {
            // SAFETY: the entry maps the whole frame at `host`, and the access ends inside it. T has no invalid values.
            return Ok(unsafe { e.host.add((linear & 0xfff) as usize).cast::<T>().read_unaligned() });
        }
        self.load_slow(linear, T::SIZE, who).map(T::truncate)
    }

    /// Stores `value` at linear address `linear`, which may cross pages; wraps at 4 GiB. On a fault nothing is stored.
    #[inline(always)]
    pub fn store<T: Datum>(&mut self, linear: u32, value: T, who: Privilege) -> Flow<()> {
        let e = self.mmu.entry(linear, who.is_user());
        if e.write == linear & !0xfff && (linear & 0xfff) as usize + T::SIZE <= 0x1000 {
            // SAFETY: as in `load`; guest RAM is only ever accessed by copy.
            unsafe { e.host.add((linear & 0xfff) as usize).cast::<T>().write_unaligned(value) };
            return Ok(());
        }
        self.store_slow(linear, T::SIZE, value.into(), who)
    }

    /// Loads the integer at `linear` for a read-modify-write: faults as the store that follows would.
    #[inline(always)]
    pub fn load_for_update<T: Datum>(&mut self, linear: u32, who: Privilege) -> Flow<T> {
        let e = self.mmu.entry(linear, who.is_user());
        if e.write == linear & !0xfff && (linear & 0xfff) as usize + T::SIZE <= 0x1000 {
            // SAFETY: as in `load`.
            return Ok(unsafe { e.host.add((linear & 0xfff) as usize).cast::<T>().read_unaligned() });
        }
        self.probe_write(linear, T::SIZE as u32, who)?;
        self.load(linear, who)
    }

    /// Raises the fault that a store of `len` bytes at `linear` would raise; stores nothing. `len` is at most 4 KiB.
    pub fn probe_write(&mut self, linear: u32, len: u32, who: Privilege) -> Flow<()> {
        self.probe(linear, Access::Write, who)?;
        let last = linear.wrapping_add(len.max(1) - 1);
        if (last ^ linear) & !0xfff != 0 {
            self.probe(last & !0xfff, Access::Write, who)?;
        }
        Ok(())
    }

    /// Copies up to a page of guest memory into `to`, if it lies in one page that the software TLB has. False: it is to be
    /// loaded piece by piece.
    pub fn load_run(&self, linear: u32, to: &mut [u8], who: Privilege) -> bool {
        let e = self.mmu.entry(linear, who.is_user());
        let here = e.read == linear & !0xfff && (linear & 0xfff) as usize + to.len() <= 0x1000;
        if here {
            // SAFETY: the entry maps the whole frame at `host`, and the run ends inside it; `to` is no guest memory.
            unsafe { e.host.add((linear & 0xfff) as usize).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        }
        here
    }

    /// As [`Self::load_run`], storing `from`.
    pub fn store_run(&mut self, linear: u32, from: &[u8], who: Privilege) -> bool {
        let e = self.mmu.entry(linear, who.is_user());
        let here = e.write == linear & !0xfff && (linear & 0xfff) as usize + from.len() <= 0x1000;
        if here {
            // SAFETY: as in `load_run`.
            unsafe { e.host.add((linear & 0xfff) as usize).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        }
        here
    }

    /// Physical address of `linear` for an access of kind `access`; #PF where it is not allowed.
    pub fn physical(&mut self, linear: u32, access: Access, who: Privilege) -> Flow<u64> {
        Ok(self.mmu.fill(&self.state, linear, access, who.is_user())?.gpa)
    }

    /// Copies guest memory into `to` (x87 environments, XSAVE areas, descriptors); wraps at 4 GiB.
    pub fn load_bytes(&mut self, linear: u32, to: &mut [u8], who: Privilege) -> Flow<()> {
        if self.load_run(linear, to, who) {
            return Ok(());
        }
        for (i, chunk) in to.chunks_mut(1).enumerate() {
            chunk[0] = self.load::<u8>(linear.wrapping_add(i as u32), who)?;
        }
        Ok(())
    }

    /// Copies `from` (at most 4 KiB) into guest memory; on a fault nothing is stored; wraps at 4 GiB.
    pub fn store_bytes(&mut self, linear: u32, from: &[u8], who: Privilege) -> Flow<()> {
        self.probe_write(linear, from.len() as u32, who)?;
        if self.store_run(linear, from, who) {
            return Ok(());
        }
        for (i, b) in from.iter().enumerate() {
            self.store::<u8>(linear.wrapping_add(i as u32), *b, who)?;
        }
        Ok(())
    }

    /// Copies instruction bytes at `linear` into `to`, stopping early at the first page that cannot be fetched. Returns
    /// the number of bytes copied; an error only if the first byte cannot be fetched.
    pub fn fetch(&mut self, linear: u32, to: &mut [u8]) -> Flow<usize> {
        let who = self.privilege();
        let mut done = 0;
        while done < to.len() {
            let at = linear.wrapping_add(done as u32);
            let n = (0x1000 - (at & 0xfff) as usize).min(to.len() - done);
            let gpa = match self.physical(at, Access::Execute, who) {
                Ok(gpa) => gpa,
                Err(stop) if done == 0 => return Err(stop),
                Err(_) => break,
            };
            if !self.mmu.ram.read(gpa, &mut to[done..done + n]) {
                for (i, b) in to[done..done + n].iter_mut().enumerate() {
                    *b = self.bus.mmio_read(self.index, gpa + i as u64, 1) as u8;
                }
            }
            done += n;
        }
        Ok(done)
    }

    #[cold]
    fn load_slow(&mut self, linear: u32, size: usize, who: Privilege) -> Flow<u64> {
        let first = (0x1000 - (linear & 0xfff) as usize).min(size);
        let low = self.load_page(linear, first, who)?;
        if first == size {
            return Ok(low);
        }
        let high = self.load_page(linear.wrapping_add(first as u32), size - first, who)?;
        Ok(low | high << (8 * first))
    }

    /// Loads up to eight bytes that lie in one page.
    fn load_page(&mut self, linear: u32, size: usize, who: Privilege) -> Flow<u64> {
        let gpa = self.physical(linear, Access::Read, who)?;
        self.note_data_access(linear, size, false);
        let mut b = [0; 8];
        if self.mmu.ram.read(gpa, &mut b[..size]) {
            return Ok(u64::from_le_bytes(b));
        }
        if size.is_power_of_two() {
            return Ok(self.bus.mmio_read(self.index, gpa, size as u8));
        }
        for (i, b) in b[..size].iter_mut().enumerate() {
            *b = self.bus.mmio_read(self.index, gpa + i as u64, 1) as u8;
        }
        Ok(u64::from_le_bytes(b))
    }

    #[cold]
    fn store_slow(&mut self, linear: u32, size: usize, value: u64, who: Privilege) -> Flow<()> {
        let first = (0x1000 - (linear & 0xfff) as usize).min(size);
        if first < size {
            // Both pages are checked before either is written; the lower one's fault comes first.
            self.physical(linear, Access::Write, who)?;
            self.physical(linear.wrapping_add(first as u32), Access::Write, who)?;
        }
        self.store_page(linear, first, value, who)?;
        if first < size {
            self.store_page(linear.wrapping_add(first as u32), size - first, value >> (8 * first), who)?;
        }
        Ok(())
    }

    fn store_page(&mut self, linear: u32, size: usize, value: u64, who: Privilege) -> Flow<()> {
        let gpa = self.physical(linear, Access::Write, who)?;
        self.note_data_access(linear, size, true);
        let b = value.to_le_bytes();
        if self.mmu.ram.write(gpa, &b[..size]) {
            if self.mmu.ram.is_code(gpa) {
                self.mmu.note_code_write(gpa);
            }
            return Ok(());
        }
        if size.is_power_of_two() {
            self.bus.mmio_write(self.index, gpa, size as u8, value & (u64::MAX >> (64 - 8 * size)));
            return Ok(());
        }
        for (i, b) in b[..size].iter().enumerate() {
            self.bus.mmio_write(self.index, gpa + i as u64, 1, *b as u64);
        }
        Ok(())
    }

    /// Raises #PF-style checks for `access` of `size` bytes without moving data, as BOUND, MONITOR or CLFLUSH do.
    pub fn probe(&mut self, linear: u32, access: Access, who: Privilege) -> Flow<()> {
        let e = self.mmu.entry(linear, who.is_user());
        let known = match access {
            Access::Read => e.read,
            Access::Write => e.write,
            // An entry does not say whether it may be executed.
            Access::Execute => return self.physical(linear, access, who).map(|_| ()),
        };
        if known == linear & !0xfff { Ok(()) } else { self.physical(linear, access, who).map(|_| ()) }
    }

    /// Notes in DR6's pending bits a data breakpoint that `linear` hits; the #DB follows the instruction.
    fn note_data_access(&mut self, linear: u32, size: usize, write: bool) {
        if !self.mmu.is_watched(linear) {
            return;
        }
        for i in 0..4 {
            let enabled = self.state.dr7 >> (2 * i) & 3 != 0;
            let kind = self.state.dr7 >> (16 + 4 * i) & 3;
            let len = [1u32, 2, 8, 4][(self.state.dr7 >> (18 + 4 * i) & 3) as usize];
            let start = self.state.dr[i as usize] & !(len - 1);
            let hits = (linear as u64) < start as u64 + len as u64 && (start as u64) < linear as u64 + size as u64;
            if enabled && hits && (kind == 3 || (kind == 1 && write)) {
                self.mmu.pending_debug |= 1 << i;
            }
        }
    }
}
