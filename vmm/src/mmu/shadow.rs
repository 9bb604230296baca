//! Shadow windows: which window stands for which guest address space, and what is mapped in it.
//!
//! A window is a TLB made of host mappings. There is one for each kind of [`Rights`] over an address space:
//!
//! * *Physical*: paging is off; linear addresses are physical ones.
//! * *Kernel*: what the supervisor sees from [`KERNEL_SPLIT`] up. One window, shared by all address spaces: global
//!   entries may outlive a CR3 write on real processors too; pages that are not global are checked at each CR3 write.
//! * *User*: what ring 3 may touch, one per CR3 value. The supervisor reaches user memory through it as well, for its
//!   rights on user pages are the same while CR0.WP is set; what differs is left to the interpreter.
//! * *Low*: what the supervisor sees below the split, made only for address spaces that have supervisor pages there. Where
//!   the pages above it are not global either and differ from one address space to the next, it stands for all that the
//!   supervisor sees: Linux with page-table isolation writes CR3 twice in each system call.
//!
//! A window that is not current may go stale while the guest edits its page tables. So each keeps a copy of the tables
//! it was filled from, and compares when its CR3 is loaded again.

mod change;
mod fill;
mod space;
mod sync;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use self::space::{Regions, Space};
use super::ram::{FRAME_SHIFT, GuestRam};
use super::window::{Arena, Window};
use super::writers::Writers;
use crate::cpu::CpuState;

/// Linear address from which supervisor accesses use the shared kernel window.
pub const KERNEL_SPLIT: u32 = 0xc000_0000;
/// Windows kept at most.
const MAX_WINDOWS: usize = 192;
/// Memory that all windows' records and host page tables may take, in bytes, as [`Space::weight`](space::Space::weight) estimates it.
const MAX_WEIGHT: usize = 64 << 20;
/// Runs of pages, or windows' views of one frame, that are changed one by one; beyond, whole windows start afresh.
const MAX_PIECES: usize = 1024;

/// What CR3 writes may cost, in pages taken out of the kernel window, before every address space gets one of its own.
const MAX_LOCAL_COST: u64 = 4096;

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

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ShadowStats {
    pub faults: u64,
    pub pages_mapped: u64,
    pub pages_unmapped: u64,
    pub pages_protected: u64,
    pub anticipated: u64,
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
    by_rights: HashMap<Rights, usize, RandomState>,
    writers: Writers,
    clock: u64,
    version: u64,
    /// Counts CR3 writes.
    epoch: u64,
    vma_limit: usize,
    /// What CR3 writes have cost because pages of the kernel window are not global, in pages mapped again.
    local_cost: u64,
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
            by_rights: HashMap::default(),
            writers: Writers::new(frames),
            clock: 0,
            version: 0,
            epoch: 0,
            vma_limit,
            local_cost: 0,
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

    /// True once sharing the kernel window has been found to cost more at CR3 writes than it is worth.
    pub fn kernel_is_local(&self) -> bool {
        self.local_cost > MAX_LOCAL_COST
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

    /// True if the window for `rights` exists and shows the page of `linear`, for stores too if `write`.
    pub fn shows(&self, rights: Rights, linear: u32, write: bool) -> bool {
        self.by_rights.get(&rights).is_some_and(|index| {
            let page = self.page(*index, linear >> FRAME_SHIFT);
            page.mapped() && (page.writable() || !write)
        })
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
            tables: HashMap::default(),
            from_large: Regions::default(),
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

    /// Makes room for what the next faults may map, by dropping other windows or, when there are none, emptying what is
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
}
