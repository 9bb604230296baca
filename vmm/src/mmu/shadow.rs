//! Shadow windows: which window stands for which guest address space, and what is mapped in it.
//!
//! A window is a TLB made of host mappings. There is one for each kind of [`Rights`] over an address space:
//!
//! * *Physical*: paging is off; linear addresses are physical ones.
//! * *Kernel*: what the supervisor sees from [`KERNEL_SPLIT`] up. One window, shared by all address spaces: global
//!   entries may outlive a CR3 write on real processors too; pages that are not global are checked at each CR3 write.
//! * *User*: what ring 3 may touch, one per CR3 value. The supervisor reaches user memory through it as well, for its
//!   rights on user pages are the same while CR0.WP is set; what differs is left to the interpreter.
//! * *Low*: what the supervisor sees below the split, made only for address spaces that have supervisor pages there.
//!
//! A window that is not current may go stale while the guest edits its page tables. So each keeps a copy of the tables
//! it was filled from, and compares when its CR3 is loaded again.

use std::collections::HashMap;
use std::sync::Arc;

use super::ram::{FRAME_SHIFT, GuestRam};
use super::walk::{Access, LeafEntry, Translation, leaf_entry, peek, pte, walk};
use super::window::{Arena, Page, Window};
use super::writers::Writers;
use crate::cpu::CpuState;

/// Linear address from which supervisor accesses use the shared kernel window.
pub const KERNEL_SPLIT: u32 = 0xc000_0000;
/// Pages looked at around a fault.
const AROUND: u32 = 16;
/// Windows kept at most.
const MAX_WINDOWS: usize = 192;
/// Memory that all windows' records and host page tables may take, in bytes, as [`Space::weight`] estimates it.
const MAX_WEIGHT: usize = 64 << 20;
/// Runs of pages, or windows' views of one frame, that are changed one by one; beyond, whole windows start afresh.
const MAX_PIECES: usize = 1024;

/// Why shadow windows could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// The address-space reservation failed.
    #[error("reserving address space for {0} windows of 8 GiB: is RLIMIT_AS set? The translator needs it unlimited")]
    Reserve(usize, #[source] nix::Error),
}

/// Whose view of an address space a window holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// Paging is off.
    Physical,
    /// Supervisor, from [`KERNEL_SPLIT`] up, any address space.
    Kernel,
    /// Ring 3 under this CR3.
    User(u32),
    /// Supervisor below the split under this CR3.
    Low(u32),
}

impl Rights {
    fn is_user(self) -> bool {
        matches!(self, Rights::User(_))
    }
}

/// What became of a host fault in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The page is mapped now: run the instruction again.
    Mapped,
    /// A store to a frame that code was translated from: interpret it, and see what it changed.
    CodeWrite,
    /// Mapping cannot help (a guest fault, MMIO, a page the window may not show): interpret the instruction.
    Interpret,
}

/// A copy of one page table (or large-page directory entry) that a window was filled from.
struct Table {
    entry: LeafEntry,
    /// Physical address of the table and its content when last looked at; None for a large page.
    copy: Option<(u64, Box<[u8; 4096]>)>,
    /// The first page it maps.
    first: u32,
    /// Number of pages it maps.
    pages: u32,
}

struct Space {
    rights: Rights,
    window: Window,
    tables: HashMap<u32, Table>,
    /// Pages to check at each CR3 write: mapped from entries that are not global (kernel window only).
    local: Vec<u32>,
    /// The mapping of an executed page changed since [`Shadow::take_code_changed`].
    code_changed: bool,
    used: u64,
    /// Value of [`Shadow::epoch`] when last brought up to date.
    epoch: u64,
}

impl Space {
    /// Bytes that this window costs: its own records, the reverse map's, and the host's page tables.
    fn weight(&self) -> usize {
        const PART: usize = 3 * 4096;
        const TABLE: usize = 4096 + 256;
        const PAGE: usize = 16;
        self.window.parts * PART + self.tables.len() * TABLE + self.window.mapped * PAGE + self.local.len() * 4
    }

    /// Notes pages of the kernel window to check at each CR3 write.
    fn note_local(&mut self, pages: std::ops::Range<u32>) {
        self.local.extend(pages);
        if self.local.len() > 2 * self.window.mapped + 4 * 1024 {
            self.local.sort_unstable();
            self.local.dedup();
        }
    }

    /// Brings the table copies up to date for pages that are being mapped: from here on a difference means that the
    /// guest changed the entry after it was mapped.
    fn refresh(&mut self, ram: &GuestRam, page: u32, count: u32) {
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

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ShadowStats {
    pub faults: u64,
    pub pages_mapped: u64,
    pub pages_unmapped: u64,
    pub pages_protected: u64,
    pub windows_made: u64,
    pub windows_evicted: u64,
    pub syncs: u64,
    pub tables_changed: u64,
}

/// All windows of one processor.
pub struct Shadow {
    ram: Arc<GuestRam>,
    /// Dropped before the arena that they lie in.
    spaces: Vec<Option<Space>>,
    arena: Arena,
    by_rights: HashMap<Rights, usize>,
    writers: Writers,
    clock: u64,
    version: u64,
    /// Counts CR3 writes.
    epoch: u64,
    vma_limit: usize,
    /// Counters.
    pub stats: ShadowStats,
}

impl Shadow {
    /// Windows over `ram`, using at most `vma_limit` kernel mappings (vm.max_map_count less what others need).
    pub fn new(ram: Arc<GuestRam>, vma_limit: usize) -> Result<Self, ShadowError> {
        let arena = Arena::new(MAX_WINDOWS).map_err(|e| ShadowError::Reserve(MAX_WINDOWS, e))?;
        let frames = (ram.size() >> FRAME_SHIFT) as usize;
        Ok(Self {
            ram,
            spaces: (0..MAX_WINDOWS).map(|_| None).collect(),
            arena,
            by_rights: HashMap::new(),
            writers: Writers::new(frames),
            clock: 0,
            version: 0,
            epoch: 0,
            vma_limit,
            stats: ShadowStats::default(),
        })
    }

    /// The window for `rights`, made if need be: its index, and the host address of its linear address 0.
    /// It is brought up to date first if the guest has written CR3 since it was last current.
    pub fn window(&mut self, state: &CpuState, rights: Rights) -> (usize, u64) {
        self.clock += 1;
        let index = match self.by_rights.get(&rights) {
            Some(&i) => i,
            None => self.make(rights),
        };
        if let Some(s) = &mut self.spaces[index] {
            s.used = self.clock;
            if std::mem::replace(&mut s.epoch, self.epoch) != self.epoch {
                self.synchronise(state, index);
            }
        }
        (index, self.arena.window(index))
    }

    /// Changes whenever a window comes, goes or is emptied.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The RAM that all windows show.
    #[cfg(test)]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// True if `rights` has a window already.
    pub fn exists(&self, rights: Rights) -> bool {
        self.by_rights.contains_key(&rights)
    }

    /// Window index and linear address of a host address.
    pub fn locate(&self, host: u64) -> Option<(usize, u32)> {
        self.arena.locate(host)
    }

    /// Whose view window `index` holds.
    pub fn rights(&self, index: usize) -> Option<Rights> {
        self.spaces.get(index)?.as_ref().map(|s| s.rights)
    }

    fn make(&mut self, rights: Rights) -> usize {
        let index = match self.spaces.iter().position(Option::is_none) {
            Some(free) => free,
            // At most two windows are shared, so there is one to drop.
            None => self.evict(None).unwrap_or(0),
        };
        self.stats.windows_made += 1;
        self.version += 1;
        let window = Window::new(self.ram.clone(), self.arena.window(index));
        let space = Space {
            rights,
            window,
            tables: HashMap::new(),
            local: Vec::new(),
            code_changed: true,
            used: self.clock,
            epoch: self.epoch,
        };
        self.spaces[index] = Some(space);
        self.by_rights.insert(rights, index);
        index
    }

    /// Drops the least recently used window but `keep` and the shared ones; its index, if there is one.
    fn evict(&mut self, keep: Option<usize>) -> Option<usize> {
        let oldest = self.spaces.iter().enumerate().filter(|(i, s)| {
            Some(*i) != keep && s.as_ref().is_some_and(|s| !matches!(s.rights, Rights::Kernel | Rights::Physical))
        });
        let index = oldest.min_by_key(|(_, s)| s.as_ref().map(|s| s.used)).map(|(i, _)| i)?;
        self.stats.windows_evicted += 1;
        self.clear(index);
        if let Some(s) = self.spaces[index].take() {
            self.by_rights.remove(&s.rights);
        }
        Some(index)
    }

    fn file_frame(&self, frame: u32) -> Option<usize> {
        Some((self.ram.offset_of((frame as u64) << FRAME_SHIFT)? >> FRAME_SHIFT) as usize)
    }

    /// Handles a host fault at `linear` of window `index`. `state` is complete. Guest accessed and dirty bits are set
    /// as the access would.
    pub fn resolve(&mut self, state: &CpuState, index: usize, linear: u32, write: bool) -> Resolution {
        self.stats.faults += 1;
        let Some(space) = self.spaces.get(index).and_then(Option::as_ref) else { return Resolution::Interpret };
        let rights = space.rights;
        let access = if write { Access::Write } else { Access::Read };
        let Ok(t) = walk(&self.ram, state, linear, access, rights.is_user()) else { return Resolution::Interpret };
        if self.ram.offset_of(t.gpa).is_none() || (rights == Rights::Kernel && linear < KERNEL_SPLIT) {
            return Resolution::Interpret;
        }
        if write && self.ram.is_code(t.gpa) {
            return Resolution::CodeWrite;
        }
        if write && !t.writable_now {
            return Resolution::Interpret;
        }
        self.make_room(index);
        if self.map_around(state, index, linear, t) { Resolution::Mapped } else { Resolution::Interpret }
    }

    /// Makes room for what one more fault may map, by dropping other windows or, when there are none, emptying what is
    /// left. Windows other than `keep` may be gone after: see [`ShadowStats::windows_evicted`].
    fn make_room(&mut self, keep: usize) {
        if self.vmas() <= self.vma_limit && self.weight() <= MAX_WEIGHT {
            return;
        }
        // What windows count is an upper bound, which one look at their pages makes exact. Then half is freed, so that the
        // look is rare.
        self.spaces.iter_mut().flatten().for_each(|s| s.window.count_vmas());
        if self.vmas() <= self.vma_limit / 2 && self.weight() <= MAX_WEIGHT {
            return;
        }
        while self.vmas() > self.vma_limit / 2 || self.weight() > MAX_WEIGHT / 2 {
            if self.evict(Some(keep)).is_none() {
                (0..self.spaces.len()).for_each(|i| self.clear(i));
                return;
            }
        }
    }

    fn vmas(&self) -> usize {
        self.spaces.iter().flatten().map(|s| s.window.vmas).sum()
    }

    fn weight(&self) -> usize {
        self.spaces.iter().flatten().map(Space::weight).sum()
    }

    /// Maps the page of `linear`, found by `t`, and the neighbours that an access would find ready.
    fn map_around(&mut self, state: &CpuState, index: usize, linear: u32, t: Translation) -> bool {
        let page = linear >> FRAME_SHIFT;
        let frame = (t.gpa >> FRAME_SHIFT) as u32;
        let pages = 1u32 << (t.page_shift - FRAME_SHIFT);
        let (first, count) = if !state.paging() {
            (page & !0x3ff, 0x400)
        } else if pages > 1 {
            (page & !(pages - 1), pages)
        } else {
            (page & !(AROUND - 1), AROUND)
        };
        self.remember(state, index, linear, t.global);
        let user = matches!(self.rights(index), Some(Rights::User(_)));
        let linear_run = !state.paging() || pages > 1;
        let mut run: Option<(u32, u32, u32, bool)> = None;
        let mut ok = true;
        for p in first..first + count {
            let found = if p == page {
                Some((frame, t.writable_now))
            } else if self.page(index, p).mapped() && (self.page(index, p).writable() || !t.writable_now) {
                None
            } else if linear_run {
                Some((frame.wrapping_add(p.wrapping_sub(page)), t.writable_now))
            } else {
                let n = peek(&self.ram, state, p << FRAME_SHIFT, user);
                n.filter(|n| n.global == t.global).map(|n| ((n.gpa >> FRAME_SHIFT) as u32, n.writable_now))
            };
            let found = found
                .filter(|(f, _)| self.file_frame(*f).is_some())
                .map(|(f, w)| (f, w && !self.ram.is_code((f as u64) << FRAME_SHIFT)));
            match (&mut run, found) {
                (Some((start, base, n, w)), Some((f, fw))) if *base + *n == f && *w == fw && *start + *n == p => {
                    *n += 1
                }
                (_, found) => {
                    if let Some((start, base, n, w)) = run.take() {
                        ok &= self.map(index, start, base, n, w) || !(start..start + n).contains(&page);
                    }
                    run = found.map(|(f, w)| (p, f, 1, w));
                }
            }
        }
        if let Some((start, base, n, w)) = run {
            ok &= self.map(index, start, base, n, w) || !(start..start + n).contains(&page);
        }
        if index < self.spaces.len()
            && !t.global
            && let Some(s) = &mut self.spaces[index]
            && s.rights == Rights::Kernel
        {
            s.note_local(first..first + count);
        }
        ok
    }

    fn page(&self, index: usize, page: u32) -> Page {
        self.spaces[index].as_ref().map_or(Page::default(), |s| s.window.page(page))
    }

    fn map(&mut self, index: usize, page: u32, frame: u32, count: u32, writable: bool) -> bool {
        let replaced = self.frames_written(index, page, count);
        let Some(s) = &mut self.spaces[index] else { return false };
        if !s.window.map(page, frame, count, writable) {
            return false;
        }
        s.refresh(&self.ram, page, count);
        self.stats.pages_mapped += count as u64;
        let kept = |p: u32| (page..page + count).contains(&p);
        for f in replaced {
            self.writers.retain(f, |i, p| i != index || !kept(p));
        }
        if writable {
            for i in 0..count {
                if let Some(f) = self.file_frame(frame + i) {
                    self.writers.add(f, index, page + i);
                }
            }
        }
        true
    }

    /// The frames (places in the RAM file) that pages of a window can store to, each once.
    fn frames_written(&self, index: usize, page: u32, count: u32) -> Vec<usize> {
        let Some(s) = &self.spaces[index] else { return Vec::new() };
        let pages = s.window.known(page, page + count).filter(|(_, p)| p.writable());
        let mut frames: Vec<usize> = pages.filter_map(|(_, p)| self.file_frame(p.frame())).collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }

    /// Takes pages that window `index` can store to no longer out of the reverse map. `frames` are those they showed.
    fn forget_writers(&mut self, index: usize, frames: &[usize]) {
        let window = self.spaces[index].as_ref().map(|s| &s.window);
        for &f in frames {
            self.writers.retain(f, |i, p| i != index || window.is_some_and(|w| w.page(p).writable()));
        }
    }

    fn unmap(&mut self, index: usize, page: u32, count: u32) {
        self.change(index, &[(page, count)], &[]);
    }

    /// Unmaps the runs in `unmap` and takes the right to store from those in `protect`. What the kernel refuses, or what
    /// would take too many calls, is done by emptying the window.
    fn change(&mut self, index: usize, unmap: &[(u32, u32)], protect: &[(u32, u32)]) {
        let all = || unmap.iter().chain(protect);
        let mut frames = Vec::new();
        all().for_each(|(page, count)| frames.extend(self.frames_written(index, *page, *count)));
        frames.sort_unstable();
        frames.dedup();
        let total = |runs: &[(u32, u32)]| runs.iter().map(|(_, count)| *count as u64).sum::<u64>();
        self.stats.pages_unmapped += total(unmap);
        self.stats.pages_protected += total(protect);
        let Some(s) = &mut self.spaces[index] else { return };
        let executed =
            |s: &Space, (page, count): (u32, u32)| s.window.known(page, page + count).any(|(_, p)| p.executed());
        s.code_changed |= unmap.iter().any(|run| executed(s, *run));
        let done = all().count() <= MAX_PIECES
            && unmap.iter().all(|(page, count)| s.window.unmap(*page, *count))
            && protect.iter().all(|(page, count)| s.window.protect(*page, *count, false));
        match done {
            true => self.forget_writers(index, &frames),
            false => self.clear(index),
        }
    }

    /// Empties window `index`.
    fn clear(&mut self, index: usize) {
        self.version += 1;
        let frames = self.frames_written(index, 0, 1 << 20);
        let Some(s) = &mut self.spaces[index] else { return };
        self.stats.pages_unmapped += s.window.mapped as u64;
        // The kernel replaces many mappings by one, which it has no reason to refuse. What stays mapped here though the
        // guest changed it would let the guest see it: that is worth dying for.
        assert!(s.window.clear(), "the kernel does not unmap a window");
        s.tables = HashMap::new();
        s.local = Vec::new();
        s.code_changed = true;
        self.forget_writers(index, &frames);
    }

    /// Takes the right to store to the frame at `gpa` away from every window: code is translated from it.
    pub fn protect_frame(&mut self, gpa: u64) {
        let Some(f) = self.file_frame((gpa >> FRAME_SHIFT) as u32) else { return };
        let mut views = self.writers.of(f);
        views.sort_unstable();
        for of_window in views.chunk_by(|a, b| a.0 == b.0) {
            let mut runs = Runs::default();
            of_window.iter().for_each(|(_, page)| runs.push(*page));
            self.change(of_window[0].0, &[], &runs.0);
        }
    }

    /// Notes that code is executed from `linear` in window `index`, at physical address `gpa`: if that mapping changes,
    /// [`Self::take_code_changed`] says so.
    pub fn note_executed(&mut self, state: &CpuState, index: usize, linear: u32, gpa: u64, global: bool) {
        let (page, frame) = (linear >> FRAME_SHIFT, (gpa >> FRAME_SHIFT) as u32);
        let known = self.page(index, page);
        if known.executed() && known.frame() == frame {
            return;
        }
        if !known.is_empty() && known.frame() != frame {
            self.unmap(index, page, 1);
        }
        self.remember(state, index, linear, global);
        if let Some(s) = &mut self.spaces[index] {
            s.window.set_executed(page, frame);
            s.refresh(&self.ram, page, 1);
            if s.rights == Rights::Kernel && !global {
                s.note_local(page..page + 1);
            }
        }
    }

    /// True once if an executed page of window `index` changed its mapping since the last call. All its executed marks
    /// are gone then.
    pub fn take_code_changed(&mut self, index: usize) -> bool {
        let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) else { return false };
        if !std::mem::take(&mut s.code_changed) {
            return false;
        }
        let executed: Vec<u32> = s.window.known(0, 1 << 20).filter(|(_, p)| p.executed()).map(|(n, _)| n).collect();
        executed.into_iter().for_each(|p| s.window.clear_executed(p));
        true
    }

    /// Keeps a copy of the table that maps `linear`, for [`Self::synchronise`].
    fn remember(&mut self, state: &CpuState, index: usize, linear: u32, global: bool) {
        let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) else { return };
        if s.rights == Rights::Kernel && global {
            return;
        }
        let Some(entry) = leaf_entry(&self.ram, state, linear) else { return };
        let pages = if entry.size == 8 { 512 } else { 1024 };
        let first = (linear >> FRAME_SHIFT) & !(pages - 1);
        let stale = s.tables.get(&first).is_none_or(|t| (t.entry.pde ^ entry.pde) & !(pte::A | pte::D) != 0);
        if !stale {
            return;
        }
        // The directory entry changed under us: what was mapped through the old one may be anything.
        let mut old = Runs::default();
        s.window.known(first, first + pages).for_each(|(n, _)| old.push(n));
        self.change(index, &old.0, &[]);
        let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) else { return };
        let copy = entry.pte_gpa.map(|gpa| {
            let mut bytes = Box::new([0; 4096]);
            self.ram.read(gpa & !0xfff, &mut bytes[..]);
            (gpa & !0xfff, bytes)
        });
        s.tables.insert(first, Table { entry, copy, first, pages });
    }

    /// The guest wrote CR3: every window is doubtful until it is next asked for.
    pub fn flush_local(&mut self) {
        self.epoch += 1;
    }

    /// Brings window `index` up to date with the guest's page tables, as a CR3 write requires.
    fn synchronise(&mut self, state: &CpuState, index: usize) {
        self.stats.syncs += 1;
        let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) else { return };
        if s.rights == Rights::Kernel {
            let mut local = std::mem::take(&mut s.local);
            local.sort_unstable();
            local.dedup();
            self.check_pages(state, index, &local);
            return;
        }
        let mut doubtful = Vec::new();
        let (ram, stats) = (&self.ram, &mut self.stats);
        let window = &s.window;
        s.tables.retain(|_, table| {
            let pde = match table.entry.size {
                8 => ram.read_u64(table.entry.pde_gpa),
                _ => ram.read_u32(table.entry.pde_gpa).map(u64::from),
            };
            let same =
                leaf_entry(ram, state, table.first << FRAME_SHIFT).is_some_and(|e| e.pde_gpa == table.entry.pde_gpa);
            if !same || pde.is_none_or(|pde| (pde ^ table.entry.pde) & !(pte::A | pte::D) != 0) {
                doubtful.extend(window.known(table.first, table.first + table.pages).map(|(n, _)| n));
                return false;
            }
            if let Some((gpa, copy)) = &mut table.copy
                && !ram.equals(*gpa, &copy[..])
            {
                stats.tables_changed += 1;
                changed_pages(ram, *gpa, copy, table.entry.size as usize, table.first, window, &mut doubtful);
            }
            true
        });
        self.check_pages(state, index, &doubtful);
    }

    /// Brings one page of every window that may show the current address space up to date, as INVLPG requires.
    pub fn synchronise_page(&mut self, state: &CpuState, linear: u32) {
        let page = linear >> FRAME_SHIFT;
        for rights in [Rights::Kernel, Rights::User(state.cr3), Rights::Low(state.cr3)] {
            if let Some(&index) = self.by_rights.get(&rights) {
                // A large page may be mapped by any of its small ones: one INVLPG forgets it whole.
                let large = leaf_entry(&self.ram, state, linear).is_some_and(|e| e.pte_gpa.is_none());
                if large || self.page(index, page).is_empty() {
                    let span = if large { 1024 } else { 1 };
                    let first = page & !(span - 1);
                    let pages: Vec<u32> = match self.spaces[index].as_ref() {
                        Some(s) => s.window.known(first, first + span).map(|(n, _)| n).collect(),
                        None => Vec::new(),
                    };
                    self.check_pages(state, index, &pages);
                } else {
                    self.check_pages(state, index, &[page]);
                }
            }
        }
    }

    /// Forgets everything: paging was reconfigured.
    pub fn forget_all(&mut self) {
        for index in 0..self.spaces.len() {
            if self.spaces[index].as_ref().is_some_and(|s| s.rights != Rights::Physical) {
                self.clear(index);
                if !matches!(self.rights(index), Some(Rights::Kernel))
                    && let Some(s) = self.spaces[index].take()
                {
                    self.by_rights.remove(&s.rights);
                }
            }
        }
    }

    /// Unmaps those of `pages` (ascending within a run) whose guest entries no longer say what is mapped.
    fn check_pages(&mut self, state: &CpuState, index: usize, pages: &[u32]) {
        let Some(rights) = self.rights(index) else { return };
        let mut unmap = Runs::default();
        let mut protect = Runs::default();
        for &page in pages {
            let known = self.page(index, page);
            if known.is_empty() {
                continue;
            }
            let now = peek(&self.ram, state, page << FRAME_SHIFT, rights.is_user());
            match now {
                Some(t) if (t.gpa >> FRAME_SHIFT) as u32 == known.frame() && !(known.executed() && t.no_execute) => {
                    if known.writable() && !t.writable_now {
                        protect.push(page);
                    }
                    if rights == Rights::Kernel
                        && !t.global
                        && let Some(s) = &mut self.spaces[index]
                    {
                        s.note_local(page..page + 1);
                    }
                }
                _ => unmap.push(page),
            }
        }
        self.change(index, &unmap.0, &protect.0);
    }
}

/// Finds the pages whose entries in the table at `gpa` differ from `copy` and are known in `window`; updates `copy`.
fn changed_pages(
    ram: &GuestRam,
    gpa: u64,
    copy: &mut [u8; 4096],
    size: usize,
    first: u32,
    window: &Window,
    changed: &mut Vec<u32>,
) {
    let mut now = [0; 4096];
    ram.read(gpa, &mut now);
    for (i, (old, new)) in copy.chunks_exact(size).zip(now.chunks_exact(size)).enumerate() {
        if old != new && !window.page(first + i as u32).is_empty() {
            changed.push(first + i as u32);
        }
    }
    *copy = now;
}

/// Pages gathered into runs.
#[derive(Default)]
struct Runs(Vec<(u32, u32)>);

impl Runs {
    fn push(&mut self, page: u32) {
        match self.0.last_mut() {
            Some((start, count)) if *start + *count == page => *count += 1,
            _ => self.0.push((page, 1)),
        }
    }
}
