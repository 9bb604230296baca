//! Blocks: found, made, linked, and what their pages need.

use super::super::block::{Key, Leave, Site};
use super::super::cache::SEGMENTS;
use super::super::link::{Entry, Page};
use super::super::{Translator, decode, translate};
use super::Active;
use crate::cpu::Vcpu;
use crate::mmu::{Access, Translation, walk};

impl Translator {
    /// The start of the block for `key`, translated if need be; the table leads there from now on.
    pub(super) fn head(&mut self, vcpu: &mut Vcpu, active: Active, key: Key, t: &Translation) -> Entry {
        let id = match self.registry.find(&key) {
            Some(id) if self.second_page_holds(vcpu, active, id) => id,
            _ => self.translate(vcpu, key, t),
        };
        let block = self.registry.block(id);
        let main = block.start + block.main as u64;
        self.tables.insert((active.code_window, key.mode), key.eip, block.start, main);
        Entry { block: id, offset: block.main }
    }

    /// True unless block `id` runs over into a page that is no longer where it was.
    pub(super) fn second_page_holds(&mut self, vcpu: &Vcpu, active: Active, id: u32) -> bool {
        let block = self.registry.block(id);
        let Some(second) = block.second else { return true };
        let (next, user) = ((block.key.eip & !0xfff).wrapping_add(0x1000), block.key.mode.user());
        let now = walk(&vcpu.mmu.ram, &vcpu.state, next, Access::Execute, user);
        match now {
            Ok(t) if t.gpa == second => {
                self.shadow.note_executed(&vcpu.state, active.code_window, next, second, t.global);
                true
            }
            _ => {
                self.registry.invalidate(&mut self.cache, id);
                self.purge();
                false
            }
        }
    }

    /// Notes that the page of `key`, which is mapped as `t`, is executed.
    pub(super) fn note_executed(&mut self, vcpu: &Vcpu, active: Active, key: Key, t: &Translation) {
        self.shadow.note_executed(&vcpu.state, active.code_window, key.eip, t.gpa, t.global);
        self.local_entries |= key.mode.paging() && !key.mode.user() && !t.global;
    }

    /// Links exit site `site` to `entry`, in a page mapped as `t`, if nothing can come between them unnoticed.
    pub(super) fn link(&mut self, site: u32, entry: Entry, t: &Translation) {
        let Some(Site { block, leave: Leave::Direct { eip, .. } }) = self.registry.site(site) else { return };
        let (from, to) = (self.registry.block(block), self.registry.block(entry.block));
        let at = if entry.offset == to.main {
            Some(to.key.eip)
        } else {
            to.origin(to.start + entry.offset as u64).map(|o| o.eip)
        };
        if at != Some(eip) {
            // An interrupt came between.
            return;
        }
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
        for site in sites.0..sites.0 + sites.1 {
            let Some(Site { leave: Leave::Direct { eip, .. }, .. }) = self.registry.site(site) else { continue };
            let target = Key { eip, gpa: key.gpa & !0xfff | (eip & 0xfff) as u64, ..key };
            if (eip ^ key.eip) & !0xfff == 0
                && let Some(entry) = self.registry.entry(&target, fp)
            {
                self.registry.link(&mut self.cache, site, entry);
            }
        }
    }

    /// Translates the block for `key`.
    pub(super) fn translate(&mut self, vcpu: &mut Vcpu, key: Key, t: &Translation) -> u32 {
        for _ in 0..SEGMENTS {
            if self.registry.is_full() {
                self.evict(vcpu);
            }
        }
        self.watch(vcpu, key.gpa & !0xfff);
        self.registry.note_frame(&vcpu.mmu.ram, key.gpa & !0xfff);
        self.decode(vcpu, key);
        let fixed = !key.mode.paging() || (!key.mode.user() && t.global);
        let page = Page { global: t.global, second: self.trace.second };
        loop {
            // Making room may have ended this.
            self.watch(vcpu, key.gpa & !0xfff);
            page.second.into_iter().for_each(|second| self.watch(vcpu, second));
            self.emitter.restart(self.cache.next());
            let environment = translate::Environment {
                mode: key.mode,
                trampolines: &self.trampolines,
                dynamic: &self.dynamic,
                interpreted: &self.interpreted,
                faulting: &self.churn.places,
                varied: &self.varied,
                fixed,
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
                self.check_block(id);
                return id;
            }
            self.evict(vcpu);
        }
    }

    /// Decodes the trace for `key`, whose frame is known, up to what is translated already.
    pub(super) fn decode(&mut self, vcpu: &Vcpu, key: Key) {
        let registry = &self.registry;
        let Some(frame) = registry.frame(key.gpa & !0xfff) else { return };
        let known = |eip: u32| {
            let key = Key { eip, gpa: key.gpa & !0xfff | (eip & 0xfff) as u64, ..key };
            registry.entry(&key, false).is_some()
        };
        decode::decode(vcpu, key.eip, &frame.bytes, known, &mut self.trace);
    }

    /// Has stores to the frame at `gpa`, which code is translated from, reported by Rust code and by windows.
    pub(super) fn watch(&mut self, vcpu: &mut Vcpu, gpa: u64) {
        if self.registry.frame(gpa).is_none() {
            vcpu.mmu.watch_code(gpa);
            self.shadow.protect_frame(gpa);
        }
    }
}
