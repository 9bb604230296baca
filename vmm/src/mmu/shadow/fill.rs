//! Filling windows: a host fault becomes a mapping, together with the neighbours that an access would find ready.

use super::super::ram::FRAME_SHIFT;
use super::super::walk::{Access, Translation, leaf_entry, peek, pte, walk};
use super::super::window::Page;
use super::space::{Runs, Table};
use super::{KERNEL_SPLIT, Resolution, Rights, Shadow};
use crate::cpu::CpuState;

/// Faults between two looks at what all windows take together: adding that up takes as long as a page walk, and the
/// limits leave room for what some dozens of faults can map.
const ROOM_EVERY: u64 = 32;
/// Pages looked at around a fault.
const AROUND: u32 = 16;

impl Shadow {
    /// Handles a host fault at `linear` of window `index`. `state` is complete. Guest accessed and dirty bits are set
    /// as the access would.
    pub fn resolve(&mut self, state: &CpuState, index: usize, linear: u32, write: bool) -> Resolution {
        self.stats.faults += 1;
        if self.stats.faults.is_multiple_of(ROOM_EVERY) {
            self.make_room(index);
        }
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
        if self.map_around(state, index, linear, t) { Resolution::Mapped } else { Resolution::Interpret }
    }

    /// An access to `linear` in the window for `rights` has caused a guest page fault, whose handler is about to return to
    /// the instruction: maps the page if the handler left it so that the access changes nothing in the tables. That spares
    /// a host fault.
    pub fn anticipate(&mut self, state: &CpuState, rights: Rights, linear: u32, write: bool) {
        if !self.exists(rights) || (rights == Rights::Kernel && linear < KERNEL_SPLIT) {
            return;
        }
        let (index, _) = self.window(state, rights);
        let Some(t) = peek(&self.ram, state, linear, rights.is_user()) else { return };
        let code = write && self.ram.is_code(t.gpa);
        let there = self.page(index, linear >> FRAME_SHIFT);
        let ready = there.mapped() && (there.writable() || !write);
        if self.ram.offset_of(t.gpa).is_some() && (!write || t.writable_now) && !code && !ready {
            self.stats.anticipated += 1;
            self.map_around(state, index, linear, t);
        }
    }

    /// Maps the page of `linear`, found by `t`, and the neighbours that an access would find ready.
    pub(super) fn map_around(&mut self, state: &CpuState, index: usize, linear: u32, t: Translation) -> bool {
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
        if pages > 1 {
            self.note_large(state, index, linear);
        }
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

    /// The frame that the page of `linear` is executed from in window `index`, if that is noted.
    pub fn executed(&self, index: usize, linear: u32) -> Option<u32> {
        let page = self.page(index, linear >> FRAME_SHIFT);
        page.executed().then(|| page.frame())
    }

    pub(super) fn page(&self, index: usize, page: u32) -> Page {
        self.spaces[index].as_ref().map_or(Page::default(), |s| s.window.page(page))
    }

    pub(super) fn map(&mut self, index: usize, page: u32, frame: u32, count: u32, writable: bool) -> bool {
        let replaced = self.frames_written(index, page, count);
        let Some(s) = &mut self.spaces[index] else { return false };
        if !s.window.map(page, frame, count, writable) {
            // The kernel may have done a part.
            self.clear(index);
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
        self.note_large(state, index, linear);
        if let Some(s) = &mut self.spaces[index] {
            s.window.set_executed(page, frame);
            s.refresh(&self.ram, page, 1);
            if s.rights == Rights::Kernel && !global {
                s.note_local(page..page + 1);
            }
        }
    }

    /// Keeps a copy of the table that maps `linear`, for [`Self::synchronise`].
    pub(super) fn remember(&mut self, state: &CpuState, index: usize, linear: u32, global: bool) {
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
}
