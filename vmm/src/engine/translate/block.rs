//! What is remembered of a translated block: where it is, and where each piece of its code came from.
//!
//! These are the unpacked forms that everyone works with; `segment` keeps them packed.

use iced_x86::Mnemonic;

use super::emit::Transfer;
use super::gate::Gate;
use super::mode::Mode;
use super::origins::Origins;

/// What a translation is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Guest linear address of the first instruction.
    pub eip: u32,
    /// Its physical address.
    pub gpa: u64,
    /// The mode its code assumes.
    pub mode: Mode,
}

/// Guest state at a point of the host code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Offset in the block from which this entry holds.
    pub offset: u32,
    /// Guest instruction that the code belongs to.
    pub eip: u32,
    /// Guest ESP is r14d plus this.
    pub esp_delta: i32,
    /// What may be done at exactly `offset`.
    pub point: Point,
}

impl Origin {
    /// True if a branch from elsewhere may come in here: state is complete, and nothing waits for this instruction.
    pub fn is_entry(&self) -> bool {
        self.point == Point::Start && self.esp_delta == 0
    }
}

/// What a position in host code is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The first host instruction of a guest instruction: state is complete but for `esp_delta`, and the guest
    /// instruction can be started again here.
    Start,
    /// As `Start`, but execution may not be left here: the instruction before was STI.
    Shadowed,
    /// A repeated string instruction between two iterations: state is complete once RSI and RDI are cut to 32 bits.
    Interruptible,
    /// In the middle of a guest instruction. A fault still leaves state as before it.
    Inside,
}

/// How a block can be left other than by an indirect branch or a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// To a known EIP, by the branch whose displacement is at this address: it can be linked. The stub leaves, or goes by
    /// the table.
    Direct {
        /// Where to.
        eip: u32,
        /// Executable address of the displacement.
        branch: u64,
        /// Executable address of the stub that the branch goes to while it is not linked.
        stub: u64,
    },
    /// Not left: an indirect branch at this address, which goes by the table or by the chart.
    Indirect {
        /// Executable address of the code that stands for it.
        at: u64,
        /// How it leaves.
        transfer: Transfer,
    },
    /// To look at what is pending, before the instruction at this EIP.
    Pending(u32),
    /// To have the instruction at this EIP, of this kind, interpreted.
    Interpret(u32, Mnemonic),
    /// The same, for one that keeps faulting.
    Faulting(u32, Mnemonic),
    /// The same, where a gate did not open.
    Gate(u32, Mnemonic, Gate),
}

/// A way out of a block, named by its index in `Context::site`.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The block it leaves.
    pub block: u32,
    /// How.
    pub leave: Leave,
}

/// A translated block.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// What it is a translation of.
    pub key: Key,
    /// First executable address: the entry of indirect branches, which check that r8d is the block's EIP.
    pub start: u64,
    /// Entry of direct branches, relative to `start`.
    pub main: u32,
    /// Bytes of host code.
    pub length: u32,
    /// Physical address of the second page, if its only instruction runs over into one.
    pub second: Option<u64>,
    /// It uses x87, SSE or AVX state, which must be loaded before it is started in the middle.
    pub fp: bool,
    /// Its page was mapped by a global entry.
    pub global: bool,
    /// Where its code came from, by ascending offset.
    pub origins: Origins<'a>,
    /// First index and number of its exit sites.
    pub sites: (u32, u32),
    /// False once invalidated: no link or lookup leads here any more.
    pub live: bool,
}

impl Block<'_> {
    /// The guest state at executable address `at`; None in code that belongs to no instruction (entry checks, stubs).
    pub fn origin(&self, at: u64) -> Option<Origin> {
        self.until(at)?.last()
    }

    /// The guest state at `at` if execution may be left exactly there.
    pub fn boundary(&self, at: u64) -> Option<Origin> {
        let offset = at.checked_sub(self.start)? as u32;
        self.origin(at).filter(|o| o.offset == offset && matches!(o.point, Point::Start | Point::Interruptible))
    }

    /// The entry that begins the instruction at `eip` around `at`: where it can be started again.
    pub fn restart(&self, at: u64) -> Option<Origin> {
        self.until(at)?.filter(|o| matches!(o.point, Point::Start | Point::Shadowed)).last()
    }

    /// The entries up to executable address `at`.
    fn until(&self, at: u64) -> Option<impl Iterator<Item = Origin>> {
        let offset = at.checked_sub(self.start)? as u32;
        (offset < self.length).then(|| self.origins.take_while(move |o| o.offset <= offset))
    }
}
