//! One hostile machine on one engine, served as the machine room serves a real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vmm::chipset::{Board, BoardConfig, BoardEvent, Clock, Hooks};
use vmm::cpu::{Bus, CpuState, Lines, Vcpu};
use vmm::engine::{self, Exit};
use vmm::mmu::{Flush, GuestRam};

use super::machine::Machine;
use super::operator::Operator;

/// CPU time after which a stop that was asked for has not been honoured. It would be a fraction of this, but the hosts of
/// some machines have whoever locks their bus (LOCK across cache lines) wait for a second or two, and count that as his time.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// Memory beside guest RAM that a process may use, in KiB.
const MEMORY_KIB: u64 = 192 << 10;

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// HLT with nothing to wake it.
    Halted,
    /// Triple fault.
    Shutdown,
    /// The guest needs what Bulkhead does not do.
    Unsupported,
    /// The guest switched the machine off or reset it.
    Board,
    /// Its time was up.
    Time,
}

/// What surrounds a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Around {
    /// Nothing that depends on time, and no interrupts.
    Nothing,
    /// The board.
    Board,
    /// The board, and interrupts at random.
    Noise,
}

/// What is left of a machine.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What was unsupported.
    pub why: String,
    /// The processor.
    pub state: CpuState,
    /// Its memory.
    pub ram: Arc<GuestRam>,
}

/// A board whose ports read as a function of their number; nothing depends on time.
struct Still;

impl Bus for Still {
    fn port_read(&self, _: usize, port: u16, _: u8) -> u32 {
        u32::from(port).wrapping_mul(0x9e37_79b9)
    }
    fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, address: u64, _: u8) -> u64 {
        address.wrapping_mul(0x9e37_79b9)
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn acknowledge(&self, _: usize) -> Option<u8> {
        None
    }
    fn apic_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn apic_msr_write(&self, _: usize, _: u32, _: u64) -> bool {
        false
    }
}

/// A real board, but interrupts that the test raises have vectors of their own.
struct Noisy {
    board: Arc<Board>,
    lines: Arc<Lines>,
    count: AtomicU32,
}

impl Bus for Noisy {
    fn port_read(&self, vcpu: usize, port: u16, width: u8) -> u32 {
        self.board.port_read(vcpu, port, width)
    }
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32) {
        self.board.port_write(vcpu, port, width, value);
    }
    fn mmio_read(&self, vcpu: usize, address: u64, width: u8) -> u64 {
        self.board.mmio_read(vcpu, address, width)
    }
    fn mmio_write(&self, vcpu: usize, address: u64, width: u8, value: u64) {
        self.board.mmio_write(vcpu, address, width, value);
    }
    fn acknowledge(&self, vcpu: usize) -> Option<u8> {
        self.board.acknowledge(vcpu).or_else(|| {
            self.lines.set_intr(false);
            Some(self.count.fetch_add(37, Ordering::Relaxed) as u8)
        })
    }
    fn apic_msr_read(&self, vcpu: usize, msr: u32) -> Option<u64> {
        self.board.apic_msr_read(vcpu, msr)
    }
    fn apic_msr_write(&self, vcpu: usize, msr: u32, value: u64) -> bool {
        self.board.apic_msr_write(vcpu, msr, value)
    }
}

/// Runs `machine` on `engine` for at most `time`.
pub fn run(
    machine: &Machine,
    engine: &str,
    operator: &Operator,
    time: Duration,
    around: Around,
) -> Result<Outcome, String> {
    let ram = Arc::new(GuestRam::new(machine.memory).map_err(|e| e.to_string())?);
    for (at, bytes) in &machine.image {
        ram.write(*at, bytes);
    }
    let lines = Arc::new(Lines::default());
    let quiet = around == Around::Nothing;
    let board = (!quiet).then(|| board(&ram, &lines));
    let bus: Arc<dyn Bus> = match &board {
        Some(board) => Arc::new(Noisy { board: board.clone(), lines: lines.clone(), count: AtomicU32::new(3) }),
        None => Arc::new(Still),
    };
    let mut engine = engine::create(engine, &ram).map_err(|e| e.to_string())?;
    let mut vcpu = Vcpu::new(0, ram.clone(), bus, lines.clone());
    vcpu.state = machine.state.clone();
    if engine.name() == "translate" {
        // Only there has the signal of a kick a handler.
        lines.set_thread(nix::unistd::gettid().as_raw());
    }
    operator.watch(lines.clone(), board.clone().filter(|_| around == Around::Noise), time);
    let mut why = String::new();
    let end = loop {
        let exit = engine.run(&mut vcpu);
        if operator.waited() > STOP_WITHIN {
            return Err(format!("{}: a stop took {:?} of CPU time", engine.name(), operator.waited()));
        }
        let ended = match exit {
            Exit::Requested | Exit::Halted if operator.asked() => Some(End::Time),
            Exit::Requested => None,
            Exit::Halted if quiet => Some(End::Halted),
            Exit::Halted => {
                std::thread::yield_now();
                None
            }
            Exit::Shutdown => Some(End::Shutdown),
            Exit::Unsupported(what) => {
                why = what.to_string();
                Some(End::Unsupported)
            }
        };
        let served = board.as_ref().and_then(|board| serve(board, &mut *engine, &mut vcpu));
        if let Some(end) = ended.or(served) {
            break end;
        }
    };
    operator.leave();
    lines.set_thread(0);
    memory_is_bounded()?;
    operator.grown().map_or(Ok(()), Err)?;
    Ok(Outcome { end, why, state: vcpu.state, ram })
}

fn board(ram: &Arc<GuestRam>, lines: &Arc<Lines>) -> Arc<Board> {
    Board::new(BoardConfig {
        ram: ram.clone(),
        lines: vec![lines.clone()],
        clock: Clock::host(),
        utc_ns: 1_700_000_000_000_000_000,
        hooks: Hooks::default(),
    })
}

fn serve(board: &Board, engine: &mut dyn engine::Engine, vcpu: &mut Vcpu) -> Option<End> {
    let mut output = Vec::new();
    board.take_serial_output(&mut output);
    while let Some(event) = board.take_event() {
        match event {
            BoardEvent::PowerOff | BoardEvent::DebugExit(_) | BoardEvent::Reset | BoardEvent::Init(_) => {
                return Some(End::Board);
            }
            BoardEvent::A20Changed(open) => {
                vcpu.state.a20_mask = if open { u32::MAX } else { !(1 << 20) };
                vcpu.mmu.flush(Flush::All);
            }
            BoardEvent::RamWritten { start, end } => engine.invalidate(vcpu, start, end),
            BoardEvent::StartUp(..) => {}
        }
    }
    None
}

/// Checks what this process uses beside guest RAM: its private memory and its page tables. Guest RAM is shared memory and
/// bounded by its size, though it counts once for each window that shows it.
pub fn memory_is_bounded() -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let of = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let (private, tables) = (of("RssAnon:"), of("VmPTE:"));
    match private + tables > MEMORY_KIB {
        true => Err(format!("{private} KiB of private memory and {tables} KiB of page tables")),
        false => Ok(()),
    }
}
