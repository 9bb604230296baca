//! The branches by which blocks are left: linked and unlinked, by the table and by the chart.

use super::super::cache::{CodeCache, SEGMENTS};
use super::super::emit::{by_chart, by_table};
use super::super::mode::Mode;
use super::super::segment::{Exit, Kind, Link, NONE, join};
use super::{Entry, Registry};

impl Registry {
    /// Makes the direct branch of site `index` go straight to `entry`.
    pub fn link(&mut self, cache: &mut CodeCache, index: u32, entry: Entry) {
        self.unlink(cache, index);
        let to = entry.block;
        let target = self.record(to);
        let (address, first) = (self.base + (target.start + entry.offset) as u64, target.incoming);
        let base = self.base;
        let Some(Exit { kind: Kind::Direct { branch, link, .. }, .. }) = self.exit_mut(index) else { return };
        *link = Link { to, previous: NONE, next: first };
        cache.patch_branch(base + *branch as u64, address);
        if let Some(next) = self.link_of(first) {
            next.previous = index;
        }
        self.record_mut(to).incoming = index;
    }

    /// The link of a direct exit site.
    fn link_of(&mut self, site: u32) -> Option<&mut Link> {
        match self.exit_mut(site) {
            Some(Exit { kind: Kind::Direct { link, .. }, .. }) => Some(link),
            _ => None,
        }
    }

    /// The branches of user code of `mode` that lead to another page and are not linked: exit sites, and where they go.
    pub fn open_between_pages(&self, mode: Mode) -> Vec<(u32, u32)> {
        let mut open = Vec::new();
        for (number, segment) in self.segments.iter().enumerate() {
            for &place in &segment.far {
                let exit = &segment.exits[place as usize];
                let Kind::Direct { eip, link: Link { to: NONE, .. }, .. } = exit.kind else { continue };
                let from = &segment.records[exit.block as usize];
                if from.live && from.mode == mode && from.second == NONE {
                    open.push((join(number, place as usize), eip));
                }
            }
        }
        open
    }

    /// The indirect branches of user code of `mode` that do not go by the chart.
    pub fn uncharted(&self, mode: Mode) -> Vec<u32> {
        let mut found = Vec::new();
        for (number, segment) in self.segments.iter().enumerate() {
            for &place in &segment.indirect {
                let exit = &segment.exits[place as usize];
                let record = &segment.records[exit.block as usize];
                if matches!(exit.kind, Kind::Indirect { charted: false, .. }) && record.live && record.mode == mode {
                    found.push(join(number, place as usize));
                }
            }
        }
        found
    }

    /// Has the indirect branch of site `index` go by the chart, or by the table.
    pub fn chart(&mut self, cache: &mut CodeCache, index: u32, by: bool) {
        let base = self.base;
        let Some(Exit { kind: Kind::Indirect { at, transfer, charted }, .. }) = self.exit_mut(index) else { return };
        if *charted != by {
            *charted = by;
            cache.patch(base + *at as u64, &if by { by_chart(*transfer) } else { by_table(*transfer) });
        }
    }

    /// Makes the branch of site `index` go to its stub.
    pub fn unlink(&mut self, cache: &mut CodeCache, index: u32) {
        let base = self.base;
        let Some(Exit { kind: Kind::Direct { branch, stub, link, .. }, .. }) = self.exit_mut(index) else { return };
        let Link { to, previous, next } = std::mem::replace(link, Link::NO);
        if to == NONE {
            return;
        }
        cache.patch_branch(base + *branch as u64, base + *stub as u64);
        if let Some(after) = self.link_of(next) {
            after.previous = previous;
        }
        match self.link_of(previous) {
            Some(before) => before.next = next,
            None => self.record_mut(to).incoming = next,
        }
    }

    /// Undoes every link that leads from one page to another.
    pub fn unlink_pages(&mut self, cache: &mut CodeCache) {
        for segment in 0..SEGMENTS {
            for place in 0..self.segments[segment].exits.len() {
                let exit = &self.segments[segment].exits[place];
                let Kind::Direct { link, .. } = exit.kind else { continue };
                let from = self.segments[segment].records[exit.block as usize].eip;
                if link.to != NONE && (from ^ self.record(link.to).eip) & !0xfff != 0 {
                    self.unlink(cache, join(segment, place));
                }
            }
        }
    }
}
