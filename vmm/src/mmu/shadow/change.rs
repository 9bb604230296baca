//! Taking mappings and rights away again, and keeping the reverse map and the notes on executed code true to it.

use super::super::ram::FRAME_SHIFT;
use super::space::{Runs, Space};
use super::{MAX_PIECES, Shadow};

/// Pages of one change that are parked at most: more are not likely to come back, and each may be a kernel mapping.
const PARKED_AT_ONCE: u64 = 16;

impl Shadow {
    /// The frames (places in the RAM file) that pages of a window can store to, each once.
    pub(super) fn frames_written(&self, index: usize, page: u32, count: u32) -> Vec<usize> {
        let Some(s) = &self.spaces[index] else { return Vec::new() };
        let pages = s.window.known(page, page + count).filter(|(_, p)| p.writable());
        let mut frames: Vec<usize> = pages.filter_map(|(_, p)| self.file_frame(p.frame())).collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }

    /// Takes pages that window `index` can store to no longer out of the reverse map. `frames` are those they showed.
    pub(super) fn forget_writers(&mut self, index: usize, frames: &[usize]) {
        let window = self.spaces[index].as_ref().map(|s| &s.window);
        for &f in frames {
            self.writers.retain(f, |i, p| i != index || window.is_some_and(|w| w.page(p).writable()));
        }
    }

    pub(super) fn unmap(&mut self, index: usize, page: u32, count: u32) {
        self.change(index, &[(page, count)], &[]);
    }

    /// Unmaps the runs in `unmap`, parking the pages if they are few, and takes the right to store from those in
    /// `protect`. What the kernel refuses, or what would take too many calls, is done by emptying the window.
    pub(super) fn change(&mut self, index: usize, unmap: &[(u32, u32)], protect: &[(u32, u32)]) {
        if unmap.is_empty() && protect.is_empty() {
            return;
        }
        let all = || unmap.iter().chain(protect);
        let mut frames = Vec::new();
        all().for_each(|(page, count)| frames.extend(self.frames_written(index, *page, *count)));
        frames.sort_unstable();
        frames.dedup();
        let total = |runs: &[(u32, u32)]| runs.iter().map(|(_, count)| *count as u64).sum::<u64>();
        self.stats.pages_unmapped += total(unmap);
        self.stats.pages_protected += total(protect);
        let few = total(unmap) <= PARKED_AT_ONCE;
        let Some(s) = &mut self.spaces[index] else { return };
        let executed =
            |s: &Space, (page, count): (u32, u32)| s.window.known(page, page + count).any(|(_, p)| p.executed());
        s.code_changed |= unmap.iter().any(|run| executed(s, *run));
        let done = all().count() <= MAX_PIECES
            && unmap.iter().all(|(page, count)| match few {
                true => s.window.park(*page, *count),
                false => s.window.unmap(*page, *count),
            })
            && protect.iter().all(|(page, count)| s.window.protect(*page, *count));
        match done {
            true => self.forget_writers(index, &frames),
            false => self.clear(index),
        }
    }

    /// Empties window `index`.
    pub(super) fn clear(&mut self, index: usize) {
        self.version += 1;
        let frames = self.frames_written(index, 0, 1 << 20);
        let Some(s) = &mut self.spaces[index] else { return };
        self.stats.pages_unmapped += s.window.mapped as u64;
        // The kernel replaces many mappings by one, which it has no reason to refuse. What stays mapped here though the
        // guest changed it would let the guest see it: that is worth dying for.
        assert!(s.window.clear(), "the kernel does not unmap a window");
        s.tables.clear();
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
}
