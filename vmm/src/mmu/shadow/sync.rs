//! Bringing windows up to date with what the guest changed in its page tables, when CR3 writes and INVLPG require it.

use super::super::ram::{FRAME_SHIFT, GuestRam};
use super::super::walk::{leaf_entry, peek, pte};
use super::super::window::Window;
use super::space::{Runs, Space};
use super::{Rights, Shadow};
use crate::cpu::CpuState;

/// Local pages of the kernel window beyond which looking at them costs more than having more windows.
const MANY_LOCAL: usize = 1024;
/// Pages that can be looked at in the time that mapping one takes.
const CHECKS_A_PAGE: u64 = 32;

impl Shadow {
    /// The guest wrote CR3: every window is doubtful until it is next asked for.
    pub fn flush_local(&mut self) {
        self.epoch += 1;
    }

    /// Brings window `index` up to date with the guest's page tables, as a CR3 write requires.
    pub(super) fn synchronise(&mut self, state: &CpuState, index: usize) {
        self.stats.syncs += 1;
        let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) else { return };
        if s.rights == Rights::Kernel {
            let mut local = std::mem::take(&mut s.local);
            local.sort_unstable();
            local.dedup();
            let (before, was_local) = (self.stats.pages_unmapped, self.kernel_is_local());
            self.check_pages(state, index, &local);
            self.local_cost += self.stats.pages_unmapped - before;
            if local.len() > MANY_LOCAL {
                self.local_cost += local.len() as u64 / CHECKS_A_PAGE;
            }
            // This window is brought up to date no more: nothing that was remembered may lead into it.
            self.version += (self.kernel_is_local() != was_local) as u64;
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

    /// Brings one page of every window that may show the current address space up to date, as INVLPG requires. True if
    /// an executed page may be another one now.
    pub fn synchronise_page(&mut self, state: &CpuState, linear: u32) -> bool {
        let page = linear >> FRAME_SHIFT;
        let mut code_changed = false;
        for rights in [Rights::Kernel, Rights::User(state.cr3), Rights::Low(state.cr3)] {
            let index = self.by_rights.get(&rights).copied();
            let Some((index, s)) = index.and_then(|i| Some((i, self.spaces.get_mut(i)?.as_mut()?))) else { continue };
            // What was mapped from a large page is forgotten whole, wherever in it the address lies.
            if s.from_large.remove(page) {
                let first = page & !1023;
                let pages: Vec<u32> = s.window.known(first, first + 1024).map(|(n, _)| n).collect();
                self.check_pages(state, index, &pages);
                // Under PAE the region is two large pages.
                self.note_large(state, index, linear);
                self.note_large(state, index, linear ^ 1 << 21);
            } else {
                self.check_pages(state, index, &[page]);
            }
            code_changed |= self.spaces[index].as_ref().is_some_and(|s| s.code_changed);
        }
        code_changed
    }

    /// True if the page of `linear` is executed by the supervisor of any address space that has a window of its own.
    /// What was linked while one of them was current is used in the others.
    pub fn executed_by_supervisors(&self, linear: u32) -> bool {
        let page = linear >> FRAME_SHIFT;
        let executed = |s: &Space| match s.from_large.contains(page) {
            true => s.window.known(page & !1023, (page & !1023) + 1024).any(|(_, p)| p.executed()),
            false => s.window.page(page).executed(),
        };
        self.spaces.iter().flatten().any(|s| matches!(s.rights, Rights::Low(_)) && executed(s))
    }

    /// Notes that pages were taken from the large page at `linear`, if it is one.
    pub(super) fn note_large(&mut self, state: &CpuState, index: usize, linear: u32) {
        let large = leaf_entry(&self.ram, state, linear).is_some_and(|e| e.pte_gpa.is_none());
        if large && let Some(s) = self.spaces.get_mut(index).and_then(Option::as_mut) {
            s.from_large.insert(linear >> FRAME_SHIFT);
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
