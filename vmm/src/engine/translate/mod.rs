//! The translating engine: guest instructions become host instructions that do the same, in a cache of host code.
//!
//! The stages are files, in this order: `decode` → `classify` → `translate` → `emit` → `link` → `execute` → `fault`. This
//! file is the loop around them: find or make the block for the current EIP, run emitted code until it leaves, deal with
//! why it left. What is not translated, one instruction at a time, is done by the interpreter.

mod block;
mod cache;
mod chart;
mod check;
mod churn;
mod classify;
mod context;
mod decode;
mod dispatch;
mod emit;
mod execute;
mod fault;
mod frames;
mod gate;
mod joints;
mod link;
mod mode;
mod origins;
mod returns;
mod segment;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod trampoline;
// The stage has its name from the design.
#[allow(clippy::module_inception)]
mod translate;
mod tripwire;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use iced_x86::Mnemonic;

use self::block::Point;
use self::cache::CodeCache;
use self::chart::Chart;
use self::decode::Trace;
use self::emit::Emitter;
use self::joints::Joints;
use self::link::Registry;
use self::returns::ReturnStack;
use self::stats::Stats;
use self::tables::Tables;
use self::trampoline::Trampolines;
use self::translate::Translation;
use self::tripwire::Tripwire;
use super::interp::Interpreter;
use super::{Engine, Exit};
use crate::cpu::{Flow, Stop, Vcpu};
use crate::mmu::{Flush, GuestRam, Shadow, ShadowError};

/// Size of the code cache in bytes. A block's records cost twice its code, so that this keeps the vmm of a guest which runs one
/// program after the other, each somewhere else, under 80 MiB.
const CACHE_SIZE: usize = 14 << 20;
/// Addresses remembered at most as needing special code; beyond, they are learnt again.
const MAX_LEARNT: usize = 1 << 16;

/// Guest addresses of instructions.
type Places = HashSet<u32, RandomState>;
/// Physical addresses of instructions: what is learnt of user code, wherever and by whomever it is mapped.
type PhysicalPlaces = HashSet<u64, RandomState>;

/// Why the translator cannot run on this host.
#[derive(Debug, thiserror::Error)]
pub enum TranslatorError {
    /// A processor or kernel feature is missing.
    #[error("the translator needs {0}, which this host does not offer: use --engine interp")]
    Missing(&'static str),
    /// The code cache could not be made.
    #[error("making the code cache")]
    Cache(#[from] cache::CacheError),
    /// The return stack could not be made.
    #[error("mapping the return stack")]
    Returns(#[source] nix::Error),
    /// The handlers could not be installed.
    #[error("installing the handlers of faults")]
    Handlers(#[source] nix::Error),
    /// The tripwire could not be made.
    #[error("mapping the tripwire")]
    Tripwire(#[source] nix::Error),
    /// The chart could not be made.
    #[error("mapping the chart of indirect branches")]
    Chart(#[source] nix::Error),
    /// The windows could not be made.
    #[error("making shadow windows")]
    Shadow(#[from] ShadowError),
    /// The common code could not be assembled.
    #[error("assembling the code cache's common code")]
    Assemble(#[from] iced_x86::IcedError),
}

/// The translating engine of one processor.
pub struct Translator {
    context: Chart,
    cache: CodeCache,
    trampolines: Box<Trampolines>,
    /// The block being translated, stage by stage; kept for their memory.
    trace: Trace,
    translation: Translation,
    emitter: Emitter,
    registry: Box<Registry>,
    joints: Joints,
    shadow: Shadow,
    returns: ReturnStack,
    tripwire: Tripwire,
    interp: Interpreter,
    tables: Tables,
    /// Supervisor instructions that touch the lower part of the address space.
    dynamic: Places,
    /// Instructions that reach devices.
    interpreted: Places,
    device_faults: HashMap<u32, u32, RandomState>,
    /// Blocks and calls that are often come to for another EIP.
    varied: PhysicalPlaces,
    trips: HashMap<u64, u32, RandomState>,
    /// Instructions whose operands' addresses come round the address space.
    wrapping: PhysicalPlaces,
    /// Instructions that keep faulting.
    churn: churn::Churn,
    /// What the context's windows were last set up for.
    active: Option<dispatch::Active>,
    /// Ways back into emitted code that were taken lately.
    routes: dispatch::Routes,
    /// Counts what makes routes wrong.
    generation: u64,
    /// Counts droppings of branch tables, whose addresses are in routes and gates.
    table_drops: u64,
    /// Windows that were brought up to date since the guest last flushed translations, so that routes lead into them.
    fresh: Vec<usize>,
    /// Both the kernel window and the current user window are fresh.
    settled: bool,
    /// What the context's gates depend on.
    gates_hold: gate::Environment,
    /// Gates between rings of other address spaces.
    gates_kept: gate::crossing::Kept,
    /// Where what they remember was found.
    looked_up: gate::LookedUp,
    /// A guest page fault that emitted code met last.
    awaited: Option<dispatch::Awaited>,
    /// The table did not lead to the next block: it is to be entered there.
    missed: bool,
    /// Empty; kept for its memory.
    flushes: Vec<Flush>,
    /// An exit site that may be linked to the next block.
    unlinked: Option<u32>,
    /// Ring 0 reaches memory by way of GS. While it does not, its translations do not depend on what GS is.
    supervisor_gs: bool,
    /// Entries of non-global pages are in supervisor tables: a CR3 write empties them.
    local_entries: bool,
    /// Check every block after translation.
    verify: bool,
    stats: Stats,
    /// Instructions that emitted code left to have interpreted, by kind.
    assists: Vec<u64>,
}

impl Translator {
    /// A translator for a processor over `ram`.
    pub fn new(ram: &Arc<GuestRam>) -> Result<Self, TranslatorError> {
        Self::with_cache(ram, CACHE_SIZE)
    }

    /// As [`Self::new`], with a code cache of `size` bytes.
    fn with_cache(ram: &Arc<GuestRam>, size: usize) -> Result<Self, TranslatorError> {
        for (present, name) in [
            (std::is_x86_feature_detected!("bmi2"), "BMI2 (Intel Haswell, AMD Zen or later)"),
            (std::is_x86_feature_detected!("xsave"), "XSAVE"),
            (fsgsbase(), "FSGSBASE enabled by the kernel (Linux 5.9 or later)"),
        ] {
            if !present {
                return Err(TranslatorError::Missing(name));
            }
        }
        // Now, since a confined process may not change handlers.
        fault::install().map_err(TranslatorError::Handlers)?;
        let mut cache = CodeCache::new(size)?;
        let (code, trampolines) = trampoline::assemble(cache.next())?;
        cache.append(&code);
        cache.keep();
        let mut gates_kept = gate::crossing::Kept::default();
        let mut context = Chart::new().map_err(TranslatorError::Chart)?;
        context.crossings = gates_kept.address(None);
        let returns = ReturnStack::new(trampolines.underflow).map_err(TranslatorError::Returns)?;
        // vm.max_map_count defaults to 65,530; leave room for everything else in the process.
        let shadow = Shadow::new(ram.clone(), 48_000)?;
        Ok(Self {
            context,
            trace: Trace::default(),
            translation: Translation::default(),
            emitter: Emitter::new(cache.next()),
            registry: Box::new(Registry::new(&cache)),
            joints: Joints::default(),
            cache,
            trampolines: Box::new(trampolines),
            shadow,
            returns,
            tripwire: Tripwire::new().map_err(TranslatorError::Tripwire)?,
            interp: Interpreter::new(),
            tables: Tables::new(trampolines.miss),
            dynamic: Places::default(),
            interpreted: Places::default(),
            device_faults: HashMap::default(),
            varied: PhysicalPlaces::default(),
            trips: HashMap::default(),
            wrapping: PhysicalPlaces::default(),
            churn: churn::Churn::default(),
            active: None,
            routes: dispatch::Routes::new(),
            generation: 0,
            table_drops: 0,
            fresh: Vec::new(),
            settled: false,
            gates_hold: gate::Environment::default(),
            gates_kept,
            looked_up: gate::LookedUp::default(),
            awaited: None,
            missed: false,
            flushes: Vec::new(),
            unlinked: None,
            supervisor_gs: false,
            local_entries: false,
            verify: cfg!(any(test, debug_assertions)),
            stats: Stats::default(),
            assists: vec![0; Mnemonic::values().len()],
        })
    }

    /// Executes one instruction in the interpreter, delivering what it raises.
    fn interpret(&mut self, vcpu: &mut Vcpu) -> Flow<()> {
        self.stats.interpreted += 1;
        self.unlinked = None;
        self.interp.step(vcpu)
    }

    /// Acts on what the guest, through Rust code, changed behind the translations.
    fn notices(&mut self, vcpu: &mut Vcpu) {
        if vcpu.mmu.has_code_writes() {
            for frame in vcpu.mmu.take_code_writes() {
                self.refresh_frame(vcpu, frame);
            }
        }
        if !vcpu.mmu.has_flushes() {
            return;
        }
        let mut flushes = std::mem::take(&mut self.flushes);
        vcpu.mmu.swap_flushes(&mut flushes);
        for flush in flushes.drain(..) {
            self.flush_gates(flush);
            self.flush_churn(vcpu.state.cr3, flush);
            // One page is brought up to date at once, and only code on it would make the ways into windows wrong.
            if !matches!(flush, Flush::Page(linear) if !self.shadow.synchronise_page(&vcpu.state, linear)) {
                self.active = None;
                self.fresh.clear();
                self.settled = false;
            }
            match flush {
                Flush::Page(linear) if self.shadow.executed_by_supervisors(linear) => {
                    self.registry.unlink_pages(&mut self.cache);
                }
                Flush::Page(_) => {}
                Flush::NonGlobal => {
                    self.shadow.flush_local();
                    if std::mem::take(&mut self.local_entries) {
                        self.generation += 1;
                        self.tables.empty_supervisor();
                    }
                }
                Flush::All => {
                    self.shadow.forget_all();
                    self.registry.unlink_pages(&mut self.cache);
                    self.drop_tables();
                }
            }
        }
        self.flushes = flushes;
    }

    /// The frame at `gpa` was stored to: forgets what was translated from bytes that changed.
    fn refresh_frame(&mut self, vcpu: &mut Vcpu, gpa: u64) {
        let (dead, watch) = self.registry.refresh_frame(&mut self.cache, &vcpu.mmu.ram, gpa);
        self.stats.invalidations += dead as u64;
        self.purge();
        if !watch {
            vcpu.mmu.ram.clear_code(gpa);
        }
    }

    /// An interrupt came, as one does every few milliseconds: watches mixed frames again whose time has come.
    fn retry_mixed(&mut self) {
        let dead = self.registry.retry_mixed(&mut self.cache);
        if dead != 0 {
            self.stats.invalidations += dead as u64;
            self.purge();
        }
    }

    /// Takes forgotten blocks out of the branch tables.
    fn purge(&mut self) {
        for (eip, start) in self.registry.take_dead() {
            self.generation += 1;
            self.tables.remove(eip, start);
            self.context.remove(eip);
            self.unlinked = None;
        }
    }

    /// Makes room for translations by forgetting the oldest.
    fn evict(&mut self, vcpu: &mut Vcpu) {
        self.part_pages();
        let segment = self.cache.advance();
        let anything = !self.registry.is_empty(segment);
        self.stats.evictions += anything as u64;
        for frame in self.registry.evict(&mut self.cache, segment) {
            vcpu.mmu.ram.clear_code(frame);
        }
        self.unlinked = None;
        if anything {
            // Too many to take out of each table one by one.
            self.registry.take_dead();
            let code = self.cache.segment_addresses(segment);
            self.tables.remove_all(&code);
            self.generation += 1;
        }
    }

    /// Drops every branch table. Nothing may go on by one until the next `activate`.
    fn drop_tables(&mut self) {
        self.part_pages();
        self.tables.clear();
        self.table_drops += 1;
    }

    /// What kind of place `address` is, if it is one where emitted code may be left. Called from a signal handler.
    fn is_boundary(owner: *const (), address: u64) -> Option<Point> {
        execute::with_registry(owner, |registry| {
            let block = registry.block(registry.containing(address)?);
            block.boundary(address).map(|origin| origin.point)
        })
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "translate"
    }

    fn run(&mut self, vcpu: &mut Vcpu) -> Exit {
        let attachment = fault::Attachment {
            context: &mut *self.context,
            trampolines: &*self.trampolines,
            cache: (self.cache.start(), self.cache.start() + self.cache.size() as u64),
            boundary: Self::is_boundary,
            owner: std::ptr::from_ref::<Registry>(&self.registry).cast(),
        };
        if let Err(e) = fault::attach(attachment) {
            panic!("installing fault handlers: {e}");
        }
        self.context.return_stack = self.returns.top();
        self.context.tripwire = self.tripwire.address();
        self.context.xsave = vcpu.state.xsave.0.as_ptr() as u64;
        let exit = loop {
            match self.turn(vcpu) {
                Ok(None) => {}
                Ok(Some(exit)) => break exit,
                Err(Stop::TripleFault) => break Exit::Shutdown,
                Err(Stop::Unsupported(what)) => break Exit::Unsupported(what),
                // `interpret` delivers exceptions; one that is left over could not be.
                Err(Stop::Exception(_)) => break Exit::Shutdown,
            }
        };
        fault::detach();
        exit
    }

    fn invalidate(&mut self, vcpu: &mut Vcpu, start: u64, end: u64) {
        for frame in self.registry.watched_in(start, end) {
            self.refresh_frame(vcpu, frame);
        }
    }

    fn stats(&self) -> Vec<(String, u64)> {
        self.counters()
    }
}

/// True if the kernel lets user code use WRGSBASE (AT_HWCAP2 bit 1).
#[allow(unsafe_code)]
fn fsgsbase() -> bool {
    // SAFETY: getauxval takes a plain number and has no preconditions.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}
