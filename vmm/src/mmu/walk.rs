//! The page walk (SDM vol. 3, §4.3 and §4.4): 32-bit and PAE paging, with permissions and accessed and dirty bits.

use super::ram::GuestRam;
use crate::cpu::{CpuState, cr0, cr4};

/// Bits of paging-structure entries.
pub mod pte {
    #![allow(missing_docs)]
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// Bits of a page-fault error code (SDM vol. 3, figure 4-12).
pub mod fault_code {
    #![allow(missing_docs)]
    pub const P: u16 = 1 << 0;
    pub const W: u16 = 1 << 1;
    pub const U: u16 = 1 << 2;
    pub const RSVD: u16 = 1 << 3;
    pub const I: u16 = 1 << 4;
}

/// EFER.NXE.
const EFER_NXE: u32 = 1 << 11;
/// Physical address bits that the guest's CPUID announces.
pub const PHYSICAL_BITS: u32 = 36;
const PHYSICAL_MASK: u64 = (1 << PHYSICAL_BITS) - 1;
const FRAME_MASK: u64 = PHYSICAL_MASK & !0xfff;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// A successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte.
    pub gpa: u64,
    /// A write now would succeed with no further change to the tables: allowed, and the dirty bit is set.
    pub writable_now: bool,
    /// User mode may read it.
    pub user: bool,
    /// Some level forbids writes (R/W clear); the supervisor may still write if CR0.WP is clear.
    pub read_only: bool,
    /// Instruction fetches are forbidden.
    pub no_execute: bool,
    /// Global, with CR4.PGE set.
    pub global: bool,
    /// log2 of the page's size: 12, 21 or 22.
    pub page_shift: u32,
}

/// Walks the tables for `linear`; `user` is the access's privilege. Sets accessed and dirty bits as the processor does.
/// The error is the #PF error code. A table or page outside RAM reads as all ones, as an unclaimed bus does.
pub fn walk(ram: &GuestRam, state: &CpuState, linear: u32, access: Access, user: bool) -> Result<Translation, u16> {
    if !state.paging() {
        let gpa = (linear & state.a20_mask) as u64;
        return Ok(Translation {
            gpa,
            writable_now: true,
            user: true,
            read_only: false,
            no_execute: false,
            global: false,
            page_shift: 12,
        });
    }
    let base_code = if user { fault_code::U } else { 0 }
        | match access {
            Access::Write => fault_code::W,
            Access::Execute if fetch_bit(state) => fault_code::I,
            _ => 0,
        };
    let mut path = Path { ram, mask: state.a20_mask as u64 | !0xffff_ffff, entries: [Entry::default(); 2], used: 0 };
    let leaf = if state.cr4 & cr4::PAE != 0 { path.pae(state, linear) } else { path.legacy(state, linear) };
    let (leaf, page_shift) = leaf.map_err(|code| code | base_code)?;

    let all = path.entries[..path.used].iter().fold(u64::MAX, |all, e| all & e.value);
    let any = path.entries[..path.used].iter().fold(0, |any, e| any | e.value);
    let is_user = all & pte::US != 0;
    let read_only = all & pte::RW == 0;
    let no_execute = any & pte::NX != 0 && state.cr4 & cr4::PAE != 0 && state.msr.efer & EFER_NXE != 0;
    let protects = user || state.cr0 & cr0::WP != 0;
    let smep = !user && is_user && state.cr4 & cr4::SMEP != 0;
    let denied = (user && !is_user)
        || (access == Access::Write && read_only && protects)
        || (access == Access::Execute && (no_execute || smep));
    if denied {
        return Err(base_code | fault_code::P);
    }
    path.set_bits(access == Access::Write);
    let offset_mask = (1u64 << page_shift) - 1;
    let dirty = leaf & pte::D != 0 || access == Access::Write;
    Ok(Translation {
        gpa: ((leaf & !offset_mask) | (linear as u64 & offset_mask)) & path.mask & PHYSICAL_MASK,
        writable_now: dirty && !(read_only && protects),
        user: is_user,
        read_only,
        no_execute,
        global: leaf & pte::G != 0 && state.cr4 & cr4::PGE != 0,
        page_shift,
    })
}

/// What a walk for a read would find, without setting accessed or dirty bits: None unless the page is present and has
/// been accessed. `writable_now` further needs the dirty bit, so mapping the result changes nothing that a guest sees.
pub fn peek(ram: &GuestRam, state: &CpuState, linear: u32, user: bool) -> Option<Translation> {
    let leaf = leaf_entry(ram, state, linear)?;
    let wanted = pte::P | pte::A;
    if leaf.value & wanted != wanted {
        return None;
    }
    walk(ram, state, linear, Access::Read, user).ok()
}

/// Where the paging-structure entries for a linear address are, for those who keep copies of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafEntry {
    /// Physical address of the page-directory entry.
    pub pde_gpa: u64,
    /// Its value.
    pub pde: u64,
    /// Physical address of the page-table entry; None if the directory entry maps a large page.
    pub pte_gpa: Option<u64>,
    /// The entry that maps the page: the page-table entry, or the directory entry of a large page.
    pub value: u64,
    /// Bytes an entry has: 4, or 8 under PAE.
    pub size: u64,
}

/// The entries that map `linear`, with no permission checks and no side effects. None if paging is off, a table is
/// absent or lies outside RAM.
pub fn leaf_entry(ram: &GuestRam, state: &CpuState, linear: u32) -> Option<LeafEntry> {
    if !state.paging() {
        return None;
    }
    let mask = state.a20_mask as u64 | !0xffff_ffff;
    let pae = state.cr4 & cr4::PAE != 0;
    let read = |gpa: u64| if pae { ram.read_u64(gpa) } else { ram.read_u32(gpa).map(u64::from) };
    let (pde_gpa, size) = if pae {
        let pdpte = state.pdpte[(linear >> 30) as usize];
        if pdpte & pte::P == 0 {
            return None;
        }
        (((pdpte & FRAME_MASK) + (linear as u64 >> 21 & 0x1ff) * 8) & mask, 8)
    } else {
        (((state.cr3 as u64 & !0xfff) + (linear as u64 >> 22) * 4) & mask, 4)
    };
    let pde = read(pde_gpa)?;
    if pde & pte::P == 0 {
        return None;
    }
    if pde & pte::PS != 0 && (pae || state.cr4 & cr4::PSE != 0) {
        return Some(LeafEntry { pde_gpa, pde, pte_gpa: None, value: pde, size });
    }
    let index = if pae { linear as u64 >> 12 & 0x1ff } else { linear as u64 >> 12 & 0x3ff };
    let table = if pae { pde & FRAME_MASK } else { pde & 0xffff_f000 };
    let pte_gpa = (table + index * size) & mask;
    Some(LeafEntry { pde_gpa, pde, pte_gpa: Some(pte_gpa), value: read(pte_gpa)?, size })
}

/// True if page faults report instruction fetches: with NX or SMEP enabled (SDM vol. 3, §4.7).
fn fetch_bit(state: &CpuState) -> bool {
    (state.cr4 & cr4::PAE != 0 && state.msr.efer & EFER_NXE != 0) || state.cr4 & cr4::SMEP != 0
}

#[derive(Clone, Copy, Default)]
struct Entry {
    gpa: u64,
    value: u64,
    wide: bool,
}

/// The paging-structure entries that a walk used. The PDPTE registers hold no permissions and are not among them.
struct Path<'a> {
    ram: &'a GuestRam,
    mask: u64,
    entries: [Entry; 2],
    used: usize,
}

impl Path<'_> {
    /// 32-bit paging. The value returned is the leaf with its frame address in 64-bit form, and log2 of the page size.
    fn legacy(&mut self, state: &CpuState, linear: u32) -> Result<(u64, u32), u16> {
        let pde = self.load(state.cr3 as u64 & !0xfff, (linear >> 22) as u64, false)?;
        if pde & pte::PS != 0 && state.cr4 & cr4::PSE != 0 {
            // PSE-36: bits 13 to 16 are bits 32 to 35 of the address; bits 17 to 21 are reserved.
            if pde & 0x003e_0000 != 0 {
                return Err(fault_code::P | fault_code::RSVD);
            }
            let base = (pde & 0xffc0_0000) | ((pde >> 13) & 0xf) << 32;
            return Ok((base | (pde & 0xfff), 22));
        }
        let leaf = self.load(pde & 0xffff_f000, (linear >> 12 & 0x3ff) as u64, false)?;
        Ok((leaf & 0xffff_ffff, 12))
    }

    /// PAE paging.
    fn pae(&mut self, state: &CpuState, linear: u32) -> Result<(u64, u32), u16> {
        let pdpte = state.pdpte[(linear >> 30) as usize];
        if pdpte & pte::P == 0 {
            return Err(0);
        }
        let reserved = !PHYSICAL_MASK & !pte::NX | if state.msr.efer & EFER_NXE == 0 { pte::NX } else { 0 };
        let pde = self.load(pdpte & FRAME_MASK, (linear >> 21 & 0x1ff) as u64, true)?;
        let large = pde & pte::PS != 0;
        if pde & (reserved | if large { 0x001f_e000 } else { 0 }) != 0 {
            return Err(fault_code::P | fault_code::RSVD);
        }
        if large {
            return Ok((pde & !0x001f_f000 | pde & 0xfff, 21));
        }
        let leaf = self.load(pde & FRAME_MASK, (linear >> 12 & 0x1ff) as u64, true)?;
        if leaf & reserved != 0 {
            return Err(fault_code::P | fault_code::RSVD);
        }
        Ok((leaf, 12))
    }

    fn load(&mut self, table: u64, index: u64, wide: bool) -> Result<u64, u16> {
        let gpa = (table + index * if wide { 8 } else { 4 }) & self.mask;
        let value = match wide {
            true => self.ram.read_u64(gpa).unwrap_or(u64::MAX),
            false => self.ram.read_u32(gpa).unwrap_or(u32::MAX) as u64,
        };
        self.entries[self.used] = Entry { gpa, value, wide };
        self.used += 1;
        if value & pte::P == 0 { Err(0) } else { Ok(value) }
    }

    /// Sets accessed in every entry used, and dirty in the leaf of a write (SDM vol. 3, §4.8).
    fn set_bits(&self, write: bool) {
        for (i, e) in self.entries[..self.used].iter().enumerate() {
            let leaf = i + 1 == self.used;
            let want = e.value | pte::A | if leaf && write { pte::D } else { 0 };
            if want == e.value {
                continue;
            }
            match e.wide {
                true => self.ram.write(e.gpa, &want.to_le_bytes()),
                false => self.ram.write(e.gpa, &(want as u32).to_le_bytes()),
            };
        }
    }
}
