//! The decode cache: for each physical frame that holds code, the instructions decoded from it so far.
//!
//! Keyed by frame and code size, so that every mapping of a frame shares it. An instruction that crosses into the next
//! page is never cached. Each page keeps a copy of the frame's bytes as they were decoded: a store to the frame (noted by
//! the MMU, see `Mmu::watch_code`) drops exactly the instructions whose bytes changed, so code and data may share a
//! frame. What linear page leads to which frame is a small TLB of its own, emptied by every flush.

use std::collections::HashMap;
use std::sync::Arc;

use iced_x86::Instruction;

use super::decode::{Decoded, MAX_LENGTH};
use super::operand::{Op, flag};
use crate::cpu::{Flow, Stop, Vcpu, seg};
use crate::mmu::{Access, FRAME_SIZE, GuestRam};

/// Frames held at most; all are dropped when one more is needed.
const MAX_PAGES: usize = 1536;
/// Decoded instructions held at most, over all frames.
pub(super) const MAX_OPS: usize = 600_000;
/// Decoded instructions held for one frame, stale ones included.
const MAX_PAGE_OPS: usize = 8192;
const TLB_ENTRIES: usize = 512;

/// Tag bits beside the linear page: see [`tag`].
const USER: u32 = 1;
const WIDE: u32 = 2;
/// Set in every tag, so that an empty entry (0) matches none.
const VALID: u32 = 4;

/// What is known of one frame, for one code size.
pub(super) struct CodePage {
    gpa: u64,
    bytes: Box<[u8; FRAME_SIZE]>,
    /// For each offset, one more than the index in `ops` of the instruction that starts there, or 0.
    slots: Box<[u16; FRAME_SIZE]>,
    ops: Vec<Op>,
    full: Vec<Instruction>,
}

impl CodePage {
    fn new(gpa: u64) -> Self {
        Self {
            gpa,
            bytes: Box::new([0; FRAME_SIZE]),
            slots: Box::new([0; FRAME_SIZE]),
            ops: Vec::new(),
            full: Vec::new(),
        }
    }

    /// The instruction at `offset`, if decoded.
    #[inline(always)]
    pub fn get(&self, offset: u32) -> Option<&Op> {
        let slot = self.slots[offset as usize & (FRAME_SIZE - 1)];
        self.ops.get((slot as usize).wrapping_sub(1))
    }

    /// The full form of `op`, which is at `offset`, and its bytes.
    pub fn full(&self, op: &Op, offset: u32) -> Option<(&Instruction, &[u8])> {
        let at = offset as usize & (FRAME_SIZE - 1);
        Some((self.full.get(op.full as usize)?, self.bytes.get(at..at + op.len as usize)?))
    }

    /// The bytes from `offset` to the end of the frame, at most one instruction's worth.
    pub fn tail(&self, offset: u32) -> &[u8] {
        let at = offset as usize & (FRAME_SIZE - 1);
        &self.bytes[at..(at + MAX_LENGTH).min(FRAME_SIZE)]
    }

    fn clear(&mut self) {
        self.slots.fill(0);
        self.ops.clear();
        self.full.clear();
    }

    /// Takes up what the frame holds now, dropping the instructions that it changes. Returns how many.
    fn refresh(&mut self, now: &[u8; FRAME_SIZE]) -> u64 {
        let mut dropped = 0;
        for (line, (old, new)) in self.bytes.chunks(64).zip(now.chunks(64)).enumerate() {
            if old == new {
                continue;
            }
            for at in (0..64).filter(|&i| old[i] != new[i]).map(|i| line * 64 + i) {
                for start in at.saturating_sub(MAX_LENGTH - 1)..=at {
                    let slot = self.slots[start] as usize;
                    if slot != 0 && self.ops.get(slot - 1).is_none_or(|op| start + op.len as usize > at) {
                        self.slots[start] = 0;
                        dropped += 1;
                    }
                }
            }
        }
        *self.bytes = *now;
        dropped
    }
}

/// The decode cache of one processor.
pub(super) struct Cache {
    pages: Vec<CodePage>,
    index: HashMap<u64, usize>,
    tlb: Box<[(u32, u32); TLB_ENTRIES]>,
    /// The page being executed: its tag, 0 for none, and its index in `pages`.
    current: (u32, usize),
    ops: usize,
    /// RAM whose frames are marked as code.
    ram: Option<Arc<GuestRam>>,
    /// Instructions decoded.
    pub decoded: u64,
    /// Instructions dropped because their bytes changed.
    pub dropped: u64,
    /// Times the whole cache was dropped for want of room.
    pub emptied: u64,
}

/// What identifies the page of the next instruction, and the linear address of that instruction.
#[inline(always)]
pub(super) fn tag(v: &Vcpu) -> (u32, u32) {
    let s = &v.state;
    let cs = &s.seg[seg::CS];
    let linear = cs.base.wrapping_add(s.eip);
    let mode = if s.cpl == 3 { USER } else { 0 } | if cs.big() { WIDE } else { 0 };
    ((linear & !0xfff) | VALID | mode, linear)
}

impl Cache {
    pub fn new() -> Self {
        Self {
            pages: Vec::new(),
            index: HashMap::new(),
            tlb: Box::new([(0, 0); TLB_ENTRIES]),
            current: (0, 0),
            ops: 0,
            ram: None,
            decoded: 0,
            dropped: 0,
            emptied: 0,
        }
    }

    /// Frames held.
    pub fn frames(&self) -> usize {
        self.pages.len()
    }

    /// The page with `tag`, if it is the one being executed.
    #[inline(always)]
    pub fn current(&self, tag: u32) -> Option<&CodePage> {
        if self.current.0 == tag { self.pages.get(self.current.1) } else { None }
    }

    /// Makes the page of the next instruction current. False if it is not in RAM: such code is not cached. Errors are
    /// those of the instruction fetch.
    #[cold]
    pub fn enter(&mut self, v: &mut Vcpu, tag: u32, linear: u32) -> Flow<bool> {
        if v.state.eip > v.state.seg[seg::CS].limit {
            return Err(Stop::gp(0));
        }
        let entry = (tag >> 12) as usize % TLB_ENTRIES;
        let (known, index) = self.tlb[entry];
        if known == tag {
            self.current = (tag, index as usize);
            return Ok(true);
        }
        let gpa = v.physical(linear, Access::Execute, v.privilege())? & !0xfff;
        if v.mmu.ram.offset_of(gpa).is_none() {
            self.current = (0, 0);
            return Ok(false);
        }
        let index = self.page(v, gpa, tag & WIDE);
        self.tlb[entry] = (tag, index as u32);
        self.current = (tag, index);
        Ok(true)
    }

    fn page(&mut self, v: &mut Vcpu, gpa: u64, wide: u32) -> usize {
        let key = gpa | wide as u64;
        if let Some(&index) = self.index.get(&key) {
            return index;
        }
        if self.pages.len() >= MAX_PAGES {
            self.empty();
        }
        v.mmu.watch_code(gpa);
        self.ram.get_or_insert_with(|| v.mmu.ram.clone());
        let mut page = CodePage::new(gpa);
        v.mmu.ram.read(gpa, &mut page.bytes[..]);
        self.pages.push(page);
        self.index.insert(key, self.pages.len() - 1);
        self.pages.len() - 1
    }

    /// Adds an instruction to the current page, at `linear`.
    pub fn insert(&mut self, linear: u32, decoded: &Decoded) {
        self.decoded += 1;
        if self.ops >= MAX_OPS {
            self.empty();
            return;
        }
        let Some(page) = self.pages.get_mut(self.current.1) else { return };
        if page.ops.len() >= MAX_PAGE_OPS {
            self.ops -= page.ops.len();
            page.clear();
        }
        let mut op = decoded.op;
        if op.flags & flag::FULL != 0 {
            op.full = page.full.len() as u16;
            page.full.push(decoded.full);
        }
        page.ops.push(op);
        self.ops += 1;
        page.slots[linear as usize & (FRAME_SIZE - 1)] = page.ops.len() as u16;
    }

    /// Forgets which linear page leads where.
    pub fn forget_translations(&mut self) {
        self.tlb.fill((0, 0));
        self.current = (0, 0);
    }

    /// Drops everything.
    pub fn empty(&mut self) {
        if let Some(ram) = &self.ram {
            self.pages.iter().for_each(|p| ram.clear_code(p.gpa));
        }
        self.pages.clear();
        self.index.clear();
        self.ops = 0;
        self.emptied += 1;
        self.forget_translations();
    }

    /// The frame at `gpa` was written to.
    pub fn written(&mut self, ram: &GuestRam, gpa: u64) {
        let mut now = [0; FRAME_SIZE];
        for wide in [0, WIDE as u64] {
            let Some(&index) = self.index.get(&(gpa | wide)) else { continue };
            if let Some(page) = self.pages.get_mut(index).filter(|_| ram.read(gpa, &mut now)) {
                self.dropped += page.refresh(&now);
            }
        }
    }

    /// RAM in `start..end` was written to.
    pub fn written_range(&mut self, ram: &GuestRam, start: u64, end: u64) {
        let frames: Vec<u64> = self.pages.iter().map(|p| p.gpa).filter(|g| g + 0x1000 > start && *g < end).collect();
        frames.into_iter().for_each(|gpa| self.written(ram, gpa));
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.empty();
    }
}
