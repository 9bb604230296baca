//! The machine: RAM, board, processor and engine put together, and run to an end.
//!
//! The calling thread is the processor's: it runs the engine, does what the board asks of the machine, and sleeps while
//! the guest is halted. The board's deadlines interrupt this thread itself (`alarm`). A second thread (`io`) watches the
//! descriptors; it raises lines and kicks, and never touches the processor itself.

mod alarm;
mod console;
mod devices;
mod foundation;
mod io;
mod kick;
mod news;
mod wait;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Uplink;
use crate::boot::tables::{self, Topology};
use crate::boot::{BootError, Payload};
use crate::chipset::{Board, BoardConfig, BoardEvent, Clock, Hook, Hooks};
use crate::cpu::{CpuModel, CpuState, Lines, Vcpu, eflags, host_tsc, seg};
use crate::engine::{Engine, EngineError, Exit};
use crate::mmu::{FRAME_SIZE, Flush, GuestRam, RamError};
use crate::outcome::{Outcome, cause_chain};
use crate::virtio::{Dma, VirtioPci};
use console::Console;
use devices::Host;
pub use devices::{Device, DeviceError};
pub use foundation::Foundation;
use io::Shared;
use ipc::control::FromVmm;
use news::News;
use wait::Wait;

/// A20 masked: address bit 20 reads as zero.
const A20_MASKED: u32 = !(1 << 20);

/// Why a machine could not be put together.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error("choosing an engine")]
    Engine(#[from] EngineError),
    #[error("making guest RAM")]
    Ram(#[from] RamError),
    #[error("loading the guest")]
    Boot(#[from] BootError),
    #[error("making the machine's own timers and wake-ups")]
    Host(#[from] nix::Error),
    #[error("attaching a device")]
    Device(#[from] DeviceError),
    #[error("starting the I/O thread")]
    Thread(#[source] std::io::Error),
}

/// What a machine is made of.
pub struct Parts {
    /// The kernel and what goes along.
    pub payload: Payload,
    /// What the guest's processor is.
    pub cpu: CpuModel,
    /// The first serial port's stream socket.
    pub console: Option<OwnedFd>,
    /// Disks and network cards, in the order of their slots.
    pub devices: Vec<Device>,
    /// Requests in, reports out.
    pub uplink: Arc<Uplink>,
    /// A reset ends the machine.
    pub no_reboot: bool,
    /// When starting began, CLOCK_MONOTONIC in nanoseconds.
    pub started_ns: u64,
}

/// A machine, loaded and ready to run.
pub struct Machine {
    ram: Arc<GuestRam>,
    board: Arc<Board>,
    vcpu: Vcpu,
    engine: Box<dyn Engine>,
    payload: Payload,
    shared: Arc<Shared>,
    uplink: Arc<Uplink>,
    console: Option<Console>,
    devices: Vec<Arc<VirtioPci>>,
    news: Arc<News>,
    no_reboot: bool,
    started_ns: u64,
    counters: Counters,
    wait: Wait,
}

/// The machine's own counters.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    startup_ns: u64,
    requests: u64,
    halts: u64,
    resets: u64,
}

impl Machine {
    /// Assembles the machine on its foundation and loads the guest.
    pub fn new(foundation: Foundation, parts: Parts) -> Result<Self, MachineError> {
        let Foundation { ram, engine, lines, shared } = foundation;
        let board = Self::board(&ram, &lines, &shared);
        let news = Arc::new(News::default());
        let host =
            Host { ram: &ram, board: &board, lines: &lines, uplink: &parts.uplink, news: &news, shared: &shared };
        let devices = devices::attach(parts.devices, &host)?;
        let mut vcpu = Vcpu::new(0, ram.clone(), board.clone(), lines);
        vcpu.model = parts.cpu;
        let mut machine = Self {
            ram,
            board,
            vcpu,
            engine,
            payload: parts.payload,
            shared,
            uplink: parts.uplink,
            console: Some(Console::new(parts.console)),
            devices,
            news,
            no_reboot: parts.no_reboot,
            started_ns: parts.started_ns,
            counters: Counters::default(),
            wait: Wait::default(),
        };
        machine.load()?;
        Ok(machine)
    }

    fn board(ram: &Arc<GuestRam>, lines: &Arc<Lines>, shared: &Arc<Shared>) -> Arc<Board> {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let board = Board::new(BoardConfig {
            ram: ram.clone(),
            lines: vec![lines.clone()],
            clock: Clock::host(),
            utc_ns: u64::try_from(utc.as_nanos()).unwrap_or(0),
            hooks: hooks(shared),
        });
        shared.attach(&board);
        board
    }

    /// Puts guest and processor into their state at the kernel's entry. RAM is zero.
    fn load(&mut self) -> Result<(), BootError> {
        tables::write(Topology { processors: 1 }, &self.ram)?;
        let entry = self.payload.load(&self.ram)?;
        self.vcpu.state = CpuState { tsc_offset: host_tsc().wrapping_neg(), ..CpuState::default() };
        entry.apply(&mut self.vcpu.state);
        self.set_a20(self.board.a20());
        Ok(())
    }

    /// Runs the guest to its end, reports it, and returns it. Must be called once.
    pub fn run(mut self, stats: bool) -> Outcome {
        let outcome = match self.start_io() {
            Ok(io) => {
                let outcome = self.execute();
                self.shared.end();
                // A panic there has been shown; the outcome stands.
                let _ = io.join();
                outcome
            }
            Err(error) => Outcome::StartFailed(cause_chain(&error)),
        };
        let stats = if stats { self.stats() } else { Vec::new() };
        self.report(&FromVmm::Ended { outcome: outcome.clone(), stats });
        outcome
    }

    fn start_io(&mut self) -> Result<thread::JoinHandle<()>, MachineError> {
        kick::adopt(&self.vcpu.lines);
        let (shared, board, uplink) = (self.shared.clone(), self.board.clone(), self.uplink.clone());
        let (devices, news) = (self.devices.clone(), self.news.clone());
        let console = self.console.take().unwrap_or_else(|| Console::new(None));
        thread::Builder::new()
            .name("io".into())
            .spawn(move || io::run(&shared, &board, &devices, &uplink, &news, console))
            .map_err(MachineError::Thread)
    }

    /// The processor's life.
    fn execute(&mut self) -> Outcome {
        self.vcpu.lines.set_thread(nix::unistd::gettid().as_raw());
        self.counters.startup_ns = self.board.clock().now().saturating_sub(self.started_ns);
        self.report(&FromVmm::Started {
            protocol: self.payload.protocol().into(),
            engine: self.engine.name().into(),
            startup_ns: self.counters.startup_ns,
        });
        self.shared.keep_time(&self.board);
        let outcome = loop {
            let ended = match self.engine.run(&mut self.vcpu) {
                Exit::Requested => {
                    self.counters.requests += 1;
                    self.shared.keep_time(&self.board);
                    self.serve()
                }
                Exit::Halted => {
                    self.counters.halts += 1;
                    self.sleep();
                    self.serve()
                }
                Exit::Shutdown => {
                    let cs = self.vcpu.state.seg[seg::CS].selector;
                    self.reset(&format!("triple fault near {cs:04x}:{:08x}", self.vcpu.state.eip))
                }
                Exit::Unsupported(what) => Some(Outcome::Unsupported(what.to_string())),
            };
            if let Some(outcome) = ended {
                break outcome;
            }
        };
        self.vcpu.lines.set_thread(0);
        kick::release();
        self.log_state();
        outcome
    }

    /// Where the guest was, for those who ask why it is there.
    fn log_state(&self) {
        let s = &self.vcpu.state;
        tracing::debug!(
            "processor at the end: {:04x}:{:08x} eflags {:08x} cr0 {:08x} cr2 {:08x} cr3 {:08x} cr4 {:08x} gpr {:08x?}",
            s.seg[seg::CS].selector,
            s.eip,
            s.eflags,
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.gpr
        );
    }

    /// Does what the board and the operator ask for.
    fn serve(&mut self) -> Option<Outcome> {
        while let Some(event) = self.board.take_event() {
            let ended = match event {
                BoardEvent::PowerOff => Some(Outcome::PowerOff),
                BoardEvent::DebugExit(code) => Some(Outcome::DebugExit(code as u8)),
                BoardEvent::Reset => self.reset("the guest pulled the reset line"),
                BoardEvent::Init(_) => {
                    self.reset("INIT was sent to the boot processor, which has no firmware to go to")
                }
                BoardEvent::A20Changed(open) => {
                    self.set_a20(open);
                    None
                }
                BoardEvent::RamWritten { start, end } => {
                    self.engine.invalidate(&mut self.vcpu, start, end);
                    None
                }
                // The one processor there is does not wait for a start-up message.
                BoardEvent::StartUp(..) => None,
            };
            if ended.is_some() {
                return ended;
            }
        }
        self.serve_devices();
        self.shared.stopped().then_some(Outcome::Stopped)
    }

    /// Lets devices work on guest RAM, which nothing else does at this moment, and has the engine look at what they
    /// wrote before it runs again.
    fn serve_devices(&mut self) {
        let mut dma = Dma::new(&self.ram);
        self.devices.iter().for_each(|device| device.serve(&mut dma));
        for frame in dma.into_code_frames() {
            self.engine.invalidate(&mut self.vcpu, frame, frame + FRAME_SIZE as u64);
        }
    }

    /// Waits until no process writes RAM any more for what the guest asked for before a reset of its devices.
    fn quiesce(&mut self) {
        loop {
            self.serve_devices();
            if self.shared.stopped() || !self.devices.iter().any(|device| device.is_resetting()) {
                return;
            }
            let lines = &self.vcpu.lines;
            kick::sleep_until_kicked(|| lines.requested());
            lines.take_request();
        }
    }

    fn set_a20(&mut self, open: bool) {
        let mask = if open { u32::MAX } else { A20_MASKED };
        if self.vcpu.state.a20_mask != mask {
            self.vcpu.state.a20_mask = mask;
            self.vcpu.mmu.flush(Flush::All);
        }
    }

    /// Starts the guest again from nothing, or ends if that is not wanted.
    fn reset(&mut self, cause: &str) -> Option<Outcome> {
        if self.no_reboot {
            return Some(Outcome::Reset(cause.into()));
        }
        self.counters.resets += 1;
        self.report(&FromVmm::Rebooted { cause: cause.into() });
        self.board.reset();
        // Events of the old life concern nobody.
        while self.board.take_event().is_some() {}
        self.quiesce();
        self.ram.clear();
        self.vcpu.mmu.flush(Flush::All);
        self.engine.invalidate(&mut self.vcpu, 0, u64::MAX);
        self.vcpu.lines.take_nmi();
        match self.load() {
            Ok(()) if self.shared.stopped() => Some(Outcome::Stopped),
            Ok(()) => None,
            Err(error) => Some(Outcome::StartFailed(cause_chain(&error))),
        }
    }

    /// Sleeps while the processor is halted: until the alarm goes off for the board's next deadline, or a kick.
    fn sleep(&mut self) {
        let lines = &self.vcpu.lines;
        self.shared.keep_time(&self.board);
        let interruptible = self.vcpu.state.eflags & eflags::IF != 0;
        let blocked = self.vcpu.state.nmi_blocked;
        let awake = || lines.requested() || (lines.nmi() && !blocked) || (lines.intr() && interruptible);
        if !self.wait.look(&self.devices, awake) {
            kick::sleep_until_kicked(awake);
            self.wait.woke(&self.devices);
        }
        // Whatever was asked for is served next.
        lines.take_request();
        self.shared.keep_time(&self.board);
    }

    fn report(&self, report: &FromVmm) {
        if let Err(error) = self.uplink.say(report) {
            tracing::debug!("reporting to the broker: {}", cause_chain(&error));
        }
    }

    fn stats(&self) -> Vec<(String, u64)> {
        let own = [
            ("machine.requests", self.counters.requests),
            ("machine.halts", self.counters.halts),
            ("machine.resets", self.counters.resets),
        ];
        own.map(|(name, value)| (name.to_string(), value)).into_iter().chain(self.engine.stats()).collect()
    }
}

/// What the board calls when it has something for the I/O thread.
fn hooks(shared: &Arc<Shared>) -> Hooks {
    let wake: Hook = {
        let shared = shared.clone();
        Arc::new(move || shared.wake())
    };
    let deadline: Hook = {
        let shared = shared.clone();
        Arc::new(move || shared.deadline_moved())
    };
    Hooks { deadline: Some(deadline), output: Some(wake.clone()), input_space: Some(wake) }
}
