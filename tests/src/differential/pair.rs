//! The interpreter and the translator on equal boards: each case runs on both, and everything a guest could see must
//! agree afterwards, page tables included.
//!
//! One translator serves many cases. Code is rewritten in place, sometimes as a device would and sometimes as a store
//! of the processor's own; page rights change between cases, with the flush that the manual asks for.

use std::sync::atomic::Ordering;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmm::cpu::{Stop, eflags, reg, seg, vector};
use vmm::engine::interp::Interpreter;
use vmm::engine::translate::Translator;
use vmm::engine::{Engine, Exit};
use vmm::mmu::{Flush, Privilege};

use super::board::{Board, Place, Setting};
use super::compare;
use super::watchdog::Watchdog;
use crate::generate::Generated;
use crate::oracle::Outcome;
use crate::oracle::layout::PAGE;

/// Instructions after which a case has not ended and is not compared.
const MAX_STEPS: usize = 600;
/// The same for cases under interrupts, which are loops.
const MAX_STEPS_INTERRUPTED: usize = 200_000;
/// What surrounds code.
pub(super) const INT3: u8 = 0xcc;

/// How a case ended: how the engine was left, and what is comparable of the state.
struct End {
    exit: Exit,
    outcome: Outcome,
}

/// What came of a case.
pub enum Verdict {
    /// No difference; true if a fault ended it.
    Same(bool),
    /// It runs for ever, or into what the interpreter does not support.
    Skipped,
    /// What differs.
    Different(Vec<String>),
}

/// Two boards with an engine each.
pub struct Pair {
    /// What the boards are like.
    pub setting: Setting,
    pub(super) rng: SmallRng,
    pub(super) interpreter: Interpreter,
    pub(super) translator: Translator,
    /// The interpreter's board, the translator's.
    pub(super) boards: [Board; 2],
    /// What RAM should hold when a case starts: descriptor tables and page tables, code pages.
    pub(super) system: [Vec<u8>; 2],
    pub(super) code: [Vec<u8>; 2],
    /// The bytes of the code pages that a case took.
    pub(super) used: std::ops::Range<usize>,
    buffer: Vec<u8>,
    /// Addresses of the instructions that the interpreter executed.
    trail: Vec<u32>,
    watchdog: Watchdog,
}

impl Pair {
    /// A pair in a random setting. With `storm`, the translator's board raises interrupts all the time, at ring 3 only;
    /// they return, and must leave no trace.
    pub fn new(seed: u64, place: Place, storm: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let setting = Setting { returns: storm, ..Setting::random(&mut rng, place) };
        let boards = [Board::new(&setting), Board::new(&setting)];
        let mut translator = Translator::new(&boards[1].vcpu.mmu.ram).expect("a translator");
        translator.verify(true);
        let watchdog = Watchdog::new(boards[1].wires.clone(), storm);
        let mut pair = Self {
            system: setting.images(),
            setting,
            rng,
            interpreter: Interpreter::new(),
            translator,
            boards,
            code: [vec![INT3; PAGE as usize], vec![INT3; PAGE as usize]],
            used: 0..0,
            buffer: Vec::new(),
            trail: Vec::new(),
            watchdog,
        };
        pair.renew_tables();
        pair
    }

    /// Counters of the translator.
    pub fn stats(&self) -> Vec<(String, u64)> {
        let mut all = self.translator.stats();
        all.push(("interrupts raised".into(), self.watchdog.interrupts.load(Ordering::Relaxed)));
        all
    }

    /// Writes page tables, for new rights, and has both processors forget what they remember.
    pub(super) fn renew_tables(&mut self) {
        self.system = self.setting.images();
        let state = self.setting.state();
        for board in &mut self.boards {
            board.put(self.setting.system()[1].0, &self.system[1]);
            board.vcpu.state.clone_from(&state);
            board.vcpu.mmu.flush(Flush::All);
        }
    }

    /// Runs a case on both sides.
    pub fn run(&mut self, image: &[u8], generated: &Generated) -> Verdict {
        self.prepare(image, generated);
        let Some(left) = self.interpret() else {
            self.realign();
            return Verdict::Skipped;
        };
        self.watchdog.begin();
        let right = self.translator.run(&mut self.boards[1].vcpu);
        self.watchdog.end();
        if matches!(left, Exit::Unsupported(_)) {
            self.start_over();
            return if matches!(right, Exit::Unsupported(_)) || self.read_a_counter() {
                Verdict::Skipped
            } else {
                Verdict::Different(vec![format!("exit: {left:?}, {right:?}")])
            };
        }
        let given_up = right == Exit::Requested;
        match self.judge(generated, left, right) {
            Verdict::Different(_) if self.read_a_counter() || given_up && self.locked() => {
                self.realign();
                Verdict::Skipped
            }
            Verdict::Different(why) => {
                self.start_over();
                Verdict::Different(why)
            }
            same => same,
        }
    }

    /// Makes the boards alike after only one of them ran.
    fn realign(&mut self) {
        self.boards.iter().for_each(|b| b.vcpu.mmu.ram.clear());
        self.translator.invalidate(&mut self.boards[1].vcpu, 0, u64::MAX);
        self.renew_tables();
    }

    fn start_over(&mut self) {
        let seed = self.rng.random();
        *self = Self::new(seed, self.setting.place, self.setting.returns);
    }

    /// The interpreter, one careful instruction at a time. None if the case does not end.
    fn interpret(&mut self) -> Option<Exit> {
        let v = &mut self.boards[0].vcpu;
        self.trail.clear();
        for _ in 0..if self.setting.returns { MAX_STEPS_INTERRUPTED } else { MAX_STEPS } {
            // The last step stays the last.
            self.trail.truncate(MAX_STEPS);
            self.trail.push(v.state.eip);
            v.mmu.take_flushes();
            v.mmu.take_code_writes();
            let event = match v.lines.any() || v.state.halted {
                true => self.interpreter.events(v),
                false => Ok(None),
            };
            let done = match event {
                Ok(Some(exit)) => return Some(exit),
                Ok(None) => self.interpreter.step(v),
                Err(stop) => Err(stop),
            };
            match done {
                Ok(()) => {}
                Err(Stop::Unsupported(what)) => return Some(Exit::Unsupported(what)),
                Err(_) => return Some(Exit::Shutdown),
            }
        }
        None
    }

    fn judge(&mut self, generated: &Generated, left: Exit, right: Exit) -> Verdict {
        let (l, r) = (self.end(0, left, generated), self.end(1, right, generated));
        if l.exit != r.exit {
            let exits = format!("exit: {:?}, {:?} at {:#x}", l.exit, r.exit, r.outcome.eip);
            return Verdict::Different(vec![exits, self.tell_setting(), self.tell_trail()]);
        }
        let mut all = Vec::new();
        if l.outcome != r.outcome {
            all = compare::differences(generated, &l.outcome, &r.outcome);
        }
        self.compare_state(&mut all);
        self.compare_memory(&mut all);
        match all.is_empty() {
            true => Verdict::Same(!matches!(l.outcome.vector, 3 | 256..)),
            false => {
                all.push(self.tell_setting());
                all.push(self.tell_trail());
                Verdict::Different(all)
            }
        }
    }

    fn tell_setting(&self) -> String {
        format!("setting: {:?}, start {:#x}", self.setting, self.setting.code() + self.used.start as u32)
    }

    /// The last instructions that the interpreter executed, as RAM has them now.
    fn tell_trail(&mut self) -> String {
        let mut text = format!("setting: {} steps, the last:", self.trail.len());
        for insn in self.executed(self.trail.len().saturating_sub(12)) {
            text += &format!("\n      {:08x} {insn}", insn.ip32());
        }
        text
    }

    /// The instructions on the trail from index `from`, as RAM has them now.
    fn executed(&mut self, from: usize) -> Vec<Instruction> {
        let v = &mut self.boards[0].vcpu;
        let decode = |eip: &u32| {
            let mut bytes = [0; 15];
            let n = v.fetch(*eip, &mut bytes).unwrap_or(0);
            Decoder::with_ip(32, &bytes[..n], *eip as u64, DecoderOptions::NONE).decode()
        };
        self.trail[from..].iter().map(decode).collect()
    }

    /// True if the case read what is never the same twice: it can, by executing data.
    fn read_a_counter(&mut self) -> bool {
        use Mnemonic::{Rdmsr, Rdpmc, Rdrand, Rdseed, Rdtsc, Rdtscp};
        let counts = |i: &Instruction| matches!(i.mnemonic(), Rdtsc | Rdtscp | Rdpmc | Rdmsr | Rdrand | Rdseed);
        self.executed(0).iter().any(counts)
    }

    /// True if the case locked memory. Executed data may do so across cache lines, which the host's kernel can punish by
    /// letting it be tried again for seconds.
    fn locked(&mut self) -> bool {
        let memory = |i: &Instruction| (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        let locks = |i: &Instruction| i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg && memory(i);
        self.executed(0).iter().any(locks)
    }

    /// How side `which` ended. What is undefined in the flags of the frame is set to zero there.
    fn end(&mut self, which: usize, exit: Exit, generated: &Generated) -> End {
        let v = &mut self.boards[which].vcpu;
        let vector = self.setting.vector(v.state.eip.wrapping_sub(1));
        let mut outcome = Outcome {
            gpr: v.state.gpr,
            eip: v.state.eip,
            eflags: v.state.eflags,
            vector: vector.map_or(256, u32::from),
            error: 0,
            cr2: v.state.cr2,
            xsave: v.state.xsave.0.to_vec(),
            memory: Vec::new(),
        };
        if vector == Some(vector::DF) {
            // A task switch saved the flags. RF is set between the iterations of a repeated string instruction, which
            // engines cut differently.
            let at = self.setting.saved_flags();
            let flags = v.mmu.ram.read_u32(at).unwrap_or(0) & !generated.undefined & !eflags::RF;
            assert!(v.mmu.ram.write(at, &flags.to_le_bytes()));
        }
        if !v.state.protected() {
            // A case that left protected mode: IP, CS and FLAGS of 16 bits each, by whatever handler.
            let at = v.state.seg[seg::SS].base.wrapping_add(v.state.gpr[reg::ESP].wrapping_add(4) & 0xffff);
            let flags = v.load::<u16>(at, Privilege::Supervisor).unwrap_or(0) & !generated.undefined as u16;
            let _ = v.store(at, flags, Privilege::Supervisor);
            return End { exit, outcome };
        }
        let Some(vector) = vector.filter(|v| *v != vector::DF) else { return End { exit, outcome } };
        let mut frame = v.state.gpr[reg::ESP];
        let word = |v: &mut vmm::cpu::Vcpu, at: u32| v.load::<u32>(at, Privilege::Supervisor).unwrap_or(0);
        if matches!(vector, 10..=14 | 17) {
            outcome.error = word(v, frame);
            frame = frame.wrapping_add(4);
        }
        outcome.eip = word(v, frame);
        outcome.eflags = word(v, frame.wrapping_add(8)) & !generated.undefined;
        let _ = v.store(frame.wrapping_add(8), outcome.eflags, Privilege::Supervisor);
        End { exit, outcome }
    }

    fn compare_state(&mut self, all: &mut Vec<String>) {
        let [l, r] = &self.boards;
        let (l, r) = (&l.vcpu.state, &r.vcpu.state);
        if l == r {
            return;
        }
        // General registers and floating point were compared with what is known about them.
        let mut like = r.clone();
        (like.gpr, like.xsave, like.eflags) = (l.gpr, l.xsave.clone(), l.eflags);
        if &like != l {
            all.push(format!("state: {l:?}, translator {like:?}"));
        }
    }

    fn compare_memory(&mut self, all: &mut Vec<String>) {
        let system = self.setting.system();
        let page = PAGE as usize;
        let pages = self.setting.code_frames().into_iter().chain(self.setting.data_frames()).map(|at| (at, page));
        for (at, length) in system.into_iter().chain(pages.collect::<Vec<_>>()) {
            self.buffer.resize(length, 0);
            assert!(self.boards[0].vcpu.mmu.ram.read(at, &mut self.buffer));
            if self.setting.returns && at == system[0].0 {
                // Old frames lie around.
                let stack = (self.setting.stack_page() - at) as usize;
                let mut theirs = vec![0; page];
                assert!(self.boards[1].vcpu.mmu.ram.read(at + stack as u64, &mut theirs));
                self.buffer[stack..stack + page].copy_from_slice(&theirs);
            }
            if self.boards[1].vcpu.mmu.ram.equals(at, &self.buffer) {
                continue;
            }
            let mut other = vec![0; length];
            assert!(self.boards[1].vcpu.mmu.ram.read(at, &mut other));
            let Some(i) = (0..length).find(|i| self.buffer[*i] != other[*i]) else { continue };
            let near = |b: &[u8]| format!("{:02x?}", &b[i & !7..][..8]);
            all.push(format!(
                "{} at {:#x}: interpreter {}, translator {}",
                region(at),
                at + i as u64,
                near(&self.buffer),
                near(&other)
            ));
        }
    }
}

/// What the memory at a physical address is for.
fn region(at: u64) -> &'static str {
    match at {
        0x1000..0x8000 => "tables of the processor",
        0x8000..0x2_0000 => "page tables",
        0x2_0000..0x3_0000 => "code",
        _ => "memory",
    }
}

/// Runs cases from a generator on pairs in one place.
pub struct Engines {
    pair: Pair,
    place: Place,
    storm: bool,
    rng: SmallRng,
    left: usize,
}

/// Cases of one pair: then what it learnt is forgotten. Code pages are rewritten for every case, and so are taken to be
/// mixed after about half of these: both kinds of translation are compared.
const PAIR_CASES: usize = 1_000;

impl Engines {
    /// Pairs in `place`; see [`Pair::new`] for `storm`.
    pub fn new(seed: u64, place: Place, storm: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self { pair: Pair::new(rng.random(), place, storm), place, storm, rng, left: PAIR_CASES }
    }

    /// Runs one case.
    pub fn run(&mut self, image: &[u8], generated: &Generated) -> Verdict {
        self.left -= 1;
        if self.left == 0 {
            self.pair = Pair::new(self.rng.random(), self.place, self.storm);
            self.left = PAIR_CASES;
        }
        self.pair.run(image, generated)
    }

    /// Counters of the current translator.
    pub fn stats(&self) -> Vec<(String, u64)> {
        self.pair.stats()
    }
}
