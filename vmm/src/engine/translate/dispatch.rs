//! One turn of the engine's loop: events, mode, block, run, and what to do about the way it ended.

mod blocks;
mod faults;
mod routes;
mod x87;

pub use faults::Awaited;
use routes::Route;
pub use routes::Routes;
use x87::X87Last;

use iced_x86::Mnemonic;

use super::block::{Key, Leave, Point};
use super::context::{SITE_ABANDONED, SITE_FAULT, SITE_INDIRECT, SITE_KICKED, SITE_TRIPPED};
use super::mode::{HOST_FLAGS, Mode};
use super::{Translator, execute};
use crate::cpu::{Flow, InterruptShadow, Vcpu, eflags, reg};
use crate::engine::Exit;
use crate::engine::interp::Prepared;
use crate::mmu::{Access, Rights, walk};

/// What the context's windows are set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Active {
    mode: Mode,
    cr3: u32,
    /// Index of the window that executed pages are noted in.
    pub(super) code_window: usize,
    /// [`Shadow::version`](crate::mmu::Shadow::version) then.
    version: u64,
}

impl Translator {
    /// Runs until something needs a decision. Some: the machine is wanted.
    pub(super) fn turn(&mut self, vcpu: &mut Vcpu) -> Flow<Option<Exit>> {
        if (vcpu.lines.any() || vcpu.state.halted)
            && let Some(exit) = self.interp.events(vcpu)?
        {
            return Ok(Some(exit));
        }
        self.notices(vcpu);
        if vcpu.state.shadow != InterruptShadow::None {
            // One instruction runs before the next look at interrupts.
            return self.interpret(vcpu).map(|_| None);
        }
        match Mode::of(vcpu) {
            Some(mode) => {
                // No instruction breakpoint is enabled: RF has nothing to hold back.
                vcpu.state.eflags &= !eflags::RF;
                self.translated(vcpu, mode).map(|_| None)
            }
            None => self.interpret(vcpu).map(|_| None),
        }
    }

    fn translated(&mut self, vcpu: &mut Vcpu, mode: Mode) -> Flow<()> {
        let eip = vcpu.state.eip;
        if let Some(a) = self.awaited.filter(|a| (a.eip, a.cr3, a.cpl) == (eip, vcpu.state.cr3, vcpu.state.cpl)) {
            self.awaited = None;
            self.shadow.anticipate(&vcpu.state, a.rights, a.linear, a.write);
        }
        let missed = std::mem::take(&mut self.missed);
        self.join_if_due(vcpu, mode);
        let wanted = self.unlinked.is_none() && !missed;
        if wanted && let Some(route) = self.route(vcpu, mode) {
            self.context.target = route.target;
            if self.active != Some(route.active) {
                self.stats.activations += 1;
                self.active = Some(route.active);
                self.context.window = route.window;
                self.context.quarters = route.quarters;
                self.context.branches = route.branches;
            }
            return self.go(vcpu);
        }
        let page = walk(&vcpu.mmu.ram, &vcpu.state, eip, Access::Execute, mode.user());
        let Some(t) = page.ok().filter(|t| vcpu.mmu.ram.offset_of(t.gpa).is_some()) else {
            return self.interpret(vcpu);
        };
        let active = self.activate(vcpu, mode);
        let key = Key { eip, gpa: t.gpa, mode: self.assumed(mode) };
        self.note_executed(vcpu, active, key, &t);
        let inside = if missed { None } else { self.registry.entry(&key, false) };
        let entry = inside.unwrap_or_else(|| self.head(vcpu, active, key, &t));
        if let Some(site) = self.unlinked.take() {
            self.link(site, entry, eip, &t);
        }
        let block = self.registry.block(entry.block);
        self.context.target = block.start + entry.offset as u64;
        if block.second.is_none() {
            let c = &self.context;
            let (window, quarters, branches) = (c.window, c.quarters, c.branches);
            let route = Route { active, target: c.target, window, quarters, branches };
            self.routes.add(eip, self.version(), route);
        }
        self.go(vcpu)
    }

    /// What translations for `mode` assume. Supervisors leave GS to their users, and each value of it would have them
    /// translated again.
    fn assumed(&self, mode: Mode) -> Mode {
        match mode.ring0() && !self.supervisor_gs {
            true => mode.without_gs(),
            false => mode,
        }
    }

    /// A way to the block at EIP that was taken before and is still right.
    fn route(&mut self, vcpu: &mut Vcpu, mode: Mode) -> Option<Route> {
        let (eip, cr3) = (vcpu.state.eip, vcpu.state.cr3);
        let route = self.routes.find(eip, mode, cr3, self.version())?;
        if self.fresh.contains(&route.active.code_window) {
            return Some(route);
        }
        // The guest has flushed translations since: what it changed may lead elsewhere.
        self.activate(vcpu, mode);
        self.routes.find(eip, mode, cr3, self.version())
    }

    /// Changes whenever a route may have become wrong: translations went, or windows mean something else.
    pub(super) fn version(&self) -> u64 {
        self.generation + self.table_drops + self.shadow.version()
    }

    /// Runs emitted code from `context.target`, and again while all that stopped it was a page to map.
    fn go(&mut self, vcpu: &mut Vcpu) -> Flow<()> {
        self.load(vcpu);
        let mut resumed = None;
        loop {
            let before = X87Last::of(vcpu);
            let site = execute::execute(&mut self.context, &self.trampolines);
            self.context.kicked = 0;
            if X87Last::of(vcpu).instruction != before.instruction {
                self.conceal(vcpu, before);
            }
            let eip = match site {
                SITE_FAULT => {
                    resumed = self.fault(vcpu)?;
                    match resumed {
                        Some(_) if !vcpu.lines.any() => {
                            self.check_gates(vcpu);
                            continue;
                        }
                        // What is pending comes between two iterations, and is to know that.
                        Some(Point::Interruptible) => return self.interpret(vcpu),
                        _ => return Ok(()),
                    }
                }
                SITE_KICKED => {
                    self.stats.exits_kick += 1;
                    let at = self.context.fault_rip;
                    let found = self.registry.containing(at).and_then(|id| self.registry.block(id).boundary(at));
                    let Some(origin) = found else { panic!("kicked at {at:#x}, which no block holds") };
                    self.save(vcpu);
                    self.sample_joints(&vcpu.state);
                    self.retry_mixed();
                    vcpu.state.gpr[reg::ESP] = vcpu.state.gpr[reg::ESP].wrapping_add(origin.esp_delta as u32);
                    if origin.point == Point::Interruptible {
                        // Iterations were done and are left: what arrives now pushes RF (SDM vol. 3, §17.3.1.1).
                        vcpu.state.eflags |= eflags::RF;
                    }
                    origin.eip
                }
                SITE_INDIRECT => {
                    self.stats.exits_indirect += 1;
                    self.missed = true;
                    self.note_uncharted();
                    self.save(vcpu);
                    self.context.branch
                }
                SITE_TRIPPED => {
                    self.tripped();
                    self.missed = true;
                    self.save(vcpu);
                    self.context.branch
                }
                SITE_ABANDONED if resumed == Some(Point::Interruptible) => return self.interpret(vcpu),
                SITE_ABANDONED => return Ok(()),
                index => return self.leave(vcpu, index),
            };
            vcpu.state.eip = eip;
            return Ok(());
        }
    }

    /// Emitted code left through exit site `index`.
    fn leave(&mut self, vcpu: &mut Vcpu, index: u32) -> Flow<()> {
        self.save(vcpu);
        let Some(site) = self.registry.site(index) else { panic!("left through unknown site {index}") };
        match site.leave {
            Leave::Direct { eip, .. } => {
                self.stats.exits_direct += 1;
                vcpu.state.eip = eip;
                self.unlinked = Some(index);
                Ok(())
            }
            Leave::Indirect { .. } => panic!("left through site {index}, which is no way out"),
            Leave::Pending(eip) => {
                self.stats.exits_pending += 1;
                vcpu.state.eip = eip;
                Ok(())
            }
            Leave::Interpret(eip, mnemonic) => {
                self.count_assist(mnemonic);
                vcpu.state.eip = eip;
                match mnemonic {
                    // Nothing was decoded that the block could stand for: it is looked at anew each time.
                    Mnemonic::INVALID => self.interpret(vcpu),
                    _ => self.assist(vcpu, index),
                }
            }
            Leave::Faulting(eip, _) => {
                vcpu.state.eip = eip;
                self.spare(vcpu, index, site.block)
            }
            Leave::Gate(eip, mnemonic, gate) => {
                self.count_assist(mnemonic);
                vcpu.state.eip = eip;
                self.pass(vcpu, index, gate)
            }
        }
    }

    /// Has the instruction at EIP, which exit site `index` left for, interpreted. Its bytes are as when the block was
    /// translated, or the block would be gone: it is decoded once.
    pub(super) fn assist(&mut self, vcpu: &mut Vcpu, index: u32) -> Flow<()> {
        self.unlinked = None;
        self.stats.interpreted += 1;
        if let Some(prepared) = self.registry.prepared(index) {
            return self.interp.step_prepared(vcpu, prepared);
        }
        if let Some(prepared) = self.prepare(vcpu, index) {
            self.registry.keep_prepared(index, prepared);
        }
        self.interp.step(vcpu)
    }

    /// Decodes the instruction at EIP from what the block of exit site `index` was translated from: in the guest's tables
    /// another page may have taken its place, with INVLPG still to come. None if the next page holds a part of it.
    fn prepare(&self, vcpu: &Vcpu, index: u32) -> Option<Prepared> {
        let key = self.registry.block(self.registry.site(index)?.block).key;
        let offset = vcpu.state.eip & 0xfff;
        let mut bytes = [0; 15];
        let here = bytes.len().min(0x1000 - offset as usize);
        let read = vcpu.mmu.ram.read(key.gpa & !0xfff | offset as u64, &mut bytes[..here]);
        let one_page = (vcpu.state.eip ^ key.eip) & !0xfff == 0;
        (read && one_page).then(|| self.interp.prepare(vcpu, &bytes[..here]))?
    }

    /// Sets up the context's windows for `mode`.
    pub(super) fn activate(&mut self, vcpu: &mut Vcpu, mode: Mode) -> Active {
        let cr3 = vcpu.state.cr3;
        let version = self.shadow.version();
        if let Some(active) = self.active.filter(|a| a.mode == mode && a.cr3 == cr3 && a.version == version) {
            return active;
        }
        self.stats.activations += 1;
        let state = &vcpu.state;
        let mut user_window = None;
        if mode.paging() && !mode.user() && !self.shadow.kernel_is_local() {
            // Bringing it up to date may be what tells that it is not worth having.
            self.shadow.window(state, Rights::Kernel);
        }
        let code_window = if !mode.paging() {
            let (index, base) = self.shadow.window(state, Rights::Physical);
            self.context.quarters = [base; 4];
            self.context.window = base;
            index
        } else if mode.user() {
            let (index, base) = self.shadow.window(state, Rights::User(cr3));
            self.context.quarters = [base; 4];
            self.context.window = base;
            index
        } else if self.shadow.kernel_is_local() {
            let (index, base) = self.shadow.window(state, Rights::Low(cr3));
            self.context.quarters = [base; 4];
            self.context.window = base;
            let user = Rights::User(cr3);
            user_window = self.shadow.exists(user).then(|| self.shadow.window(state, user).0);
            index
        } else {
            let (kernel, high) = self.shadow.window(state, Rights::Kernel);
            let low_rights = Rights::Low(cr3);
            let own = mode.low_kernel() || self.shadow.exists(low_rights);
            let (index, low) = self.shadow.window(state, if own { low_rights } else { Rights::User(cr3) });
            self.context.quarters = [low, low, low, high];
            self.context.window = high;
            user_window = match own {
                true => self.shadow.exists(Rights::User(cr3)).then(|| self.shadow.window(state, Rights::User(cr3)).0),
                false => Some(index),
            };
            if mode.low_kernel() { index } else { kernel }
        };
        self.take_code_changes(code_window, mode.paging() && !mode.user());
        if let Some(window) = user_window {
            // Both ways between rings are as the guest's page tables have it now.
            self.take_code_changes(window, false);
            self.settled = true;
        }
        if self.tables.is_full(&(code_window, mode)) {
            self.drop_tables();
        }
        self.context.branches = self.tables.address((code_window, mode));
        let active = Active { mode, cr3, code_window, version: self.shadow.version() };
        self.active = Some(active);
        active
    }

    /// Window `index` is about to be executed from: drops its branch tables if an executed page of it is another one now.
    fn take_code_changes(&mut self, index: usize, supervisor: bool) {
        if self.shadow.take_code_changed(index) {
            if !supervisor {
                self.part_pages();
            }
            self.tables.empty_window(index);
            self.routes.forget_window(index);
            if supervisor {
                self.registry.unlink_pages(&mut self.cache);
            }
        }
        if !self.fresh.contains(&index) {
            self.fresh.push(index);
        }
    }

    /// Copies state into the context.
    fn load(&mut self, vcpu: &Vcpu) {
        let (c, s) = (&mut self.context, &vcpu.state);
        c.gpr = s.gpr;
        c.flags = (s.eflags & HOST_FLAGS | eflags::FIXED) as u64;
        c.interrupts = s.eflags & eflags::IF;
        c.system_flags = s.eflags & !(HOST_FLAGS | eflags::IF);
        // An NMI handler's IRET lets the next NMI in, which a gate does not know.
        c.pending = (vcpu.lines.any() || s.nmi_blocked) as u64;
        c.awaited = self.awaited.map_or(0, |awaited| awaited.eip);
        c.tsc_offset = s.tsc_offset;
        c.tsc_aux = s.msr.tsc_aux;
        c.seg = s.seg;
        c.cpl = s.cpl as u32;
        c.control = [s.cr0, 0, s.cr2, s.cr3, s.cr4];
        c.moved = 0;
        self.check_gates(vcpu);
    }

    /// Copies the context back into state. ESP is still without the delta of where emitted code stood.
    fn save(&mut self, vcpu: &mut Vcpu) {
        let c = &mut self.context;
        vcpu.state.gpr = c.gpr;
        vcpu.state.seg = c.seg;
        vcpu.state.cpl = c.cpl as u8;
        if std::mem::take(&mut c.moved) != 0 {
            self.active = None;
        }
        vcpu.state.eflags = c.system_flags | c.interrupts | (c.flags as u32 & HOST_FLAGS);
    }
}
