//! Words of guest memory that decided on an outcome, found again where they lie in RAM.
//!
//! They are found by the page walk of the first time. Like TLB entries, that may be stale until INVLPG or a CR3 write; so
//! where they were found is kept, to know what such a flush makes doubtful.

use crate::cpu::{Segment, Vcpu, attr};
use crate::mmu::{Access, walk};

/// Eight bytes of guest memory, and what they were.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Their host address.
    pub place: u64,
    /// Their value.
    pub value: u64,
}

/// A set of regions of 4 MiB of linear addresses. One INVLPG forgets a large page whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regions([u64; 16]);

impl Regions {
    fn place(linear: u32) -> (usize, u64) {
        ((linear >> 28) as usize, 1 << (linear >> 22 & 63))
    }
    fn insert(&mut self, linear: u32) {
        let (word, bit) = Self::place(linear);
        self.0[word] |= bit;
    }
    /// True if `linear` lies in one of them.
    pub fn contains(&self, linear: u32) -> bool {
        let (word, bit) = Self::place(linear);
        self.0[word] & bit != 0
    }
    /// Adds those of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }
}

/// Finds words, and notes where.
pub struct Finder<'a> {
    vcpu: &'a Vcpu,
    /// Where they were found.
    pub regions: Regions,
    /// Some of them on a page that is not global: a CR3 write makes that doubtful.
    pub local: bool,
}

impl<'a> Finder<'a> {
    /// Has found nothing yet.
    pub fn new(vcpu: &'a Vcpu) -> Self {
        Self { vcpu, regions: Regions::default(), local: false }
    }

    /// The eight bytes at `linear`; None if they lie in two pages or not in RAM.
    pub fn word(&mut self, linear: u32) -> Option<Word> {
        let (gpa, place) = self.run(linear, 8, Access::Read)?;
        Some(Word { place, value: self.vcpu.mmu.ram.read_u64(gpa)? })
    }

    /// Physical and host address of `length` bytes at `linear` which may be stored to; None if they lie in two pages, not
    /// in RAM, or where code is.
    pub fn room(&mut self, linear: u32, length: u32) -> Option<(u64, u64)> {
        let found = self.run(linear, length, Access::Write)?;
        (!self.vcpu.mmu.ram.is_code(found.0)).then_some(found)
    }

    fn run(&mut self, linear: u32, length: u32, access: Access) -> Option<(u64, u64)> {
        if linear & 0xfff > 0x1000 - length {
            return None;
        }
        let t = walk(&self.vcpu.mmu.ram, &self.vcpu.state, linear, access, false).ok()?;
        self.regions.insert(linear);
        self.local |= !t.global;
        Some((t.gpa, self.vcpu.mmu.ram.host_address(t.gpa)? as u64))
    }

    /// The descriptor that `segment` has just been loaded from. None if it is not to be read from there again: a null
    /// selector's or one in the LDT, not found, not marked accessed, or read through a stale translation.
    pub fn descriptor(&mut self, segment: Segment) -> Option<Word> {
        if !segment.usable() || segment.selector & 4 != 0 {
            return None;
        }
        let word = self.word(self.vcpu.state.gdtr.base.wrapping_add(segment.selector as u32 & 0xfff8))?;
        let loaded = segment.attr & attr::ACCESSED != 0 && Segment::described(word.value, segment.selector) == segment;
        loaded.then_some(word)
    }
}
