//! One turn of the engine's loop: events, mode, block, run, and what to do about the way it ended.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::block::{Block, Key, Leave, Point, Site};
use super::cache::SEGMENTS;
use super::context::{SITE_ABANDONED, SITE_FAULT, SITE_INDIRECT, SITE_KICKED, SITE_TRIPPED};
use super::fault::TRAP_PAGE_FAULT;
use super::link::{Entry, Page};
use super::mode::{HOST_FLAGS, Mode, SegmentClass};
use super::{MAX_LEARNT, Translator, decode, execute, translate};
use crate::cpu::{Flow, InterruptShadow, Vcpu, eflags, reg};
use crate::engine::Exit;
use crate::mmu::{Access, GuestRam, KERNEL_SPLIT, Resolution, Rights, Translation, peek, walk};

/// Faults of one instruction into devices after which it is interpreted without trying.
const DEVICE_FAULTS: u32 = 4;
/// Times that a block or the code after a call is come to for another EIP before it expects that.
const TRIPS: u32 = 6;
/// Host page-fault error bit: the access was a write.
const ERROR_WRITE: u64 = 2;

/// What the context's windows are set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Active {
    mode: Mode,
    cr3: u32,
    /// Index of the window that executed pages are noted in.
    code_window: usize,
    /// [`Shadow::version`](crate::mmu::Shadow::version) then.
    version: u64,
}

/// A guest page fault that is being handled, and what was to be accessed.
#[derive(Clone, Copy)]
pub struct Awaited {
    eip: u32,
    cr3: u32,
    cpl: u8,
    rights: Rights,
    linear: u32,
    write: bool,
}

/// How to get to a block again without asking anyone.
#[derive(Clone, Copy)]
struct Route {
    active: Active,
    target: u64,
    window: u64,
    quarters: [u64; 4],
    branches: u64,
}

/// Entries of [`Routes`].
const ROUTES: usize = 2048;

/// Where execution recently went on after an exit, by guest EIP.
pub struct Routes(Box<[Option<(u32, u64, Route)>]>);

impl Routes {
    /// No routes.
    pub fn new() -> Self {
        Self(vec![None; ROUTES].into())
    }

    fn index(eip: u32, mode: Mode, cr3: u32) -> usize {
        (eip ^ eip >> 11 ^ cr3 >> 12 ^ (mode.user() as u32) << 5) as usize % ROUTES
    }

    fn find(&self, eip: u32, mode: Mode, cr3: u32, version: u64) -> Option<Route> {
        let (at, made, route) = self.0[Self::index(eip, mode, cr3)]?;
        let same = at == eip && made == version && route.active.mode == mode && route.active.cr3 == cr3;
        same.then_some(route)
    }

    fn add(&mut self, eip: u32, version: u64, route: Route) {
        self.0[Self::index(eip, route.active.mode, route.active.cr3)] = Some((eip, version, route));
    }
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
        let key = Key { eip, gpa: t.gpa, mode };
        self.note_executed(vcpu, active, key, &t);
        let inside = if missed { None } else { self.registry.entry(&key, false) };
        let entry = inside.unwrap_or_else(|| self.head(vcpu, active, key, &t));
        if let Some(site) = self.unlinked.take() {
            self.link(site, entry, &t);
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

    /// The start of the block for `key`, translated if need be; the table leads there from now on.
    fn head(&mut self, vcpu: &mut Vcpu, active: Active, key: Key, t: &Translation) -> Entry {
        let id = match self.registry.find(&key) {
            Some(id) if self.second_page_holds(vcpu, active, id) => id,
            _ => self.translate(vcpu, key, t),
        };
        let block = self.registry.block(id);
        let main = block.start + block.main as u64;
        self.tables.insert((active.code_window, key.mode), key.eip, block.start, main);
        Entry { block: id, offset: block.main }
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

    /// True unless block `id` runs over into a page that is no longer where it was.
    fn second_page_holds(&mut self, vcpu: &Vcpu, active: Active, id: u32) -> bool {
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

    /// The code at `fault_rip` was come to for another EIP than its own. Where that happens often, it is translated so
    /// that it costs less.
    fn tripped(&mut self) {
        self.stats.exits_tripped += 1;
        let at = self.context.fault_rip;
        let Some(id) = self.registry.containing(at) else { panic!("tripped at {at:#x}, which no block holds") };
        let block = self.registry.block(id);
        let eip = block.origin(at).map_or(block.key.eip, |o| o.eip);
        if self.trips.len() + self.varied.len() > MAX_LEARNT {
            self.trips.clear();
            self.varied.clear();
        }
        let count = self.trips.entry(eip).or_default();
        *count += 1;
        if *count >= TRIPS {
            self.trips.remove(&eip);
            self.varied.insert(eip);
            self.stats.learnt_varied += 1;
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        }
    }

    /// The x87 instruction pointer was saved as the host's: makes it the guest's. FCS and FDS read as zero, as on
    /// processors that deprecate them. Where the host has saved an opcode or an address since `before`, they are of the
    /// emitted instruction, with registers renamed and segment bases added: the guest's code tells the rest.
    fn conceal(&mut self, vcpu: &mut Vcpu, before: X87Last) {
        let last = X87Last::of(vcpu);
        let start = self.cache.start();
        let at = start.wrapping_add((last.instruction as u32).wrapping_sub(start as u32) as u64);
        let block = self.registry.containing(at).map(|id| self.registry.block(id));
        let eip = block.and_then(|b| b.origin(at)).map_or(0, |o| o.eip);
        let mut guest = X87Last { instruction: eip as u64, ..last };
        // FOP is saved only where an exception is not masked; else it stays, or is zero after FNINIT.
        let emitted = block.map(|b| (b.start + b.length as u64).saturating_sub(at).min(15) as usize);
        let emitted = emitted.and_then(|length| x87_opcode(&self.cache.read(at, length)));
        let opcode = (last.opcode != before.opcode || last.pending) && Some(last.opcode) == emitted;
        let address = last.address != before.address && last.address != 0;
        if (opcode || address)
            && let Some((insn, code)) = block.and_then(|b| guest_instruction(&vcpu.mmu.ram, &b, eip))
        {
            guest.opcode = if opcode { code } else { last.opcode };
            let mode = block.map(|b| b.key.mode.segment(insn.memory_segment().number() % 6));
            let based = address && mode == Some(SegmentClass::Based);
            guest.address = last.address.wrapping_sub(if based { self.context.x87_base } else { 0 });
        }
        guest.put(vcpu);
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
            Leave::Pending(eip) => {
                self.stats.exits_pending += 1;
                vcpu.state.eip = eip;
                Ok(())
            }
            Leave::Interpret(eip, mnemonic) => {
                self.count_assist(mnemonic);
                vcpu.state.eip = eip;
                self.assist(vcpu, index)
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
        let mut bytes = [0; 15];
        let linear = vcpu.state.eip;
        // No further than the page: only an instruction that goes on in the next one may mark that accessed.
        let here = bytes.len().min(0x1000 - (linear & 0xfff) as usize);
        if let Ok(length) = vcpu.fetch(linear, &mut bytes[..here])
            && let Some(prepared) = self.interp.prepare(vcpu, &bytes[..length])
        {
            self.registry.keep_prepared(index, prepared);
        }
        self.interp.step(vcpu)
    }

    /// A host fault left emitted code. Some if `context` is set up to try again: what kind of place it happened at.
    fn fault(&mut self, vcpu: &mut Vcpu) -> Flow<Option<Point>> {
        self.stats.exits_fault += 1;
        let at = self.context.fault_rip;
        let id = self.registry.containing(at);
        let origin = id.and_then(|id| self.registry.block(id).origin(at));
        let (Some(id), Some(origin)) = (id, origin) else {
            panic!(
                "host trap {} at {at:#x}, address {:#x}, belongs to no guest instruction",
                self.context.fault_trap, self.context.fault_address
            );
        };
        self.save(vcpu);
        vcpu.state.eip = origin.eip;
        vcpu.state.gpr[reg::ESP] = vcpu.state.gpr[reg::ESP].wrapping_add(origin.esp_delta as u32);
        let restart = self.registry.block(id).restart(at);
        let shadowed = restart.is_some_and(|r| r.point == Point::Shadowed);
        if shadowed {
            // Whatever is pending, or becomes so before this instruction runs again, waits for it.
            vcpu.state.shadow = InterruptShadow::Sti;
        }
        if self.context.fault_trap == TRAP_PAGE_FAULT && self.returns.is_guard(self.context.fault_address) {
            return Ok(None);
        }
        let located = self.shadow.locate(self.context.fault_address);
        let Some((window, linear)) = located.filter(|_| self.context.fault_trap == TRAP_PAGE_FAULT) else {
            return self.interpret(vcpu).map(|_| None);
        };
        let write = self.context.fault_error & ERROR_WRITE != 0;
        let evicted = self.shadow.stats.windows_evicted;
        let resolution = self.shadow.resolve(&vcpu.state, window, linear, write);
        if self.shadow.stats.windows_evicted != evicted {
            // One of the windows in use may be gone.
            self.active = None;
        }
        match resolution {
            Resolution::Mapped if self.active.is_none() || shadowed => Ok(None),
            Resolution::Mapped => {
                let block = self.registry.block(id);
                let Some(restart) = restart else { return Ok(None) };
                self.context.target = block.start + restart.offset as u64;
                if block.fp {
                    // Leaving saved the state that the rest of the block takes to be loaded.
                    self.context.resume = std::mem::replace(&mut self.context.target, self.trampolines.resume_fp);
                }
                self.context.gpr[reg::ESP] = vcpu.state.gpr[reg::ESP].wrapping_sub(restart.esp_delta as u32);
                Ok(Some(origin.point))
            }
            Resolution::CodeWrite => {
                self.stats.code_stores += 1;
                self.interpret(vcpu).map(|_| None)
            }
            Resolution::Interpret => {
                self.learn(vcpu, id, origin.eip, window, linear);
                self.interpret(vcpu).map(|_| None)
            }
        }
    }

    /// Remembers what the instruction at `eip` does, if that calls for other code.
    fn learn(&mut self, vcpu: &mut Vcpu, id: u32, eip: u32, window: usize, linear: u32) {
        let user = vcpu.state.cpl == 3;
        // Only a look: the access may be about to fault, and then accessed bits stay as they are.
        let Some(t) = peek(&vcpu.mmu.ram, &vcpu.state, linear, user) else { return };
        if self.dynamic.len() + self.device_faults.len() > MAX_LEARNT {
            self.dynamic.clear();
            self.device_faults.clear();
            self.interpreted.clear();
        }
        let rights = self.shadow.rights(window);
        if vcpu.mmu.ram.offset_of(t.gpa).is_none() {
            let count = self.device_faults.entry(eip).or_default();
            *count += 1;
            if *count >= DEVICE_FAULTS {
                // Another block may hold the instruction too: each is made anew when it comes here.
                self.stats.learnt_interpreted += self.interpreted.insert(eip) as u64;
                self.registry.invalidate(&mut self.cache, id);
                self.purge();
            }
        } else if rights == Some(Rights::Kernel) && linear < KERNEL_SPLIT {
            self.stats.learnt_dynamic += self.dynamic.insert(eip) as u64;
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        } else if !user && matches!(rights, Some(Rights::User(_))) && !t.user {
            // A supervisor page in the lower part: this address space needs a window of its own for the supervisor.
            self.shadow.window(&vcpu.state, Rights::Low(vcpu.state.cr3));
            self.active = None;
        }
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
            self.tables.empty_window(index);
            self.table_drops += 1;
            if supervisor {
                self.registry.unlink_pages(&mut self.cache);
            }
        }
        if !self.fresh.contains(&index) {
            self.fresh.push(index);
        }
    }

    /// Notes that the page of `key`, which is mapped as `t`, is executed.
    fn note_executed(&mut self, vcpu: &Vcpu, active: Active, key: Key, t: &Translation) {
        self.shadow.note_executed(&vcpu.state, active.code_window, key.eip, t.gpa, t.global);
        self.local_entries |= key.mode.paging() && !key.mode.user() && !t.global;
    }

    /// Links exit site `site` to `entry`, in a page mapped as `t`, if nothing can come between them unnoticed.
    fn link(&mut self, site: u32, entry: Entry, t: &Translation) {
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
    fn link_inside(&mut self, id: u32) {
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
    fn translate(&mut self, vcpu: &mut Vcpu, key: Key, t: &Translation) -> u32 {
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
    fn decode(&mut self, vcpu: &Vcpu, key: Key) {
        let registry = &self.registry;
        let Some(frame) = registry.frame(key.gpa & !0xfff) else { return };
        let known = |eip: u32| {
            let key = Key { eip, gpa: key.gpa & !0xfff | (eip & 0xfff) as u64, ..key };
            registry.entry(&key, false).is_some()
        };
        decode::decode(vcpu, key.eip, &frame.bytes, known, &mut self.trace);
    }

    /// Has stores to the frame at `gpa`, which code is translated from, reported by Rust code and by windows.
    fn watch(&mut self, vcpu: &mut Vcpu, gpa: u64) {
        if self.registry.frame(gpa).is_none() {
            vcpu.mmu.watch_code(gpa);
            self.shadow.protect_frame(gpa);
        }
    }

    /// Copies state into the context.
    fn load(&mut self, vcpu: &Vcpu) {
        let (c, s) = (&mut self.context, &vcpu.state);
        c.gpr = s.gpr;
        c.flags = (s.eflags & HOST_FLAGS | eflags::FIXED) as u64;
        c.interrupts = s.eflags & eflags::IF;
        c.system_flags = s.eflags & !(HOST_FLAGS | eflags::IF);
        c.pending = vcpu.lines.any() as u64;
        c.tsc_offset = s.tsc_offset;
        c.tsc_aux = s.msr.tsc_aux;
        c.seg = s.seg;
        c.cpl = s.cpl as u32;
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

/// What an XSAVE area says of the last x87 instruction (SDM vol. 1, table 10-2).
#[derive(Clone, Copy)]
struct X87Last {
    /// FOP: the low three bits of the first opcode byte, then the second.
    opcode: u16,
    /// FIP and FCS.
    instruction: u64,
    /// FDP.
    address: u32,
    /// FSW.ES: an exception is not masked.
    pending: bool,
}

impl X87Last {
    fn of(vcpu: &Vcpu) -> Self {
        let area = &vcpu.state.xsave.0;
        let (mut instruction, mut address) = ([0; 8], [0; 4]);
        instruction.copy_from_slice(&area[8..16]);
        address.copy_from_slice(&area[16..20]);
        Self {
            opcode: u16::from_le_bytes([area[6], area[7]]),
            instruction: u64::from_le_bytes(instruction),
            address: u32::from_le_bytes(address),
            pending: area[2] & 0x80 != 0,
        }
    }

    fn put(self, vcpu: &mut Vcpu) {
        let area = &mut vcpu.state.xsave.0;
        area[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        area[8..16].copy_from_slice(&self.instruction.to_le_bytes());
        area[16..20].copy_from_slice(&self.address.to_le_bytes());
        area[20..24].fill(0);
    }
}

/// The x87 instruction at `eip`, which `block` translates, and its FOP.
fn guest_instruction(ram: &GuestRam, block: &Block<'_>, eip: u32) -> Option<(Instruction, u16)> {
    let mut bytes = [0; 15];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let at = eip.wrapping_add(i as u32);
        // Only the only instruction of a block can run over into the second page.
        let page = if (at ^ block.key.eip) & !0xfff == 0 { Some(block.key.gpa & !0xfff) } else { block.second };
        let mut one = [0];
        if page.is_some_and(|p| ram.read(p | (at & 0xfff) as u64, &mut one)) {
            *byte = one[0];
        }
    }
    let insn = Decoder::with_ip(32, &bytes, eip as u64, DecoderOptions::NONE).decode();
    Some((insn, x87_opcode(&bytes)?))
}

/// FOP of the x87 instruction that `bytes` start with: all that comes before D8 to DF are prefixes.
fn x87_opcode(bytes: &[u8]) -> Option<u16> {
    let first = bytes.iter().position(|b| b & 0xf8 == 0xd8)?;
    Some((bytes[first] as u16 & 7) << 8 | *bytes.get(first + 1)? as u16)
}
