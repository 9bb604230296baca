//! What is remembered of the blocks in one segment of the code cache, packed: it comes and goes with their code.
//!
//! Blocks and exit sites are named by numbers that hold the segment above [`SHIFT`] and the place in it below.

use iced_x86::Mnemonic;

use super::block::{Leave, Origin};
use super::emit::Transfer;
use super::gate::Gate;
use super::mode::Mode;
use super::origins;
use crate::engine::interp::Prepared;

/// Bits of a number that say the place in its segment. What is left names up to 8 segments, and no number equals one of
/// the context's `SITE_*` values.
pub const SHIFT: u32 = 28;
/// No block, site or frame.
pub const NONE: u32 = u32::MAX;

/// The number of place `index` in `segment`.
pub fn join(segment: usize, index: usize) -> u32 {
    (segment as u32) << SHIFT | index as u32
}

/// Segment and place of a number.
pub fn split(number: u32) -> (usize, usize) {
    ((number >> SHIFT) as usize, (number & ((1 << SHIFT) - 1)) as usize)
}

/// A block. Frames are physical page numbers, starts are offsets in the code cache.
pub struct Record {
    pub eip: u32,
    pub frame: u32,
    pub mode: Mode,
    /// Frame of the second page, or [`NONE`].
    pub second: u32,
    pub start: u32,
    pub length: u32,
    pub main: u32,
    /// First byte of its packed origins.
    pub origins: u32,
    /// Place of its first exit site.
    pub sites: u32,
    /// Number of the first of the sites linked to it, or [`NONE`].
    pub incoming: u32,
    pub source: (u16, u16),
    pub fp: bool,
    pub global: bool,
    /// It began inside another block, where an interrupt came: direct branches do not lead here.
    pub stray: bool,
    pub live: bool,
}

/// An exit site.
pub struct Exit {
    /// Place of its block.
    pub block: u32,
    pub kind: Kind,
}

/// How an exit site leaves; see [`Leave`]. Branch and stub are offsets in the code cache.
pub enum Kind {
    Direct { eip: u32, branch: u32, stub: u32, link: Link },
    Indirect { at: u32, transfer: Transfer, charted: bool },
    Pending { eip: u32 },
    Interpret { eip: u32, mnemonic: Mnemonic, why: Why, prepared: u32 },
}

/// Why an instruction is left to the interpreter.
#[derive(Clone, Copy)]
pub enum Why {
    /// It is not translated.
    Always,
    /// It keeps faulting.
    Faulting,
    /// A gate did not open.
    Gate(Gate),
}

/// The block that a site is linked to, or [`NONE`], and the site's neighbours among all that are linked there.
#[derive(Clone, Copy)]
pub struct Link {
    pub to: u32,
    pub previous: u32,
    pub next: u32,
}

impl Link {
    /// Not linked.
    pub const NO: Self = Self { to: NONE, previous: NONE, next: NONE };
}

/// The blocks of one segment, by ascending start.
#[derive(Default)]
pub struct Segment {
    pub records: Vec<Record>,
    pub exits: Vec<Exit>,
    pub prepared: Vec<Prepared>,
    /// Places of the exit sites by which user code branches to another page.
    pub far: Vec<u32>,
    /// Places of the exit sites that are indirect branches of user code.
    pub indirect: Vec<u32>,
    origins: Vec<u8>,
}

impl Segment {
    /// Adds `record`, whose lists are `origins` and `exits`, for a cache that starts at address `base`.
    pub fn add(&mut self, mut record: Record, origins: &[Origin], exits: &[Leave], base: u64) -> usize {
        let index = self.records.len();
        record.origins = self.origins.len() as u32;
        record.sites = self.exits.len() as u32;
        origins::pack(record.eip, origins, &mut self.origins);
        let offset = |address: u64| (address - base) as u32;
        let far = |leave: &Leave| matches!(leave, Leave::Direct { eip, .. } if (eip ^ record.eip) & !0xfff != 0);
        if record.mode.user() {
            let places = exits.iter().zip(record.sites..).filter(|(leave, _)| far(leave));
            self.far.extend(places.map(|(_, place)| place));
            let places = exits.iter().zip(record.sites..);
            let places = places.filter(|(leave, _)| matches!(leave, Leave::Indirect { .. }));
            self.indirect.extend(places.map(|(_, place)| place));
        }
        self.exits.extend(exits.iter().map(|leave| Exit {
            block: index as u32,
            kind: match *leave {
                Leave::Direct { eip, branch, stub } => {
                    Kind::Direct { eip, branch: offset(branch), stub: offset(stub), link: Link::NO }
                }
                Leave::Indirect { at, transfer } => Kind::Indirect { at: offset(at), transfer, charted: false },
                Leave::Pending(eip) => Kind::Pending { eip },
                Leave::Interpret(eip, mnemonic) => Kind::Interpret { eip, mnemonic, why: Why::Always, prepared: NONE },
                Leave::Faulting(eip, mnemonic) => Kind::Interpret { eip, mnemonic, why: Why::Faulting, prepared: NONE },
                Leave::Gate(eip, mnemonic, gate) => {
                    Kind::Interpret { eip, mnemonic, why: Why::Gate(gate), prepared: NONE }
                }
            },
        }));
        self.records.push(record);
        index
    }

    /// The packed origins of block `index`.
    pub fn origins(&self, index: usize) -> origins::Origins<'_> {
        let record = &self.records[index];
        let end = self.records.get(index + 1).map_or(self.origins.len(), |next| next.origins as usize);
        origins::Origins::new(record.eip, &self.origins[record.origins as usize..end])
    }

    /// Places of the exit sites of block `index`.
    pub fn sites(&self, index: usize) -> std::ops::Range<usize> {
        let end = self.records.get(index + 1).map_or(self.exits.len(), |next| next.sites as usize);
        self.records[index].sites as usize..end
    }

    /// Place of the block whose code holds offset `at` of the cache.
    pub fn containing(&self, at: u32) -> Option<usize> {
        let index = self.records.partition_point(|r| r.start <= at).checked_sub(1)?;
        let record = &self.records[index];
        (at - record.start < record.length).then_some(index)
    }

    /// Forgets everything, keeping the memory for what comes next.
    pub fn clear(&mut self) {
        self.records.clear();
        self.exits.clear();
        self.prepared.clear();
        self.far.clear();
        self.indirect.clear();
        self.origins.clear();
    }

    /// Bytes of memory in use.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.records[..])
            + size_of_val(&self.exits[..])
            + size_of_val(&self.prepared[..])
            + size_of_val(&self.far[..])
            + size_of_val(&self.indirect[..])
            + self.origins.len()
    }
}
