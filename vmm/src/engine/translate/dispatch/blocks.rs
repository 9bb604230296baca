//! Blocks: found, made, linked, and what their pages need.

use iced_x86::Register;

use super::super::block::{Key, Leave, Origin, Site};
use super::super::cache::SEGMENTS;
use super::super::link::{Entry, Page};
use super::super::mode::Mode;
use super::super::{Translator, decode, translate};
use super::Active;
use crate::cpu::Vcpu;
use crate::mmu::{Access, Rights, Translation, walk};

impl Translator {
    /// The start of the block for `key`, translated if need be; the table leads there from now on. A direct branch to a stray
    /// one whose surroundings are gone has one made that is good for direct branches.
    pub(super) fn head(&mut self, vcpu: &mut Vcpu, active: Active, key: Key, t: &Translation) -> Entry {
        let direct = self.unlinked.is_some();
        let left = |id: &u32| direct && self.registry.is_stray(*id) && self.registry.entry(&key, true).is_none();
        let id = match self.registry.find(&key).filter(|id| !left(id)) {
            Some(id) if self.second_page_holds(vcpu, active, id) => id,
            _ => {
                let id = self.translate(vcpu, active.mode, key, t);
                self.note_second_page(vcpu, active, id);
                id
            }
        };
        let block = self.registry.block(id);
        let main = block.start + block.main as u64;
        let owner = (active.code_window, active.mode);
        self.tables.insert(owner, key.eip, block.start, main);
        let entry = Entry { block: id, offset: block.main };
        self.put_on_chart(owner, key.eip, main);
        entry
    }

    /// True unless block `id` runs over into a page that is no longer where it was.
    pub(super) fn second_page_holds(&mut self, vcpu: &Vcpu, active: Active, id: u32) -> bool {
        let holds = self.note_second_page(vcpu, active, id);
        if !holds {
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        }
        holds
    }

    /// Notes that the page which block `id` runs over into, if there is one, is executed; false if it is another one now.
    fn note_second_page(&mut self, vcpu: &Vcpu, active: Active, id: u32) -> bool {
        let block = self.registry.block(id);
        let Some(second) = block.second else { return true };
        let (next, user) = ((block.key.eip & !0xfff).wrapping_add(0x1000), block.key.mode.user());
        let now = walk(&vcpu.mmu.ram, &vcpu.state, next, Access::Execute, user).ok().filter(|t| t.gpa == second);
        if let Some(t) = now {
            self.shadow.note_executed(&vcpu.state, active.code_window, next, second, t.global);
        }
        now.is_some()
    }

    /// Notes that the page of `key`, which is mapped as `t`, is executed.
    pub(super) fn note_executed(&mut self, vcpu: &Vcpu, active: Active, key: Key, t: &Translation) {
        self.shadow.note_executed(&vcpu.state, active.code_window, key.eip, t.gpa, t.global);
        // The tables of an address space's own window are its own.
        let shared = self.shadow.rights(active.code_window) == Some(Rights::Kernel);
        self.local_entries |= shared && !t.global;
    }

    /// Links exit site `site` to `entry`, which is for EIP `at` in a page mapped as `t`, if nothing can come between them
    /// unnoticed.
    pub(super) fn link(&mut self, site: u32, entry: Entry, at: u32, t: &Translation) {
        let Some(Site { block, leave: Leave::Direct { eip, .. } }) = self.registry.site(site) else { return };
        if at != eip {
            // An interrupt came between.
            return;
        }
        let (from, to) = (self.registry.block(block), self.registry.block(entry.block));
        let same_page = (from.key.eip ^ to.key.eip) & !0xfff == 0 && (from.key.gpa ^ to.key.gpa) & !0xfff == 0;
        let fixed = !to.key.mode.paging() || (!to.key.mode.user() && t.global && from.global && to.global);
        let same_page = same_page && to.second.is_none() && from.second.is_none();
        if from.live && from.key.mode == to.key.mode && (same_page || fixed) {
            self.registry.link(&mut self.cache, site, entry);
        }
    }

    /// Links the exits of the new block `id` to what its page already has translations of.
    pub(super) fn link_inside(&mut self, id: u32) {
        let block = self.registry.block(id);
        let (key, fp, sites) = (block.key, block.fp, block.sites);
        if block.second.is_some() {
            return;
        }
        let mixed = self.registry.is_mixed(key.gpa & !0xfff);
        for site in sites.0..sites.0 + sites.1 {
            let Some(Site { leave: Leave::Direct { eip, .. }, .. }) = self.registry.site(site) else { continue };
            let target = Key { eip, gpa: key.gpa & !0xfff | (eip & 0xfff) as u64, ..key };
            if (eip ^ key.eip) & !0xfff != 0 {
                continue;
            }
            // Most stay in the block, whose origins are still at hand unpacked. Nothing goes past its look at its source.
            let inside = |o: &&Origin| !mixed && o.eip == eip && o.is_entry() && eip != key.eip;
            let own = self.translation.origins.iter().find(inside);
            let own = own.map(|o| Entry { block: id, offset: o.offset });
            if let Some(entry) = own.or_else(|| self.registry.entry(&target, fp)) {
                self.registry.link(&mut self.cache, site, entry);
            }
        }
    }

    /// Translates the block for `key`, which runs in `mode`.
    pub(super) fn translate(&mut self, vcpu: &mut Vcpu, mode: Mode, mut key: Key, t: &Translation) -> u32 {
        for _ in 0..SEGMENTS {
            if self.registry.is_full() {
                self.evict(vcpu);
            }
        }
        self.watch(vcpu, key.gpa & !0xfff);
        self.registry.note_frame(&vcpu.mmu.ram, key.gpa & !0xfff);
        self.decode(vcpu, key);
        if key.mode != mode && self.trace.instructions.iter().any(|i| i.memory_segment() == Register::GS) {
            self.supervisor_gs = true;
            key.mode = mode;
        }
        let fixed = !key.mode.paging() || (!key.mode.user() && t.global);
        let page = Page { global: t.global, second: self.trace.second };
        let mixed = self.registry.is_mixed(key.gpa & !0xfff);
        loop {
            // Making room may have ended this.
            self.watch(vcpu, key.gpa & !0xfff);
            page.second.into_iter().for_each(|second| self.watch(vcpu, second));
            self.emitter.restart(self.cache.next());
            let (from, to) = self.trace.source();
            let bytes = self.registry.frame(key.gpa & !0xfff).and_then(|f| f.bytes.get(from as usize..to as usize));
            let environment = translate::Environment {
                mode: key.mode,
                trampolines: &self.trampolines,
                dynamic: &self.dynamic,
                interpreted: &self.interpreted,
                faulting: &self.churn.places,
                varied: &self.varied,
                wrapping: &self.wrapping,
                frame: key.gpa & !0xfff,
                fixed,
                checked: bytes.filter(|_| mixed && !self.trace.instructions.is_empty()),
                first_site: self.registry.next_site(),
            };
            translate::translate(&mut self.emitter, &self.trace, &environment, &mut self.translation);
            let length = self.emitter.code.len() as u32;
            if let Some(start) = self.cache.append(&self.emitter.code) {
                self.stats.blocks += 1;
                self.stats.guest_instructions += self.trace.instructions.len() as u64;
                self.stats.host_bytes += length as u64;
                let id = self.registry.add(&vcpu.mmu.ram, key, (start, length), page, &self.translation);
                self.link_inside(id);
                self.chart_block(id);
                self.check_block(id);
                return id;
            }
            self.evict(vcpu);
        }
    }

    /// Decodes the trace for `key`, whose frame is known, up to what is translated already. Code of a mixed frame is decoded
    /// as far as one look at its source is good for, and not at all where two pages hold it.
    pub(super) fn decode(&mut self, vcpu: &Vcpu, key: Key) {
        let registry = &self.registry;
        let Some(frame) = registry.frame(key.gpa & !0xfff) else { return };
        if frame.mixed() {
            return decode::decode_checked(vcpu, key.eip, &frame.bytes, &mut self.trace);
        }
        let view = frame.view(key.eip, key.mode);
        let known = |eip: u32| {
            let key = Key { eip, gpa: key.gpa & !0xfff | (eip & 0xfff) as u64, ..key };
            view.is_some_and(|view| registry.place(view, &key, false).is_some())
        };
        decode::decode(vcpu, key.eip, &frame.bytes, known, &mut self.trace);
        if self.trace.second.is_some_and(|second| registry.is_mixed(second)) {
            self.trace.leave_out();
        }
    }

    /// Has stores to the frame at `gpa`, which code is translated from, reported by Rust code and by windows.
    pub(super) fn watch(&mut self, vcpu: &mut Vcpu, gpa: u64) {
        if self.registry.frame(gpa).is_none_or(|frame| !frame.watched() && !frame.mixed()) {
            vcpu.mmu.watch_code(gpa);
            self.watch_gates(gpa);
            self.shadow.protect_frame(gpa);
        }
    }
}
