//! Stage 5: blocks, the ways between them, and how they are forgotten.
//!
//! A direct branch may be linked to its target only while the target's page cannot come to mean something else without
//! the link being undone: inside one page, between pages of the shared kernel mapping, or between pages of the one address
//! space that [`super::joints`] keeps watch over. Every other transfer goes through an indirect-branch table, which belongs
//! to one address space and is emptied when an executed page of that space changes its mapping.
//!
//! What is remembered of a block lives and dies with the segment of the code cache that its code is in: when the cache
//! comes round to a segment again, what was there is forgotten, oldest first.

mod branches;

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::block::{Block, Key, Leave, Site};
use super::cache::{CodeCache, SEGMENTS};
use super::frames::{Frame, Frames, View};
use super::mode::Mode;
use super::segment::{Exit, Kind, NONE, Record, Segment, Why, join, split};
use super::translate::Translation;
use crate::engine::interp::Prepared;
use crate::mmu::{FRAME_SHIFT, GuestRam};

/// Frames remembered at most, at somewhat more than 4 KiB each.
const MAX_FRAMES: usize = 4096;
/// Pages and modes that they are seen as at most, at somewhat less than 1 KiB each.
const MAX_VIEWS: usize = if cfg!(test) { 2 << 10 } else { 64 << 10 };

/// What was learnt of a page before a block of it is added.
#[derive(Clone, Copy)]
pub struct Page {
    /// It was mapped by a global entry.
    pub global: bool,
    /// Physical address of the page that the block runs over into.
    pub second: Option<u64>,
}

/// Where direct branches may come into a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The block.
    pub block: u32,
    /// Offset of the entry.
    pub offset: u32,
}

/// [`Key`], packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    eip: u32,
    frame: u32,
    mode: Mode,
}

impl From<&Key> for Name {
    fn from(key: &Key) -> Self {
        Self { eip: key.eip, frame: (key.gpa >> FRAME_SHIFT) as u32, mode: key.mode }
    }
}

/// All translations.
pub struct Registry {
    segments: [Segment; SEGMENTS],
    /// Segment that blocks are added to.
    current: usize,
    /// First executable address of the cache, and bytes in each of its segments.
    base: u64,
    segment_size: usize,
    by_name: HashMap<Name, u32, RandomState>,
    frames: Frames,
    /// EIP and start of blocks forgotten since [`Registry::take_dead`].
    dead: Vec<(u32, u64)>,
}

impl Registry {
    /// No translations, for an empty `cache`.
    pub fn new(cache: &CodeCache) -> Self {
        Self {
            segments: Default::default(),
            current: 0,
            base: cache.start(),
            segment_size: cache.segment_size(),
            by_name: HashMap::default(),
            frames: Frames::default(),
            dead: Vec::new(),
        }
    }

    /// True if no more frames, or views of them, may be remembered: a guest that jumps through all its memory, or finds one
    /// frame everywhere, would fill the host's. All else is bounded by the size of the code cache.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= MAX_FRAMES || self.frames.views() >= MAX_VIEWS
    }

    /// True if there are no blocks in `segment`.
    pub fn is_empty(&self, segment: usize) -> bool {
        self.segments[segment].records.is_empty()
    }

    /// Index that the next exit site gets.
    pub fn next_site(&self) -> u32 {
        join(self.current, self.segments[self.current].exits.len())
    }

    /// The frame at `gpa` if code is, or was, translated from it.
    pub fn frame(&self, gpa: u64) -> Option<&Frame> {
        self.frames.get(gpa)
    }

    /// Has all blocks check their own source.
    #[cfg(test)]
    pub fn mix_all(&mut self) {
        self.frames.mix_all();
    }

    /// True if blocks of the frame at `gpa` check their own source.
    pub fn is_mixed(&self, gpa: u64) -> bool {
        self.frames.get(gpa).is_some_and(Frame::mixed)
    }

    /// Copies the frame at `gpa`, which is to be translated. The caller has stores to it reported, unless it is mixed.
    pub fn note_frame(&mut self, ram: &GuestRam, gpa: u64) {
        self.frames.note(ram, gpa);
    }

    /// Adds a block whose code was appended at `start`.
    pub fn add(&mut self, ram: &GuestRam, key: Key, (start, length): (u64, u32), page: Page, t: &Translation) -> u32 {
        let record = Record {
            eip: key.eip,
            frame: (key.gpa >> FRAME_SHIFT) as u32,
            mode: key.mode,
            second: page.second.map_or(NONE, |gpa| (gpa >> FRAME_SHIFT) as u32),
            start: (start - self.base) as u32,
            length,
            main: t.main,
            origins: 0,
            sites: 0,
            incoming: NONE,
            source: t.source,
            fp: t.fp,
            global: page.global,
            stray: self.entry(&key, t.fp).is_some(),
            live: true,
        };
        let stray = record.stray;
        let index = self.segments[self.current].add(record, &t.origins, &t.exits, self.base);
        let id = join(self.current, index);
        self.by_name.insert(Name::from(&key), id);
        // Nothing comes into the middle of the one instruction that two pages hold, nor past a block's look at its source.
        // Branches go on to the block that a stray one lies in, and traces through it when that is translated again: or in
        // time they would be cut up wherever an interrupt ever came.
        let closed = stray || page.second.is_some() || self.is_mixed(key.gpa & !0xfff);
        let entries = if closed { &[] } else { &t.origins[..] };
        let segments = &self.segments;
        let stays = |other: u32| {
            let (segment, index) = split(other);
            let other = &segments[segment].records[index];
            other.live && (t.fp || !other.fp)
        };
        self.frames.add(ram, (id, key.gpa & !0xfff), (key.eip, key.mode), entries, stays);
        if let Some(second) = page.second {
            self.frames.add(ram, (id, second), (key.eip.wrapping_add(0x1000), key.mode), &[], stays);
        }
        id
    }

    /// The live block for `key`.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_name.get(&Name::from(key)).copied()
    }

    /// True if block `id` began inside another one.
    pub fn is_stray(&self, id: u32) -> bool {
        self.record(id).stray
    }

    fn record(&self, id: u32) -> &Record {
        let (segment, index) = split(id);
        &self.segments[segment].records[index]
    }

    fn record_mut(&mut self, id: u32) -> &mut Record {
        let (segment, index) = split(id);
        &mut self.segments[segment].records[index]
    }

    /// Block `id`.
    pub fn block(&self, id: u32) -> Block<'_> {
        let (segment, index) = split(id);
        let s = &self.segments[segment];
        let (record, sites) = (&s.records[index], s.sites(index));
        let gpa = (record.frame as u64) << FRAME_SHIFT | (record.eip & 0xfff) as u64;
        Block {
            key: Key { eip: record.eip, gpa, mode: record.mode },
            start: self.base + record.start as u64,
            main: record.main,
            length: record.length,
            second: (record.second != NONE).then_some((record.second as u64) << FRAME_SHIFT),
            fp: record.fp,
            global: record.global,
            origins: s.origins(index),
            sites: (join(segment, sites.start), sites.len() as u32),
            live: record.live,
        }
    }

    /// Every block, live or not.
    #[cfg(test)]
    pub fn ids(&self) -> Vec<u32> {
        let ids = |(n, s): (usize, &Segment)| (0..s.records.len()).map(move |i| join(n, i)).collect::<Vec<_>>();
        self.segments.iter().enumerate().flat_map(ids).collect()
    }

    fn exit_mut(&mut self, site: u32) -> Option<&mut Exit> {
        let (segment, index) = split(site);
        self.segments.get_mut(segment)?.exits.get_mut(index)
    }

    /// Exit site `index`, if there is one.
    pub fn site(&self, index: u32) -> Option<Site> {
        let (segment, place) = split(index);
        let exit = self.segments.get(segment)?.exits.get(place)?;
        let leave = match exit.kind {
            Kind::Direct { eip, branch, stub, .. } => {
                Leave::Direct { eip, branch: self.base + branch as u64, stub: self.base + stub as u64 }
            }
            Kind::Indirect { at, transfer, .. } => Leave::Indirect { at: self.base + at as u64, transfer },
            Kind::Pending { eip } => Leave::Pending(eip),
            Kind::Interpret { eip, mnemonic, why, .. } => match why {
                Why::Always => Leave::Interpret(eip, mnemonic),
                Why::Faulting => Leave::Faulting(eip, mnemonic),
                Why::Gate(gate) => Leave::Gate(eip, mnemonic, gate),
            },
        };
        Some(Site { block: join(segment, exit.block as usize), leave })
    }

    /// The decoded instruction that exit site `index` leaves for, if it was kept.
    pub fn prepared(&self, index: u32) -> Option<&Prepared> {
        let (segment, place) = split(index);
        let segment = self.segments.get(segment)?;
        match segment.exits.get(place)?.kind {
            Kind::Interpret { prepared, .. } => segment.prepared.get(prepared as usize),
            _ => None,
        }
    }

    /// Keeps the decoded instruction that exit site `index` leaves for.
    pub fn keep_prepared(&mut self, index: u32, instruction: Prepared) {
        let (segment, place) = split(index);
        let Some(segment) = self.segments.get_mut(segment) else { return };
        if let Some(Exit { kind: Kind::Interpret { prepared, .. }, .. }) = segment.exits.get_mut(place) {
            *prepared = segment.prepared.len() as u32;
            segment.prepared.push(instruction);
        }
    }

    /// The block whose code holds executable address `at`, live or not.
    pub fn containing(&self, at: u64) -> Option<u32> {
        let offset = at.checked_sub(self.base)?;
        let segment = (offset / self.segment_size as u64) as usize;
        Some(join(segment, self.segments.get(segment)?.containing(offset as u32)?))
    }

    /// The block that a direct branch to `key` may come into, at its start or inside; `view` is its page. `fp` says that
    /// x87, SSE and AVX state is loaded there.
    pub fn place(&self, view: &View, key: &Key, fp: bool) -> Option<u32> {
        let id = view.entry(key.eip)?;
        let record = self.record(id);
        match record.live && (fp || !record.fp || record.eip == key.eip) {
            true => Some(id),
            false => self.find(key).filter(|id| self.record(*id).second == NONE && !self.is_stray(*id)),
        }
    }

    /// Where exactly: the block, and the offset in it.
    pub fn entry(&self, key: &Key, fp: bool) -> Option<Entry> {
        let view = self.frames.get(key.gpa & !0xfff)?.view(key.eip, key.mode)?;
        let block = self.place(view, key, fp)?;
        let record = self.record(block);
        if record.eip == key.eip {
            return Some(Entry { block, offset: record.main });
        }
        let (segment, index) = split(block);
        let origin = self.segments[segment].origins(index).find(|o| o.eip == key.eip && o.is_entry());
        origin.map(|o| Entry { block, offset: o.offset })
    }

    /// True if a direct branch may come in at executable address `at`. `fp` says that x87, SSE and AVX state is loaded.
    pub fn is_entry(&self, at: u64, fp: bool) -> bool {
        let Some(block) = self.containing(at).map(|id| self.block(id)) else { return false };
        let offset = (at - block.start) as u32;
        let mut origins = block.origins;
        let inside = (fp || !block.fp) && block.second.is_none();
        block.live && (offset == block.main || (inside && origins.any(|o| o.offset == offset && o.is_entry())))
    }

    /// Forgets block `id`: nothing leads there any more. Its code stays until its segment is used again.
    pub fn invalidate(&mut self, cache: &mut CodeCache, id: u32) {
        let (segment, index) = split(id);
        let (base, record) = (self.base, self.record_mut(id));
        if !std::mem::take(&mut record.live) {
            return;
        }
        let name = Name { eip: record.eip, frame: record.frame, mode: record.mode };
        let dead = (record.eip, base + record.start as u64);
        self.dead.push(dead);
        if self.by_name.get(&name) == Some(&id) {
            self.by_name.remove(&name);
        }
        while self.record(id).incoming != NONE {
            self.unlink(cache, self.record(id).incoming);
        }
        self.segments[segment].sites(index).for_each(|place| self.unlink(cache, join(segment, place)));
    }

    /// Forgets every block from the frame at `gpa`, which is not watched on; how many there were.
    fn forget_frame(&mut self, cache: &mut CodeCache, gpa: u64) -> usize {
        let blocks = self.frames.forget(gpa & !0xfff);
        blocks.iter().for_each(|&id| self.invalidate(cache, id));
        blocks.len()
    }

    /// Some time has passed: forgets the blocks of the mixed frames that it is time to watch again; how many there were.
    pub fn retry_mixed(&mut self, cache: &mut CodeCache) -> usize {
        let due = self.frames.due();
        let blocks: Vec<u32> = due.into_iter().flat_map(|gpa| self.frames.try_again(gpa)).collect();
        blocks.iter().for_each(|&id| self.invalidate(cache, id));
        blocks.len()
    }

    /// How many frames are mixed.
    pub fn mixed(&self) -> usize {
        self.frames.mixed()
    }

    /// The frame at `gpa` was stored to: forgets the blocks whose source bytes changed. The result says how many, and
    /// whether the frame is to be watched on.
    pub fn refresh_frame(&mut self, cache: &mut CodeCache, ram: &GuestRam, gpa: u64) -> (usize, bool) {
        let segments = &self.segments;
        let reads = |id: u32, changed: &[usize]| {
            let (segment, index) = split(id);
            let record = &segments[segment].records[index];
            let frame = (gpa >> FRAME_SHIFT) as u32;
            let within = |(from, to): (u16, u16)| {
                let next = changed.partition_point(|&i| i < from as usize);
                changed.get(next).is_some_and(|&i| i < to as usize)
            };
            // Both of its pages may show one frame.
            record.frame == frame && within(record.source) || record.second == frame && within((0, 16))
        };
        let Some(frame) = self.frames.get_mut(gpa) else { return (0, false) };
        let (dead, watch) = frame.refresh(ram, gpa, reads);
        dead.iter().for_each(|&id| self.invalidate(cache, id));
        match watch {
            true => (dead.len(), true),
            false => (dead.len() + self.forget_frame(cache, gpa), false),
        }
    }

    /// Forgets the blocks of `segment`, which is where blocks are added from now on. Returns the frames that no block
    /// comes from any more.
    pub fn evict(&mut self, cache: &mut CodeCache, segment: usize) -> Vec<u64> {
        let ids = (0..self.segments[segment].records.len()).map(|index| join(segment, index));
        ids.for_each(|id| self.invalidate(cache, id));
        self.segments[segment].clear();
        self.current = segment;
        self.frames.remove_segment(segment)
    }

    /// Takes EIP and start of the blocks forgotten since the last call: branch tables must not lead to them.
    pub fn take_dead(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.dead)
    }

    /// Physical addresses of the frames to which stores are to be reported, of those in `start..end`.
    pub fn watched_in(&self, start: u64, end: u64) -> Vec<u64> {
        self.frames.watched_in(start, end)
    }

    /// Bytes of memory that all this takes.
    pub fn bytes(&self) -> usize {
        // The map keeps one byte beside each entry, and is filled up to seven eighths.
        let names = self.by_name.capacity() * 8 / 7 * (size_of::<(Name, u32)>() + 1);
        self.segments.iter().map(Segment::bytes).sum::<usize>() + names + self.frames.bytes()
    }
}
