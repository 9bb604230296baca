//! Windows: 4 GiB ranges of host address space that stand for one guest linear address space each.
//!
//! The host's own MMU translates for the guest: each mapped page of a window is an mmap of the guest RAM memfd, so a
//! guest access at linear address L is a host access at window + L. Windows are 4 GiB aligned, so the low half of any
//! host address inside is the guest's linear address; the gaps between two windows are never mapped and catch what runs
//! over either end. This file only reserves, maps and unmaps; `shadow` decides what.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ram::{FRAME_SHIFT, FRAME_SIZE, GuestRam};

/// Size of a window.
pub const WINDOW_SIZE: u64 = 1 << 32;
/// Before the first window, between two, and after the last, this much is never mapped.
pub const GAP: u64 = 15 << 32;
/// Distance between windows.
const STRIDE: u64 = WINDOW_SIZE + GAP;
const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;

/// One page of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page(u32);

impl Page {
    const MAPPED: u32 = 1;
    const WRITABLE: u32 = 2;
    const EXECUTED: u32 = 4;
    const PARKED: u32 = 8;
    const FLAGS: u32 = 4;

    /// Physical frame number, meaningful if mapped, executed or parked.
    pub fn frame(self) -> u32 {
        self.0 >> Self::FLAGS
    }
    /// The host mapping exists.
    pub fn mapped(self) -> bool {
        self.0 & Self::MAPPED != 0
    }
    /// The host mapping allows stores.
    pub fn writable(self) -> bool {
        self.0 & Self::WRITABLE != 0
    }
    /// An engine relies on this page being fetchable from `frame`.
    pub fn executed(self) -> bool {
        self.0 & Self::EXECUTED != 0
    }
    /// Of the page, only a host mapping of `frame` is left, that nothing can use.
    fn parked(self) -> bool {
        self.0 & Self::PARKED != 0
    }
    /// Nothing is known of the guest's page.
    pub fn is_empty(self) -> bool {
        self.0 & (Self::MAPPED | Self::EXECUTED) == 0
    }
    fn new(frame: u32, mapped: bool, writable: bool, executed: bool) -> Self {
        let flags = [(mapped, Self::MAPPED), (writable, Self::WRITABLE), (executed, Self::EXECUTED)];
        Self(flags.iter().filter(|(on, _)| *on).fold(frame << Self::FLAGS, |bits, (_, flag)| bits | flag))
    }
    fn park(frame: u32) -> Self {
        Self(frame << Self::FLAGS | Self::PARKED)
    }
}

/// The reserved address space that windows are cut from.
pub struct Arena {
    /// The whole reservation.
    at: NonNull<libc::c_void>,
    size: usize,
    base: u64,
    count: usize,
}

// SAFETY: the reservation belongs to this value alone, and no reference into it is ever formed.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves room for `count` windows. Nothing is mapped; the kernel refuses only if address space is limited.
    pub fn new(count: usize) -> Result<Self, nix::Error> {
        // One more, for a gap before the first, and a window's size to align to.
        let size = (count as u64 + 1) * STRIDE;
        let length = NonZeroUsize::new(size as usize).ok_or(nix::Error::EINVAL)?;
        let flags = nix::sys::mman::MapFlags::MAP_PRIVATE
            | nix::sys::mman::MapFlags::MAP_ANONYMOUS
            | nix::sys::mman::MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping that nothing can access; it replaces nothing.
        let at = unsafe { nix::sys::mman::mmap_anonymous(None, length, nix::sys::mman::ProtFlags::PROT_NONE, flags)? };
        let first = at.as_ptr() as u64;
        Ok(Self { at, size: length.get(), base: (first + STRIDE) & !(WINDOW_SIZE - 1), count })
    }
    /// Host address of window `index`.
    pub fn window(&self, index: usize) -> u64 {
        self.base + index as u64 * STRIDE
    }
    /// Window index and linear address of a host address; None outside every window.
    pub fn locate(&self, host: u64) -> Option<(usize, u32)> {
        let offset = host.checked_sub(self.base)?;
        let index = (offset / STRIDE) as usize;
        (index < self.count && offset % STRIDE < WINDOW_SIZE).then_some((index, offset as u32))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours, and the windows in it are gone.
        let _ = unsafe { nix::sys::mman::munmap(self.at, self.size) };
    }
}

/// One window: its host mappings and a record of them.
pub struct Window {
    ram: Arc<GuestRam>,
    base: u64,
    chunks: Vec<Option<Box<[Page; CHUNK]>>>,
    /// Upper bound on the kernel's VMAs that this window uses.
    pub vmas: usize,
    /// Pages mapped now.
    pub mapped: usize,
    /// Pages parked now.
    parked: usize,
    /// Parts of the record that exist, each for 4 MiB of the window.
    pub parts: usize,
}

impl Window {
    /// The empty window at host address `base`, a value of [`Arena::window`] that no other window uses.
    pub fn new(ram: Arc<GuestRam>, base: u64) -> Self {
        let chunks = (0..1 << (20 - CHUNK_BITS)).map(|_| None).collect();
        Self { ram, base, chunks, vmas: 0, mapped: 0, parked: 0, parts: 0 }
    }

    /// What is known of page number `page`.
    #[inline]
    pub fn page(&self, page: u32) -> Page {
        match &self.chunks[(page >> CHUNK_BITS) as usize] {
            Some(chunk) => chunk[page as usize % CHUNK],
            None => Page::default(),
        }
    }

    fn slot(&mut self, page: u32) -> &mut Page {
        let chunk = self.chunks[(page >> CHUNK_BITS) as usize].get_or_insert_with(|| {
            self.parts += 1;
            Box::new([Page::default(); CHUNK])
        });
        &mut chunk[page as usize % CHUNK]
    }

    /// Marks `page` as executed from `frame`. A mapping of another frame is gone by then: the caller has synchronised.
    pub fn set_executed(&mut self, page: u32, frame: u32) {
        let p = self.page(page);
        if p.parked() && self.reserve(page, 1) {
            self.parked -= 1;
        }
        *self.slot(page) = Page::new(frame, p.mapped() && p.frame() == frame, p.writable() && p.frame() == frame, true);
    }

    /// Maps `count` pages from `page` to frames `frame…`, which are contiguous RAM. False if the kernel refused.
    pub fn map(&mut self, page: u32, frame: u32, count: u32, writable: bool) -> bool {
        // Where the kernel's mappings are right already, to change their rights costs a third of making them anew.
        let shown = (0..count).all(|i| {
            let p = self.page(page + i);
            (p.mapped() || p.parked()) && p.frame() == frame + i
        });
        if !(if shown {
            self.set_rights(page, count, access(writable))
        } else {
            self.show(page, frame, count, writable)
        }) {
            return false;
        }
        for i in 0..count {
            let executed = self.page(page + i).executed();
            let was = std::mem::replace(self.slot(page + i), Page::new(frame + i, true, writable, executed));
            self.mapped += !was.mapped() as usize;
            self.parked -= was.parked() as usize;
        }
        self.vmas += 2;
        true
    }

    /// Has the kernel map what [`Self::map`] says.
    fn show(&self, page: u32, frame: u32, count: u32, writable: bool) -> bool {
        let Some(offset) = self.ram.offset_of((frame as u64) << FRAME_SHIFT) else { return false };
        let populate = if count <= 64 { libc::MAP_POPULATE } else { 0 };
        // SAFETY: the range lies inside this window's part of the arena, which holds only guest pages: no Rust object
        // lives there, and Rust code never forms a reference into it.
        let at = unsafe {
            libc::mmap(
                self.host(page),
                count as usize * FRAME_SIZE,
                access(writable),
                libc::MAP_SHARED | libc::MAP_FIXED | populate,
                self.ram.fd().as_raw_fd(),
                offset as i64,
            )
        };
        at != libc::MAP_FAILED
    }

    /// Has the kernel give `count` pages the access rights `prot`.
    fn set_rights(&self, page: u32, count: u32, prot: libc::c_int) -> bool {
        // SAFETY: as in `show`.
        unsafe { libc::mprotect(self.host(page), count as usize * FRAME_SIZE, prot) == 0 }
    }

    /// Takes away the right to store to `count` mapped pages. False if the kernel refused.
    pub fn protect(&mut self, page: u32, count: u32) -> bool {
        if !self.set_rights(page, count, access(false)) {
            return false;
        }
        for i in 0..count {
            let p = self.page(page + i);
            *self.slot(page + i) = Page::new(p.frame(), p.mapped(), false, p.executed());
        }
        self.vmas += 2;
        true
    }

    /// Unmaps `count` pages and forgets them.
    pub fn unmap(&mut self, page: u32, count: u32) -> bool {
        if !self.reserve(page, count as u64) {
            return false;
        }
        for i in 0..count {
            let was = std::mem::take(self.slot(page + i));
            self.mapped -= was.mapped() as usize;
            self.parked -= was.parked() as usize;
        }
        self.vmas += 2;
        true
    }

    /// Forgets `count` pages, of which nothing can be reached any more. What the kernel holds of them is kept: a guest
    /// that maps a page again often gets the frame back that it has just freed.
    pub fn park(&mut self, page: u32, count: u32) -> bool {
        if !self.set_rights(page, count, libc::PROT_NONE) {
            return false;
        }
        for i in 0..count {
            let was = self.page(page + i);
            if was.mapped() {
                self.mapped -= 1;
                self.parked += 1;
            }
            let kept = was.mapped() || was.parked();
            *self.slot(page + i) = if kept { Page::park(was.frame()) } else { Page::default() };
        }
        self.vmas += 2;
        true
    }

    /// Counts the kernel's VMAs that this window uses: neighbouring pages that the file holds side by side share one.
    pub fn count_vmas(&mut self) {
        let mut count = 1;
        let mut last: Option<(u32, Page)> = None;
        for (n, p) in self.noted(0, 1 << 20).filter(|(_, p)| p.mapped() || p.parked()) {
            let rights = |p: Page| (p.mapped(), p.writable());
            let joined = last
                .is_some_and(|(m, q)| m + 1 == n && q.frame().wrapping_add(1) == p.frame() && rights(q) == rights(p));
            let after_gap = last.is_none_or(|(m, _)| m + 1 != n);
            count += if joined { 0 } else { 1 + after_gap as usize };
            last = Some((n, p));
        }
        self.vmas = count;
    }

    /// Forgets that `page` is executed, keeping its mapping.
    pub fn clear_executed(&mut self, page: u32) {
        let p = self.page(page);
        *self.slot(page) = Page::new(p.frame(), p.mapped(), p.writable(), false);
    }

    /// Unmaps and forgets everything.
    pub fn clear(&mut self) -> bool {
        if self.mapped + self.parked != 0 && !self.reserve(0, 1 << 20) {
            return false;
        }
        self.chunks.iter_mut().for_each(|c| *c = None);
        (self.mapped, self.parked, self.vmas, self.parts) = (0, 0, 0, 0);
        true
    }

    /// The pages known of in `from..to`, in order.
    pub fn known(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, Page)> + '_ {
        self.noted(from, to).filter(|(_, p)| !p.is_empty())
    }

    /// The records of `from..to`, as far as they exist, in order.
    fn noted(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, Page)> + '_ {
        (from >> CHUNK_BITS..=(to.saturating_sub(1)) >> CHUNK_BITS)
            .filter_map(|c| Some((c << CHUNK_BITS, self.chunks.get(c as usize)?.as_ref()?)))
            .flat_map(move |(first, chunk)| {
                let (start, end) = (from.max(first) - first, (to - first).min(CHUNK as u32));
                let pages = chunk.get(start as usize..end as usize).unwrap_or_default();
                (first + start..).zip(pages.iter().copied())
            })
    }

    fn host(&self, page: u32) -> *mut libc::c_void {
        (self.base + ((page as u64) << FRAME_SHIFT)) as *mut libc::c_void
    }

    fn reserve(&self, page: u32, count: u64) -> bool {
        // SAFETY: as in `show`; the range becomes inaccessible.
        let at = unsafe {
            libc::mmap(
                self.host(page),
                count as usize * FRAME_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        at != libc::MAP_FAILED
    }
}

/// Access rights of a page that the guest can reach.
fn access(writable: bool) -> libc::c_int {
    libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.clear();
    }
}
