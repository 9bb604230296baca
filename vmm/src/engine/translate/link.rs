//! Stage 5: blocks, the ways between them, and how they are forgotten.
//!
//! A direct branch may be linked to its target only while the target's page cannot come to mean something else without
//! the link being undone: inside one page, or between pages of the shared kernel mapping. Every other transfer goes
//! through an indirect-branch table, which belongs to one address space and is emptied when an executed page of that
//! space changes its mapping.

use std::collections::HashMap;

use super::block::{Block, Key, Leave, Site};
use super::cache::CodeCache;
use super::context::INDEX_ENTRIES;
use super::context::INDEX_MASK;
use super::translate::Translation;
use crate::engine::interp::Prepared;
use crate::mmu::{FRAME_SIZE, GuestRam};

/// Stores to a frame that changed no code after which its code is forgotten, so that they need not be watched.
const DATA_WRITES: u32 = 16;

/// Bytes that may be remembered of blocks and the frames they come from; then everything is forgotten.
const MAX_BYTES: usize = 40 << 20;
/// What one block costs beside its lists: itself, its places in the indices, and the allocator's share.
const BLOCK_BYTES: usize = size_of::<Block>() + 192;

/// What one frame costs.
const FRAME_BYTES: usize = FRAME_SIZE + 128;

/// A frame that code was translated from.
struct Frame {
    blocks: Vec<u32>,
    /// Its bytes when last looked at.
    copy: Box<[u8; FRAME_SIZE]>,
    /// Stores since then that changed no code.
    data_writes: u32,
}

/// All translations.
#[derive(Default)]
pub struct Registry {
    blocks: Vec<Block>,
    sites: Vec<Site>,
    by_key: HashMap<Key, u32>,
    /// Frames (physical addresses) that code was translated from.
    by_frame: HashMap<u64, Frame>,
    /// Block indices by ascending start: the code cache only grows.
    order: Vec<(u64, u32)>,
    /// What interpreted exit sites leave for, decoded, by site: those that were ever used.
    prepared: Vec<Option<Box<Prepared>>>,
    /// EIP and start of blocks forgotten since [`Registry::take_dead`].
    dead: Vec<(u32, u64)>,
    /// Estimate of the memory that all this takes.
    bytes: usize,
}

impl Registry {
    /// True if no more may be remembered: a guest that jumps through all its memory, or rewrites its code for ever, would
    /// fill the host's.
    pub fn is_full(&self) -> bool {
        self.bytes > MAX_BYTES
    }

    /// Index that the next exit site gets.
    pub fn next_site(&self) -> u32 {
        self.sites.len() as u32
    }

    /// Adds a block whose code was appended at `start`; its page is `global`, and it may run over into `second`.
    pub fn add(
        &mut self,
        ram: &GuestRam,
        key: Key,
        (start, length): (u64, u32),
        global: bool,
        second: Option<u64>,
        mut t: Translation,
    ) -> u32 {
        t.origins.shrink_to_fit();
        self.bytes += BLOCK_BYTES + size_of_val(&t.origins[..]) + t.exits.len() * size_of::<Site>();
        let id = self.blocks.len() as u32;
        let first = self.next_site();
        self.sites.extend(t.exits.iter().map(|&leave| Site { block: id, leave, linked: None }));
        self.blocks.push(Block {
            key,
            start,
            main: t.main,
            length,
            global,
            second,
            source: t.source,
            fp: t.fp,
            origins: t.origins,
            sites: (first, t.exits.len() as u32),
            incoming: Vec::new(),
            live: true,
        });
        self.by_key.insert(key, id);
        for gpa in [Some(key.gpa & !0xfff), second].into_iter().flatten() {
            let bytes = &mut self.bytes;
            let frame = self.by_frame.entry(gpa).or_insert_with(|| {
                *bytes += FRAME_BYTES;
                Frame::new(ram, gpa)
            });
            frame.blocks.push(id);
        }
        self.order.push((start, id));
        id
    }

    /// The live block for `key`.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Block `id`.
    pub fn block(&self, id: u32) -> &Block {
        &self.blocks[id as usize]
    }

    /// Every block, live or not.
    #[cfg(test)]
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.blocks.len() as u32
    }

    /// Exit site `index`, if there is one.
    pub fn site(&self, index: u32) -> Option<Site> {
        self.sites.get(index as usize).copied()
    }

    /// The decoded instruction that exit site `index` leaves for, if it was kept.
    pub fn prepared(&self, index: u32) -> Option<&Prepared> {
        self.prepared.get(index as usize)?.as_deref()
    }

    /// Keeps the decoded instruction that exit site `index` leaves for.
    pub fn keep_prepared(&mut self, index: u32, instruction: Prepared) {
        let at = index as usize;
        if self.prepared.len() <= at {
            self.prepared.resize_with(at + 1, || None);
        }
        self.prepared[at] = Some(Box::new(instruction));
    }

    /// The block whose code holds executable address `at`, live or not.
    pub fn containing(&self, at: u64) -> Option<u32> {
        let index = self.order.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, id) = self.order[index];
        (at < start + self.blocks[id as usize].length as u64).then_some(id)
    }

    /// Makes the direct branch of site `index` go straight to block `to`.
    pub fn link(&mut self, cache: &mut CodeCache, index: u32, to: u32) {
        let site = &mut self.sites[index as usize];
        if let Leave::Direct { branch, .. } = site.leave {
            let target = &mut self.blocks[to as usize];
            cache.patch_branch(branch, target.start + target.main as u64);
            target.incoming.push(index);
            site.linked = Some(to);
        }
    }

    /// Forgets block `id`: nothing leads there any more. Its code stays until the cache is emptied.
    pub fn invalidate(&mut self, cache: &mut CodeCache, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.live = false;
        let key = block.key;
        self.dead.push((key.eip, block.start));
        let ((first, count), incoming) = (block.sites, std::mem::take(&mut block.incoming));
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
        for index in incoming.into_iter().chain(first..first + count) {
            let site = &mut self.sites[index as usize];
            if let (Leave::Direct { branch, stub, .. }, Some(_)) = (site.leave, site.linked.take()) {
                cache.patch_branch(branch, stub);
            }
        }
    }

    /// Forgets every block from the frame at `gpa`; how many there were.
    pub fn invalidate_frame(&mut self, cache: &mut CodeCache, gpa: u64) -> usize {
        let Some(frame) = self.by_frame.remove(&(gpa & !0xfff)) else { return 0 };
        self.bytes = self.bytes.saturating_sub(FRAME_BYTES);
        frame.blocks.iter().for_each(|&id| self.invalidate(cache, id));
        frame.blocks.len()
    }

    /// The frame at `gpa` was stored to: forgets the blocks whose source bytes changed. The result says how many, and
    /// whether the frame is to be watched on.
    pub fn refresh_frame(&mut self, cache: &mut CodeCache, ram: &GuestRam, gpa: u64) -> (usize, bool) {
        let Some(frame) = self.by_frame.get_mut(&gpa) else { return (0, false) };
        let mut now = Box::new([0; FRAME_SIZE]);
        ram.read(gpa, &mut now[..]);
        let changed: Vec<usize> = (0..FRAME_SIZE).filter(|&i| frame.copy[i] != now[i]).collect();
        frame.copy = now;
        let blocks = &self.blocks;
        let (dead, kept): (Vec<u32>, Vec<u32>) = frame.blocks.iter().partition(|&&id| {
            let block = &blocks[id as usize];
            let (from, to) = if block.key.gpa & !0xfff == gpa { block.source } else { (0, 16) };
            changed.iter().any(|&i| (from as usize..to as usize).contains(&i))
        });
        frame.blocks = kept;
        frame.data_writes = if dead.is_empty() { frame.data_writes + 1 } else { 0 };
        let watch = !frame.blocks.is_empty() && frame.data_writes < DATA_WRITES;
        dead.iter().for_each(|&id| self.invalidate(cache, id));
        match watch {
            true => (dead.len(), true),
            false => (dead.len() + self.invalidate_frame(cache, gpa), false),
        }
    }

    /// Takes EIP and start of the blocks forgotten since the last call: branch tables must not lead to them.
    pub fn take_dead(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.dead)
    }

    /// Undoes every link that leads from one page to another.
    pub fn unlink_pages(&mut self, cache: &mut CodeCache) {
        for index in 0..self.sites.len() {
            let Some(to) = self.sites[index].linked else { continue };
            let from = self.blocks[self.sites[index].block as usize].key.eip;
            let target = &mut self.blocks[to as usize];
            if (from ^ target.key.eip) & !0xfff == 0 {
                continue;
            }
            target.incoming.retain(|&i| i as usize != index);
            self.sites[index].linked = None;
            if let Leave::Direct { branch, stub, .. } = self.sites[index].leave {
                cache.patch_branch(branch, stub);
            }
        }
    }

    /// Physical addresses of the frames that blocks come from.
    pub fn frames(&self) -> Vec<u64> {
        self.by_frame.keys().copied().collect()
    }
}

impl Frame {
    fn new(ram: &GuestRam, gpa: u64) -> Self {
        let mut copy = Box::new([0; FRAME_SIZE]);
        ram.read(gpa, &mut copy[..]);
        Self { blocks: Vec::new(), copy, data_writes: 0 }
    }
}

/// The indirect-branch table of one address space: host entry points by the low bits of guest EIP.
pub struct BranchTable {
    entries: Box<[u64]>,
    miss: u64,
    /// True if anything was entered since it was last emptied.
    dirty: bool,
}

impl BranchTable {
    /// An empty table; `miss` is the common code that empty entries lead to.
    pub fn new(miss: u64) -> Self {
        Self { entries: vec![miss; INDEX_ENTRIES].into(), miss, dirty: false }
    }
    /// Address for `Context::branches`.
    pub fn address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }
    /// Enters the block for `eip` that starts at executable address `start`.
    pub fn insert(&mut self, eip: u32, start: u64) {
        self.entries[(eip as u64 & INDEX_MASK) as usize] = start;
        self.dirty = true;
    }
    /// Takes out the block for `eip` that starts at `start`, if it is there.
    pub fn remove(&mut self, eip: u32, start: u64) {
        let entry = &mut self.entries[(eip as u64 & INDEX_MASK) as usize];
        if *entry == start {
            *entry = self.miss;
        }
    }
    /// Empties the table.
    pub fn clear(&mut self) {
        if self.dirty {
            self.entries.fill(self.miss);
            self.dirty = false;
        }
    }
}
