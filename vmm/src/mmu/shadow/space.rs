//! One window with what was noted while it was filled: the copies of the tables by which it is brought up to date.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::super::ram::GuestRam;
use super::super::walk::LeafEntry;
use super::super::window::Window;
use super::Rights;

/// A copy of one page table (or large-page directory entry) that a window was filled from.
pub(super) struct Table {
    pub(super) entry: LeafEntry,
    /// Physical address of the table and its content when last looked at; None for a large page.
    pub(super) copy: Option<(u64, Box<[u8; 4096]>)>,
    /// The first page it maps.
    pub(super) first: u32,
    /// Number of pages it maps.
    pub(super) pages: u32,
}

/// A window in use.
pub(super) struct Space {
    pub(super) rights: Rights,
    pub(super) window: Window,
    pub(super) tables: HashMap<u32, Table, RandomState>,
    /// Where pages were mapped, or executed, from large pages.
    pub(super) from_large: Regions,
    /// Pages to check at each CR3 write: mapped from entries that are not global (kernel window only).
    pub(super) local: Vec<u32>,
    /// The mapping of an executed page changed since [`super::Shadow::take_code_changed`].
    pub(super) code_changed: bool,
    pub(super) used: u64,
    /// Value of [`super::Shadow::epoch`] when last brought up to date.
    pub(super) epoch: u64,
}

impl Space {
    /// Bytes that this window costs: its own records, the reverse map's, and the host's page tables.
    pub(super) fn weight(&self) -> usize {
        const PART: usize = 3 * 4096;
        const TABLE: usize = 4096 + 256;
        const PAGE: usize = 16;
        self.window.parts * PART + self.tables.len() * TABLE + self.window.mapped * PAGE + self.local.len() * 4
    }

    /// Notes pages of the kernel window to check at each CR3 write.
    pub(super) fn note_local(&mut self, pages: std::ops::Range<u32>) {
        self.local.extend(pages);
        if self.local.len() > 2 * self.window.mapped + 4 * 1024 {
            self.local.sort_unstable();
            self.local.dedup();
        }
    }

    /// Brings the table copies up to date for pages that are being mapped: from here on a difference means that the
    /// guest changed the entry after it was mapped.
    pub(super) fn refresh(&mut self, ram: &GuestRam, page: u32, count: u32) {
        for p in page..page + count {
            let table = match self.tables.get_mut(&(p & !1023)) {
                Some(t) if t.pages == 1024 => Some(t),
                _ => self.tables.get_mut(&(p & !511)),
            };
            let Some(Table { entry, copy: Some((gpa, copy)), first, .. }) = table else { continue };
            let (size, at) = (entry.size as usize, (p - *first) as usize * entry.size as usize);
            ram.read(*gpa + at as u64, &mut copy[at..at + size]);
        }
    }
}

/// A set of regions of 4 MiB.
#[derive(Default)]
pub(super) struct Regions([u64; 16]);

impl Regions {
    /// Adds the region of `page`.
    pub(super) fn insert(&mut self, page: u32) {
        self.0[(page >> 16) as usize % 16] |= 1 << (page >> 10 & 63);
    }

    /// True if the region of `page` is among them.
    pub(super) fn contains(&self, page: u32) -> bool {
        self.0[(page >> 16) as usize % 16] >> (page >> 10 & 63) & 1 != 0
    }

    /// Takes the region of `page` out; whether it was there.
    pub(super) fn remove(&mut self, page: u32) -> bool {
        let word = &mut self.0[(page >> 16) as usize % 16];
        let old = *word;
        *word &= !(1 << (page >> 10 & 63));
        *word != old
    }
}

/// Pages gathered into runs.
#[derive(Default)]
pub(super) struct Runs(pub(super) Vec<(u32, u32)>);

impl Runs {
    pub(super) fn push(&mut self, page: u32) {
        match self.0.last_mut() {
            Some((start, count)) if *start + *count == page => *count += 1,
            _ => self.0.push((page, 1)),
        }
    }
}
