//! Joints: direct links between pages of the one user address space that runs for long.
//!
//! A link between pages holds only where the target's page is mapped as it was when the link was made. Blocks are shared by
//! address spaces, so elsewhere, or after a change, it would lead into another program's code. Going by the table of the
//! address space is always right, but costs five instructions, so the branches of a program that stays on the processor
//! are linked, and all of them are unlinked before
//!
//! * user code of another address space runs: whenever emitted code is entered, CR3 is compared;
//! * user code runs in a window where the mapping of an executed page changed: with the tables, in `take_code_changes`.
//!
//! What is linked to is only code on pages that the window has marked as executed, so that their changes are noticed.
//!
//! Indirect branches of that address space go by the [chart](super::chart) meanwhile: it has one, which is right for as long
//! as the links are, and is emptied when they are undone.
//!
//! Linking takes a walk over all that may be linked, which pays after some milliseconds. So it waits until interrupts have
//! found one address space in user code several times, and longer each time that the last wait turned out too short.

use super::Translator;
use super::block::{Key, Leave, Site};
use super::dispatch::Active;
use super::mode::Mode;
use super::tables::Owner;
use crate::cpu::{CpuState, Vcpu};
use crate::mmu::FRAME_SHIFT;

/// Times that an address space is found in user code before its pages are joined, at first and at most.
const PATIENCE: (u32, u32) = (2, 16);
/// Times that it is to be found again for that to have been worth it.
const WORTH: u32 = 8;

/// What is joined, and what decides on it.
#[derive(Default)]
pub struct Joints {
    /// The address space whose pages are joined.
    space: Option<u32>,
    /// Exit sites that were linked.
    sites: Vec<u32>,
    /// Whose code the chart is for.
    charted: Option<Owner>,
    /// Exit sites that go by it.
    indirect: Vec<u32>,
    /// The address space last found in user code, and how often on end.
    seen: (u32, u32),
    /// How often it is to be.
    patience: u32,
    /// How often it was when it was first joined.
    joined_at: u32,
    /// Pages are to be joined before user code runs next.
    due: bool,
}

#[cfg(test)]
impl Joints {
    /// True if indirect branches go by the chart.
    pub fn goes_by_chart(&self) -> bool {
        self.charted.is_some() && !self.indirect.is_empty()
    }
}

impl Translator {
    /// An interrupt found user code running, or not.
    pub(super) fn sample_joints(&mut self, state: &CpuState) {
        if state.cpl != 3 || !state.paging() {
            return;
        }
        let j = &mut self.joints;
        let times = if j.seen.0 == state.cr3 { j.seen.1.saturating_add(1) } else { 1 };
        j.seen = (state.cr3, times);
        let patience = j.patience.max(PATIENCE.0);
        // Again from time to time, for what was translated meanwhile.
        j.due |= times >= patience && (times / patience).is_power_of_two() && times.is_multiple_of(patience);
    }

    /// Joins the pages of the current user address space if that is due.
    pub(super) fn join_if_due(&mut self, vcpu: &mut Vcpu, mode: Mode) {
        if mode.user() && mode.paging() && std::mem::take(&mut self.joints.due) {
            self.join_pages(vcpu, mode);
        }
    }

    /// Links branches between pages of the current user address space.
    pub(super) fn join_pages(&mut self, vcpu: &mut Vcpu, mode: Mode) {
        let Active { code_window, .. } = self.activate(vcpu, mode);
        self.check_joints(&vcpu.state);
        if self.joints.space.replace(vcpu.state.cr3).is_none() {
            self.joints.joined_at = self.joints.seen.1;
        }
        for (site, eip) in self.registry.open_between_pages(mode) {
            let Some(frame) = self.shadow.executed(code_window, eip) else { continue };
            let key = Key { eip, gpa: (frame as u64) << FRAME_SHIFT | (eip & 0xfff) as u64, mode };
            if let Some(entry) = self.registry.entry(&key, false) {
                self.registry.link(&mut self.cache, site, entry);
                self.joints.sites.push(site);
                self.stats.joined += 1;
            }
        }
        self.chart_pages((code_window, mode));
    }

    /// Has indirect branches of the joined address space go by the chart.
    fn chart_pages(&mut self, owner: Owner) {
        if !self.context.is_usable() || self.joints.charted.is_some_and(|charted| charted != owner) {
            return;
        }
        if self.joints.charted.replace(owner).is_none() {
            self.tables.entered(owner).into_iter().for_each(|(eip, main)| self.context.put(eip, main));
        }
        for site in self.registry.uncharted(owner.1) {
            self.stats.charted += 1;
            self.registry.chart(&mut self.cache, site, true);
            self.joints.indirect.push(site);
        }
    }

    /// Block `id` is new: its indirect branches go by the chart if those like it do.
    pub(super) fn chart_block(&mut self, id: u32) {
        let block = self.registry.block(id);
        let (mode, (first, count)) = (block.key.mode, block.sites);
        if self.joints.charted.is_none_or(|(_, charted)| charted != mode) {
            return;
        }
        for site in first..first + count {
            if matches!(self.registry.site(site), Some(Site { leave: Leave::Indirect { .. }, .. })) {
                self.registry.chart(&mut self.cache, site, true);
                self.joints.indirect.push(site);
            }
        }
    }

    /// The table of `owner` leads to a block for `eip` now: so does the chart if it is for the same code.
    pub(super) fn put_on_chart(&mut self, owner: Owner, eip: u32, main: u64) {
        if self.joints.charted == Some(owner) {
            self.context.put(eip, main);
        }
    }

    /// An indirect branch led nowhere.
    pub(super) fn note_uncharted(&mut self) {
        if self.joints.charted.is_some() {
            let eip = self.context.branch;
            self.context.touch(eip);
        }
    }

    /// Emitted code is about to run: what is joined must be of its address space.
    #[inline]
    pub(super) fn check_joints(&mut self, state: &CpuState) {
        if self.joints.space.is_some_and(|cr3| cr3 != state.cr3) {
            let j = &mut self.joints;
            j.patience = match j.seen.1.saturating_sub(j.joined_at) < WORTH {
                true => (j.patience.max(PATIENCE.0) * 2).min(PATIENCE.1),
                false => PATIENCE.0,
            };
            self.part_pages();
        }
    }

    /// Unlinks what [`Self::join_pages`] linked. A site whose block has gone since may be another one's now, which then
    /// leaves once more than it must.
    #[cold]
    pub(super) fn part_pages(&mut self) {
        let sites = std::mem::take(&mut self.joints.sites);
        sites.into_iter().for_each(|site| self.registry.unlink(&mut self.cache, site));
        let indirect = std::mem::take(&mut self.joints.indirect);
        indirect.into_iter().for_each(|site| self.registry.chart(&mut self.cache, site, false));
        if self.joints.charted.take().is_some() {
            self.context.clear();
        }
        (self.joints.space, self.joints.seen.1, self.joints.due) = (None, 0, false);
    }
}
