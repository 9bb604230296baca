//! Ring-3 instructions that keep causing host faults: interpreting one costs a tenth of what the host's fault and the
//! changes of its mapping cost, or less.
//!
//! A guest that unmaps, protects and touches the same memory again and again makes the same instruction fault each time,
//! and each page mapped for it must be unmapped again. So an instruction that has faulted often is translated as a way out
//! to the interpreter, which walks the page tables and needs no mapping at all. From then on it has to earn that:
//!
//! * A page that changed or went before any window had to show it is a mapping spared, worth [`WORTH`] interpreted
//!   accesses. What they took less than that is earned by each instruction that touched the page.
//! * Where another instruction had the page mapped after all, that costs them [`WASTE`] points.
//! * A page that gives way in memory to another, and is still as it was, costs them a point an access.
//! * An access to a page that its window shows, or that was touched more often than a mapping is worth, costs one point;
//!   so does an execution without an access, where another program has other code.
//!
//! An instruction without points is translated plainly again, and needs more faults than before to come back here. What was
//! touched last is kept in [`Mark`]s, few and by page.
//!
//! All this only chooses between two exact ways to execute an instruction. Addresses are of whatever address space was
//! current, so programs with different code at one address may share a record: that costs time, never truth.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use iced_x86::{Decoder, DecoderOptions, OpKind};

use super::block::Key;
use super::classify::{Class, classify};
use super::{MAX_LEARNT, Places, Translator};
use crate::cpu::{Flow, Vcpu};
use crate::mmu::{Flush, Rights, Shadow, peek};

/// Faults of an instruction before it is first interpreted.
const FAULTS: u32 = 12;
/// Faults that one counts for if an interpreted instruction has just touched the page: as long as not all that touch it
/// are interpreted, each of them only costs.
const FOLLOWS: u32 = FAULTS / 2;
/// By what that number grows each time the instruction is translated plainly again.
const GROWTH: u32 = 4;
/// Points for a mapping that was spared: executions by way of the interpreter that take as long.
const WORTH: i32 = 10;
/// Points lost for a mapping that was made after all: with it made at once, a host fault less.
const WASTE: i32 = 6;
/// Points at first and at most.
const CREDIT: i32 = 128;
/// CR3 writes since a page of another address space was touched last after which it is taken to be gone with it.
const GONE: u32 = 4;
/// Touched pages remembered.
const MARKS: usize = 64;
/// Instructions remembered for each: enough for those of one loop.
const TOUCHERS: usize = 4;

/// What is known of one instruction.
#[derive(Clone, Copy)]
struct Record {
    /// Faults since it was last translated plainly.
    faults: u32,
    /// How many make it interpreted.
    limit: u32,
    points: i32,
}

/// An access by an interpreted instruction to a page that its window does not show.
#[derive(Clone, Copy, Default)]
struct Touch {
    eip: u32,
    cr3: u32,
    linear: u32,
    write: bool,
    /// The page's frame, and whether it can be stored to, as the guest's tables have it.
    seen: Option<(u64, bool)>,
}

/// What became of a page that interpreted instructions touched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It changed or went, and no window ever showed it.
    Spared,
    /// A window shows it.
    Shown,
    /// Nothing: it is only not remembered any longer.
    Kept,
}

/// What is remembered of such a page.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// The first access; with stores among those since, a store.
    first: Touch,
    /// Accesses; 0: nothing is remembered.
    count: i32,
    /// Who else touched it, as far as there is room.
    others: [u32; TOUCHERS - 1],
    /// [`Churn::flushes`] when it was last compared.
    flushes: u32,
}

impl Mark {
    /// True if it is about the page of `linear`.
    fn is_of(&self, linear: u32, cr3: u32) -> bool {
        self.count != 0 && self.first.cr3 == cr3 && (self.first.linear ^ linear) & !0xfff == 0
    }

    /// Its fate now that the page has changed.
    fn changed(&self, shadow: &Shadow) -> Fate {
        match shadow.shows(Rights::User(self.first.cr3), self.first.linear, self.first.write) {
            true => Fate::Shown,
            false => Fate::Spared,
        }
    }

    /// Its fate when another page is remembered in its place, after `flushes` CR3 writes.
    fn displaced(&self, shadow: &Shadow, vcpu: &Vcpu, flushes: u32) -> Fate {
        let kept = match self.first.cr3 == vcpu.state.cr3 {
            true => seen(vcpu, self.first.linear) == self.first.seen,
            false => flushes.wrapping_sub(self.flushes) < GONE,
        };
        match self.changed(shadow) {
            Fate::Spared if kept => Fate::Kept,
            fate => fate,
        }
    }

    fn add(&mut self, touch: &Touch) {
        self.count += 1;
        self.first.write |= touch.write;
        if touch.eip != self.first.eip && !self.others.contains(&touch.eip) {
            self.others.rotate_right(1);
            self.others[0] = touch.eip;
        }
    }
}

/// The instructions that keep faulting.
pub struct Churn {
    /// Those that are interpreted.
    pub places: Places,
    records: HashMap<u32, Record, RandomState>,
    /// Pages touched, by [`Churn::place`].
    marks: [Mark; MARKS],
    /// CR3 writes: what was seen before is to be compared.
    flushes: u32,
}

impl Default for Churn {
    fn default() -> Self {
        let marks = [Mark::default(); MARKS];
        Self { places: Places::default(), records: HashMap::default(), marks, flushes: 0 }
    }
}

impl Churn {
    /// Notes a fault of the instruction at `eip` on the page of `linear`. True if it has faulted often enough to be
    /// interpreted.
    fn fault(&mut self, eip: u32, linear: u32, cr3: u32) -> bool {
        if self.records.len() >= MAX_LEARNT {
            // What is still translated as interpreted is found out when it is next come to.
            *self = Self::default();
        }
        let follows = self.marks[Self::place(linear, cr3)].is_of(linear, cr3);
        let record = self.records.entry(eip).or_insert(Record { faults: 0, limit: FAULTS, points: 0 });
        record.faults = record.faults.saturating_add(if follows { FOLLOWS } else { 1 });
        record.faults >= record.limit
    }

    /// Has the instruction at `eip` interpreted from now on, or, if it is none of those, never.
    fn learn(&mut self, eip: u32, eligible: bool) {
        let Some(record) = self.records.get_mut(&eip) else { return };
        match eligible {
            true => {
                record.points = CREDIT;
                self.places.insert(eip);
            }
            false => record.limit = u32::MAX,
        }
    }

    fn reward(&mut self, eip: u32, points: i32) {
        if let Some(record) = self.records.get_mut(&eip) {
            record.points = (record.points + points).min(CREDIT);
        }
    }

    /// Takes one point from the instruction at `eip`.
    fn charge(&mut self, eip: u32) {
        self.reward(eip, -1);
    }

    /// True if the instruction at `eip` is still to be interpreted. If not, it is forgotten.
    fn stays(&mut self, eip: u32) -> bool {
        let Some(record) = self.records.get_mut(&eip).filter(|_| self.places.contains(&eip)) else { return false };
        if record.points > 0 {
            return true;
        }
        record.limit = record.limit.saturating_mul(GROWTH);
        record.faults = 0;
        self.places.remove(&eip);
        false
    }

    fn place(linear: u32, cr3: u32) -> usize {
        (linear >> 12 ^ cr3 >> 12) as usize % MARKS
    }

    /// The page of `linear` is no longer as it was.
    fn changed(&mut self, linear: u32, cr3: u32, fate: impl FnOnce(&Mark) -> Fate) {
        let place = Self::place(linear, cr3);
        if self.marks[place].is_of(linear, cr3) {
            self.settle(place, fate);
        }
    }

    /// Ends what is remembered at `place`.
    fn settle(&mut self, place: usize, fate: impl FnOnce(&Mark) -> Fate) {
        let mark = std::mem::take(&mut self.marks[place]);
        if mark.count == 0 {
            return;
        }
        let points = match fate(&mark) {
            Fate::Spared => (WORTH - mark.count).max(0),
            Fate::Shown => -WASTE,
            Fate::Kept => -mark.count,
        };
        self.reward(mark.first.eip, points);
        mark.others.iter().for_each(|&eip| self.reward(eip, points));
    }

    /// An instruction has touched a page that no window shows.
    fn touched(&mut self, touch: Touch, fate: impl FnOnce(&Mark) -> Fate) {
        let place = Self::place(touch.linear, touch.cr3);
        let (mark, flushes) = (&mut self.marks[place], self.flushes);
        let same = mark.is_of(touch.linear, touch.cr3);
        if same && (mark.flushes == flushes || mark.first.seen == touch.seen) {
            mark.flushes = flushes;
            mark.add(&touch);
            if mark.count > WORTH {
                self.charge(touch.eip);
            }
            return;
        }
        self.settle(place, |mark| if same { Fate::Spared } else { fate(mark) });
        self.marks[place] = Mark { first: touch, count: 1, others: Default::default(), flushes };
    }
}

impl Translator {
    /// The instruction at EIP, in block `id`, has faulted at `linear`. True if its block is gone, to be translated anew.
    pub(super) fn note_fault(&mut self, vcpu: &mut Vcpu, id: u32, linear: u32) -> bool {
        let (eip, key) = (vcpu.state.eip, self.registry.block(id).key);
        if !key.mode.paging() || !key.mode.user() || !self.churn.fault(eip, linear, vcpu.state.cr3) {
            return false;
        }
        let eligible = may_be_spared(vcpu, key, eip);
        self.churn.learn(eip, eligible);
        if !eligible {
            return false;
        }
        self.stats.learnt_faulting += 1;
        self.registry.invalidate(&mut self.cache, id);
        self.purge();
        true
    }

    /// Has the instruction at EIP interpreted, which exit site `index` of block `id` left for because it kept faulting.
    pub(super) fn spare(&mut self, vcpu: &mut Vcpu, index: u32, id: u32) -> Flow<()> {
        let (eip, cr3) = (vcpu.state.eip, vcpu.state.cr3);
        if !self.churn.stays(eip) {
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
            return self.interpret(vcpu);
        }
        self.stats.spared += 1;
        let accessed = self.registry.prepared(index).and_then(|p| p.accessed(vcpu));
        self.assist(vcpu, index)?;
        if vcpu.state.cpl != 3 {
            return Ok(());
        }
        let Some((linear, write)) = accessed else {
            // Another program's instruction, at the address of one that kept faulting.
            self.churn.charge(eip);
            return Ok(());
        };
        let shadow = &self.shadow;
        if shadow.shows(Rights::User(cr3), linear, write) {
            self.churn.charge(eip);
            return Ok(());
        }
        let (seen, flushes) = (seen(vcpu, linear), self.churn.flushes);
        self.churn.touched(Touch { eip, cr3, linear, write, seen }, |mark| mark.displaced(shadow, vcpu, flushes));
        Ok(())
    }

    /// The guest has flushed translations: what was touched may have changed. To be told before windows are.
    pub(super) fn flush_churn(&mut self, cr3: u32, flush: Flush) {
        let shadow = &self.shadow;
        match flush {
            Flush::Page(linear) => {
                self.churn.changed(linear, cr3, |mark| mark.changed(shadow));
            }
            Flush::NonGlobal | Flush::All => self.churn.flushes = self.churn.flushes.wrapping_add(1),
        }
    }
}

/// The frame of `linear` and whether it can be stored to, as the guest's tables have it.
fn seen(vcpu: &Vcpu, linear: u32) -> Option<(u64, bool)> {
    peek(&vcpu.mmu.ram, &vcpu.state, linear, true).map(|t| (t.gpa & !0xfff, t.writable_now))
}

/// True if the instruction at `eip` of a block with `key` is one that is interpreted no worse than translated: it moves a
/// few bytes and uses no x87 or SSE state.
fn may_be_spared(vcpu: &mut Vcpu, key: Key, eip: u32) -> bool {
    let mut bytes = [0; 15];
    let here = bytes.len().min(0x1000 - (eip & 0xfff) as usize);
    let gpa = key.gpa & !0xfff | (eip & 0xfff) as u64;
    if (eip ^ key.eip) & !0xfff != 0 || !vcpu.mmu.ram.read(gpa, &mut bytes[..here]) {
        return false;
    }
    let insn = Decoder::with_ip(32, &bytes[..here], eip as u64, DecoderOptions::NONE).decode();
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    match classify(&insn, key.mode) {
        Class::Plain => memory,
        // Leaving emitted code empties the return stack, so that no return misses its call.
        Class::Push | Class::Pop | Class::Call | Class::CallIndirect | Class::Return => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 0x8000_0000;
    const STORE: Touch = Touch { eip: 5, cr3: 0x1000, linear: PAGE, write: true, seen: Some((0x5000, true)) };

    /// A record of an instruction at `eip` that is interpreted now, having faulted `faults` times.
    fn learnt(churn: &mut Churn, eip: u32, faults: u32) {
        let mut fault = || churn.fault(eip, PAGE + 0x5000, 0x1000);
        assert!((1..faults).all(|_| !fault()) && fault(), "not after {faults} faults");
        churn.learn(eip, true);
        assert!(churn.stays(eip));
    }

    #[test]
    fn instructions_whose_page_keeps_changing_stay_interpreted() {
        let mut churn = Churn::default();
        [5, 6].into_iter().for_each(|eip| learnt(&mut churn, eip, FAULTS));
        for i in 0..10_000 {
            churn.touched(Touch { eip: 5 + i % 2, ..STORE }, |_| Fate::Spared);
            if i as i32 % WORTH == 0 {
                churn.changed(PAGE + 8, 0x1000, |_| Fate::Spared);
            }
            assert!(churn.stays(5) && churn.stays(6), "after {i}");
        }
    }

    #[test]
    fn one_that_its_window_would_serve_is_translated_again_and_is_harder_to_convince() {
        let mut churn = Churn::default();
        learnt(&mut churn, 5, FAULTS);
        let mut times = 0;
        while churn.stays(5) {
            churn.touched(STORE, |_| Fate::Spared);
            times += 1;
        }
        assert_eq!(times, CREDIT + WORTH);
        learnt(&mut churn, 5, FAULTS * GROWTH);
    }

    #[test]
    fn a_page_that_was_mapped_after_all_costs() {
        let mut churn = Churn::default();
        learnt(&mut churn, 5, FAULTS);
        let spoilt = |churn: &mut Churn| {
            churn.touched(STORE, |_| Fate::Spared);
            churn.changed(PAGE, 0x1000, |_| Fate::Shown);
            churn.stays(5)
        };
        assert_eq!((0..1000).take_while(|_| spoilt(&mut churn)).count() as i32, CREDIT / WASTE);
    }

    /// Two pages that are remembered at one place, and never change.
    #[test]
    fn pages_that_displace_each_other_are_not_spared() {
        let mut churn = Churn::default();
        learnt(&mut churn, 5, FAULTS);
        let other = Touch { linear: PAGE + 0x1000 * MARKS as u32, ..STORE };
        assert_eq!(Churn::place(other.linear, other.cr3), Churn::place(PAGE, STORE.cr3));
        let mut times = 0;
        while churn.stays(5) && times < 10_000 {
            churn.touched(if times % 2 == 0 { STORE } else { other }, |_| Fate::Kept);
            times += 1;
        }
        assert_eq!(times, CREDIT + 1);
    }

    #[test]
    fn one_that_follows_is_interpreted_soon() {
        let mut churn = Churn::default();
        learnt(&mut churn, 5, FAULTS);
        churn.touched(STORE, |_| Fate::Spared);
        let faults = (1..).find(|_| churn.fault(6, PAGE + 8, 0x1000));
        assert_eq!(faults, Some(FAULTS / FOLLOWS));
    }

    #[test]
    fn a_cr3_write_alone_changes_nothing() {
        let mut churn = Churn::default();
        learnt(&mut churn, 5, FAULTS);
        let mut next = |gpa| {
            churn.flushes += 1;
            churn.touched(Touch { seen: Some((gpa, true)), ..STORE }, |_| Fate::Spared);
            churn.marks[Churn::place(PAGE, 0x1000)].count
        };
        assert_eq!((next(0x5000), next(0x5000), next(0x6000), next(0x6000)), (1, 2, 1, 2));
    }
}
