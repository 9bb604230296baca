//! A processor's software TLB: what lets Rust code reach guest memory without a page walk each time.
//!
//! Direct-mapped, one array for supervisor and one for user accesses. An entry's tags say which kinds of access may go
//! straight to RAM; everything else (MMIO, frames that hold code, data breakpoints) takes the slow path in `access`.

use std::sync::Arc;

use super::ram::{FRAME_SHIFT, GuestRam};
use super::walk::{Access, Translation, walk};
use crate::cpu::{CpuState, Exception};

const ENTRIES: usize = 1024;
/// Filled places that are listed.
const MAX_FILLED: usize = 256;
/// No page-aligned address equals this, so it matches nothing.
const NEVER: u32 = 1;
/// Pending notices above which they collapse into one.
const MAX_NOTICES: usize = 32;

#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub read: u32,
    pub write: u32,
    /// log2 of the size of the guest's page.
    shift: u32,
    /// Host address of the frame.
    pub host: *mut u8,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, shift: FRAME_SHIFT, host: std::ptr::null_mut() };

/// What the guest asked to be forgotten: engines that cache translations take these by [`Mmu::take_flushes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// INVLPG of the page that holds this linear address, global or not.
    Page(u32),
    /// A CR3 write: everything but global pages; a new address space may be current.
    NonGlobal,
    /// CR0, CR4 or EFER paging bits changed: everything.
    All,
}

/// Word and bit of [`Mmu::large`] for `linear`.
fn region(linear: u32) -> (usize, u64) {
    ((linear >> 28) as usize, 1 << (linear >> 22 & 63))
}

/// Guest memory as one processor sees it.
pub struct Mmu {
    /// RAM.
    pub ram: Arc<GuestRam>,
    entries: Box<[[Entry; ENTRIES]; 2]>,
    /// Places of `entries` that were filled, the user half's from [`ENTRIES`] up, while they are few: a guest that switches
    /// tasks fills a handful between two flushes.
    filled: Vec<u16>,
    /// A bit for each 4 MiB of linear addresses that entries were filled in from a large page.
    large: [u64; 16],
    flushes: Vec<Flush>,
    code_writes: Vec<u64>,
    /// DR6 bits of data breakpoints hit by the instruction being executed; the engine raises #DB after it.
    pub pending_debug: u32,
    /// Pages with a data breakpoint are never entered, so that each access to them takes the slow path.
    watched: [u32; 8],
    watched_len: usize,
}

#[allow(unsafe_code)]
// SAFETY: the pointers in `entries` point into `ram`'s mapping, which is Send and outlives them.
unsafe impl Send for Mmu {}

impl Mmu {
    /// An empty view of `ram`.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            entries: Box::new([[EMPTY; ENTRIES]; 2]),
            filled: Vec::with_capacity(MAX_FILLED),
            large: [0; 16],
            flushes: vec![Flush::All],
            code_writes: Vec::new(),
            pending_debug: 0,
            watched: [0; 8],
            watched_len: 0,
        }
    }

    #[inline(always)]
    pub(super) fn entry(&self, linear: u32, user: bool) -> &Entry {
        &self.entries[user as usize][(linear >> FRAME_SHIFT) as usize % ENTRIES]
    }

    /// Walks for `linear` and, where allowed, remembers the result. The error is a #PF to raise.
    pub(super) fn fill(
        &mut self,
        state: &CpuState,
        linear: u32,
        access: Access,
        user: bool,
    ) -> Result<Translation, Exception> {
        let t = walk(&self.ram, state, linear, access, user).map_err(|code| Exception::page_fault(linear, code))?;
        let page = linear & !0xfff;
        let Some(host) = self.ram.host_address(t.gpa & !0xfff) else { return Ok(t) };
        if self.watched[..self.watched_len].contains(&page) {
            return Ok(t);
        }
        let readable = !user || t.user;
        let writable = readable && t.writable_now && !self.ram.is_code(t.gpa);
        let tag = |ok: bool| if ok { page } else { NEVER };
        let place = (linear >> FRAME_SHIFT) as usize % ENTRIES;
        let half = user as usize;
        if self.entries[half][place].host.is_null() && self.filled.len() < MAX_FILLED {
            self.filled.push((half * ENTRIES + place) as u16);
        }
        if t.page_shift > FRAME_SHIFT {
            let (word, bit) = region(linear);
            self.large[word] |= bit;
        }
        self.entries[half][place] = Entry { read: tag(readable), write: tag(writable), shift: t.page_shift, host };
        Ok(t)
    }

    /// Forgets translations, here and (through [`Self::take_flushes`]) in the engine.
    pub fn flush(&mut self, what: Flush) {
        match what {
            Flush::Page(linear) => {
                for half in self.entries.iter_mut() {
                    half[(linear >> FRAME_SHIFT) as usize % ENTRIES] = EMPTY;
                }
                self.forget_large(linear);
            }
            Flush::NonGlobal | Flush::All => self.forget(),
        }
        if self.flushes.len() >= MAX_NOTICES {
            self.flushes.clear();
            self.flushes.push(Flush::All);
        } else if self.flushes.last() != Some(&Flush::All) {
            self.flushes.push(what);
        }
    }

    /// Forgets every software translation; the engine is not told. For when privilege rules or watched pages change.
    pub fn forget(&mut self) {
        if self.filled.len() == MAX_FILLED {
            // There may be more than are listed.
            self.entries.iter_mut().for_each(|half| half.fill(EMPTY));
        }
        self.large = [0; 16];
        for place in self.filled.drain(..).map(usize::from) {
            self.entries[place / ENTRIES][place % ENTRIES] = EMPTY;
        }
    }

    /// Forgets what was filled from a large page around `linear`: INVLPG forgets such a page whole, also where a page table
    /// has taken its place (SDM vol. 3, §4.10.4.1).
    fn forget_large(&mut self, linear: u32) {
        let (word, bit) = region(linear);
        if self.large[word] & bit == 0 {
            return;
        }
        // Under PAE the region holds two large pages: the bit stays for the other.
        let stale = |e: &Entry| e.shift > FRAME_SHIFT && (e.read ^ linear) >> e.shift == 0;
        if self.filled.len() == MAX_FILLED {
            self.entries.iter_mut().flatten().filter(|e| stale(e)).for_each(|e| *e = EMPTY);
        } else {
            for place in self.filled.iter().map(|place| *place as usize) {
                let entry = &mut self.entries[place / ENTRIES][place % ENTRIES];
                if stale(entry) {
                    *entry = EMPTY;
                }
            }
        }
    }

    /// Says that an engine took code from the frame of `gpa`: later stores to it are noted for [`Self::take_code_writes`].
    pub fn watch_code(&mut self, gpa: u64) {
        if !self.ram.is_code(gpa) {
            self.ram.mark_code(gpa);
            if let Some(host) = self.ram.host_address(gpa & !0xfff) {
                for e in self.entries.iter_mut().flatten().filter(|e| e.host == host) {
                    e.write = NEVER;
                }
            }
        }
    }

    /// Sets the linear pages that hold data breakpoints (at most eight, page aligned).
    pub fn watch_data(&mut self, pages: &[u32]) {
        let n = pages.len().min(self.watched.len());
        self.watched[..n].copy_from_slice(&pages[..n]);
        self.watched_len = n;
        self.forget();
    }

    /// True if any page holds a data breakpoint.
    pub fn is_watching(&self) -> bool {
        self.watched_len != 0
    }

    /// True if `linear` lies in a page with a data breakpoint.
    #[inline]
    pub fn is_watched(&self, linear: u32) -> bool {
        self.watched_len != 0 && self.watched[..self.watched_len].contains(&(linear & !0xfff))
    }

    /// As [`Self::take_flushes`], into `to`, which is empty; its memory is used again.
    pub fn swap_flushes(&mut self, to: &mut Vec<Flush>) {
        std::mem::swap(&mut self.flushes, to);
    }

    /// Takes what the guest asked to be forgotten since the last call, oldest first.
    pub fn take_flushes(&mut self) -> Vec<Flush> {
        std::mem::take(&mut self.flushes)
    }

    /// True if [`Self::take_flushes`] would return anything.
    #[inline]
    pub fn has_flushes(&self) -> bool {
        !self.flushes.is_empty()
    }

    /// True if [`Self::take_flushes`] or [`Self::take_code_writes`] would return anything.
    #[inline(always)]
    pub fn has_notices(&self) -> bool {
        !self.flushes.is_empty() | !self.code_writes.is_empty()
    }

    /// True if [`Self::take_code_writes`] would return anything.
    #[inline]
    pub fn has_code_writes(&self) -> bool {
        !self.code_writes.is_empty()
    }

    /// Takes the physical frames (addresses, 4 KiB aligned) holding code that Rust code stored to since the last call.
    pub fn take_code_writes(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.code_writes)
    }

    /// Notes a store to a frame that holds code.
    pub fn note_code_write(&mut self, gpa: u64) {
        let frame = gpa & !0xfff;
        if !self.code_writes.contains(&frame) {
            self.code_writes.push(frame);
        }
    }
}
