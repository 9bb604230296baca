//! Tables of where indirect branches go, by guest EIP: one for each address space and mode, and one behind them all.
//!
//! Emitted code jumps through the table of its address space, which has one place for each value of the low bits of EIP;
//! the block that it comes to checks that it is meant. If not, the common code asks the shared table, which compares the
//! whole EIP and the table that it was entered for. It is larger, and indexed otherwise, so that blocks that are in each
//! other's way in the first find both their places in the second. Only then is Rust code asked.
//!
//! What emitted code reads of a table lies behind its entries, so that its address is all that has to be set.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::RandomState;

use super::context::{INDEX_ENTRIES, index};
use super::mode::Mode;

/// Tables kept at most, of 128 KiB each.
const MAX_TABLES: usize = 192;

/// Places of a table beyond which emptying it means going over all of it.
const MANY: usize = 2048;

/// Offsets from a table's address of what lies behind its entries.
pub mod behind {
    use super::INDEX_ENTRIES;
    /// The table's number, in the upper half: what shared entries are marked with.
    pub const NUMBER: i32 = 8 * INDEX_ENTRIES as i32;
    /// What is added to the shared table's index.
    pub const MIX: i32 = NUMBER + 8;
    /// Address of the shared table.
    pub const SHARED: i32 = NUMBER + 16;
}

/// Bits of the index into the shared table.
pub const SHARED_MASK: u32 = 0x7fff;
/// How far an EIP is rotated right to be added to itself for that index.
pub const SHARED_ROTATE: u32 = 13;

/// An entry of the shared table; zeros match nothing, since tables are numbered from 1.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Place {
    /// Table number and EIP, negated: emitted code adds instead of comparing.
    negated: u64,
    /// Executable address of the block's main entry, which checks nothing.
    main: u64,
}

/// The indirect-branch table of one address space: host entry points by the low bits of guest EIP.
struct BranchTable {
    entries: Box<[u64]>,
    /// Places that were filled since it was last emptied; once there are [`MANY`], any may be.
    filled: Vec<u16>,
}

/// What a table is for: the window that its code is in, and the mode of that code.
pub type Owner = (usize, Mode);

/// All tables.
pub struct Tables {
    by_owner: HashMap<Owner, BranchTable, RandomState>,
    shared: Box<[Place]>,
    /// Tables numbered so far.
    numbered: u32,
    /// The common code that empty entries lead to.
    miss: u64,
}

impl Tables {
    /// No tables; empty entries will lead to `miss`.
    pub fn new(miss: u64) -> Self {
        let shared = vec![Place::default(); SHARED_MASK as usize + 1].into();
        Self { by_owner: HashMap::default(), shared, numbered: 0, miss }
    }

    /// True if there is no table for `owner`, and no room for one.
    pub fn is_full(&self, owner: &Owner) -> bool {
        self.by_owner.len() >= MAX_TABLES && !self.by_owner.contains_key(owner)
    }

    /// Address of the table of `owner`, made if need be, for `Context::branches`. It stays until that is forgotten.
    pub fn address(&mut self, owner: Owner) -> u64 {
        if !self.by_owner.contains_key(&owner) {
            let mut entries = vec![self.miss; INDEX_ENTRIES + 3];
            entries[INDEX_ENTRIES + 2] = self.shared.as_ptr() as u64;
            self.by_owner.insert(owner, BranchTable { entries: entries.into(), filled: Vec::new() });
            self.number(owner);
        }
        self.by_owner.get(&owner).map_or(0, |t| t.entries.as_ptr() as u64)
    }

    /// Gives the table of `owner` a number that no entry is marked with.
    fn number(&mut self, owner: Owner) {
        if self.numbered == u32::MAX {
            self.shared.fill(Place::default());
            self.numbered = 0;
            for table in self.by_owner.values_mut() {
                self.numbered += 1;
                table.set_number(self.numbered);
            }
        }
        self.numbered += 1;
        if let Some(table) = self.by_owner.get_mut(&owner) {
            table.set_number(self.numbered);
        }
    }

    /// Enters the block for `eip` that starts at executable address `start`, its main entry being at `main`.
    pub fn insert(&mut self, owner: Owner, eip: u32, start: u64, main: u64) {
        let Some(table) = self.by_owner.get_mut(&owner) else { return };
        table.fill(eip, start);
        let (index, negated) = table.place(eip);
        self.shared[index] = Place { negated, main };
    }

    /// EIP and main entry of the blocks that the table of `owner` leads to, as far as the shared table has them.
    pub fn entered(&self, owner: Owner) -> Vec<(u32, u64)> {
        let Some(table) = self.by_owner.get(&owner) else { return Vec::new() };
        let number = table.entries[INDEX_ENTRIES];
        let eip = |p: &Place| p.negated.wrapping_neg().wrapping_sub(number);
        let ours = self.shared.iter().filter(|p| p.negated != 0 && eip(p) <= u32::MAX as u64);
        ours.map(|p| (eip(p) as u32, p.main)).collect()
    }

    /// Takes out the block for `eip` that starts at `start`.
    pub fn remove(&mut self, eip: u32, start: u64) {
        for table in self.by_owner.values_mut() {
            let entry = &mut table.entries[index(eip)];
            if *entry == start {
                *entry = self.miss;
            }
            let (index, negated) = table.place(eip);
            if self.shared[index].negated == negated {
                self.shared[index] = Place::default();
            }
        }
    }

    /// Takes out every block that lies in `code`.
    pub fn remove_all(&mut self, code: &Range<u64>) {
        for table in self.by_owner.values_mut() {
            let blocks = &mut table.entries[..INDEX_ENTRIES];
            blocks.iter_mut().filter(|e| code.contains(e)).for_each(|e| *e = self.miss);
        }
        self.shared.iter_mut().filter(|p| code.contains(&p.main)).for_each(|p| *p = Place::default());
    }

    /// Empties the tables of supervisor code.
    pub fn empty_supervisor(&mut self) {
        self.empty(|(_, mode)| !mode.user());
    }

    /// Empties the tables of code in `window`.
    pub fn empty_window(&mut self, window: usize) {
        self.empty(|(w, _)| *w == window);
    }

    fn empty(&mut self, which: impl Fn(&Owner) -> bool) {
        let mut emptied = Vec::new();
        for (owner, table) in self.by_owner.iter_mut().filter(|(owner, t)| which(owner) && !t.filled.is_empty()) {
            table.empty(self.miss);
            emptied.push(*owner);
        }
        emptied.into_iter().for_each(|owner| self.number(owner));
    }

    /// Forgets all tables.
    pub fn clear(&mut self) {
        self.by_owner.clear();
    }
}

impl BranchTable {
    fn fill(&mut self, eip: u32, start: u64) {
        let place = index(eip);
        self.entries[place] = start;
        if self.filled.len() < MANY {
            self.filled.push(place as u16);
        }
    }

    fn empty(&mut self, miss: u64) {
        match self.filled.len() < MANY {
            true => self.filled.iter().for_each(|place| self.entries[*place as usize] = miss),
            false => self.entries[..INDEX_ENTRIES].fill(miss),
        }
        self.filled.clear();
    }

    fn set_number(&mut self, number: u32) {
        self.entries[INDEX_ENTRIES] = (number as u64) << 32;
        self.entries[INDEX_ENTRIES + 1] = number.wrapping_mul(0x9e37_79b1) as u64;
    }

    /// Index into the shared table, and the mark there, of the block for `eip`. The common code computes the same.
    fn place(&self, eip: u32) -> (usize, u64) {
        let mix = self.entries[INDEX_ENTRIES + 1] as u32;
        let index = eip.wrapping_add(eip.rotate_right(SHARED_ROTATE)).wrapping_add(mix) & SHARED_MASK;
        (index as usize, self.entries[INDEX_ENTRIES].wrapping_add(eip as u64).wrapping_neg())
    }
}
