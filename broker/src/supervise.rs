//! Watches a running vmm: its console, its reports, its death, and the operator's signals, in one loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc::ChannelError;
use ipc::control::{DeviceEvent, FromVmm, ToVmm};
use ipc::outcome::{Outcome, cause_chain};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;

use crate::escape::Action;
use crate::heart::{Heart, Pulse};
use crate::relay::Relay;
use crate::signals::StopSignals;
use crate::spawn::Vmm;

/// How long a guest may take to shut down after the power button.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long the vmm may take to end after it was told to.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// What is waited for at a time.
const SOURCES: usize = 7;

/// How far the operator's wish to end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// The power button was pressed; at this time the machine is stopped.
    Asked(Instant),
    /// The vmm was told to stop; at this time it is killed.
    Stopping(Instant),
    Killed,
}

/// What became of the vmm.
#[derive(Debug)]
pub struct End {
    /// Its last report, if it made one.
    pub outcome: Option<Outcome>,
    /// Counters.
    pub stats: Vec<(String, u64)>,
    /// How the process ended.
    pub status: WaitStatus,
    /// We killed it, because it did not answer or broke the protocol.
    pub killed: bool,
}

/// The loop's state.
pub struct Supervisor {
    vmm: Vmm,
    relay: Relay,
    signals: StopSignals,
    ending: Ending,
    outcome: Option<Outcome>,
    stats: Vec<(String, u64)>,
    link_open: bool,
    status: Option<WaitStatus>,
    heart: Heart,
}

impl Supervisor {
    /// Takes over a vmm that was just started.
    pub fn new(vmm: Vmm, relay: Relay, signals: StopSignals) -> Self {
        let (outcome, stats, status, heart) = (None, Vec::new(), None, Heart::new(Instant::now()));
        Self { vmm, relay, signals, ending: Ending::No, outcome, stats, link_open: true, status, heart }
    }

    /// Runs until the vmm has ended and its output has been shown.
    pub fn run(mut self) -> io::Result<End> {
        loop {
            if let Some(status) = self.status
                && (self.relay.finished() || self.ending == Ending::Killed)
            {
                let (outcome, stats) = (self.outcome, self.stats);
                return Ok(End { outcome, stats, status, killed: self.ending == Ending::Killed });
            }
            self.turn()?;
        }
    }

    /// Waits for one thing or more, and serves it.
    fn turn(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        let output = self.relay.output();
        let sources: [(BorrowedFd<'_>, PollFlags, bool); SOURCES] = [
            (self.signals.as_fd(), PollFlags::POLLIN, true),
            (self.vmm.pidfd(), PollFlags::POLLIN, self.status.is_none()),
            (self.vmm.link.as_fd(), PollFlags::POLLIN, self.link_open),
            (self.vmm.words.as_fd(), PollFlags::POLLIN, self.vmm.words.open()),
            (self.vmm.console.as_fd(), self.console_flags(), !self.console_flags().is_empty()),
            (stdin.as_fd(), PollFlags::POLLIN, self.relay.wants_input() && self.status.is_none()),
            (output.unwrap_or(stdin.as_fd()), PollFlags::POLLOUT, output.is_some()),
        ];
        let active: Vec<usize> = (0..sources.len()).filter(|i| sources[*i].2).collect();
        let mut fds: Vec<PollFd<'_>> = active.iter().map(|i| PollFd::new(sources[*i].0, sources[*i].1)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = [PollFlags::empty(); SOURCES];
        for (i, fd) in active.iter().zip(&fds) {
            ready[*i] = fd.revents().unwrap_or(PollFlags::empty());
        }
        self.serve(ready)
    }

    fn console_flags(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.relay.wants_console());
        flags.set(PollFlags::POLLOUT, self.relay.wants_console_room() && self.status.is_none());
        flags
    }

    fn serve(&mut self, ready: [PollFlags; SOURCES]) -> io::Result<()> {
        let [signal, exited, link, words, console, input, output] = ready;
        if !signal.is_empty() && self.signals.take().is_some() {
            self.asked_to_end();
        }
        if !link.is_empty() {
            self.take_reports();
        }
        if !words.is_empty() {
            self.vmm.words.read();
        }
        if console.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.relay.read_console(&mut self.vmm.console);
        }
        if console.contains(PollFlags::POLLOUT) {
            self.relay.write_console(&mut self.vmm.console);
        }
        if !input.is_empty() {
            for action in self.relay.read_input() {
                match action {
                    Action::Quit => self.stop(),
                    Action::PowerButton => self.request(&ToVmm::PowerButton),
                    Action::Help => {}
                }
            }
        }
        if !output.is_empty() {
            self.relay.write_output();
        }
        if !exited.is_empty() {
            self.status = Some(self.vmm.wait()?);
            self.take_reports();
        }
        self.check_patience()
    }

    fn request(&mut self, request: &ToVmm) {
        if let Err(error) = self.vmm.link.say(request, &[]) {
            tracing::debug!("telling the vmm {request:?}: {error}");
        }
    }

    /// A stop signal: the first presses the power button, the next one stops, one more kills.
    fn asked_to_end(&mut self) {
        match self.ending {
            Ending::No => {
                tracing::info!("pressing the power button; again to stop the machine");
                self.request(&ToVmm::PowerButton);
                self.ending = Ending::Asked(Instant::now() + SHUTDOWN_GRACE);
            }
            Ending::Asked(_) => self.stop(),
            Ending::Stopping(_) | Ending::Killed => self.kill(),
        }
    }

    fn stop(&mut self) {
        if !matches!(self.ending, Ending::Stopping(_) | Ending::Killed) {
            self.request(&ToVmm::Stop);
            self.ending = Ending::Stopping(Instant::now() + STOP_GRACE);
        }
    }

    /// Also gives up on output that nobody reads.
    fn kill(&mut self) {
        if self.status.is_none() {
            self.vmm.kill();
        }
        self.ending = Ending::Killed;
    }

    fn check_patience(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match self.heart.turn(now) {
            Pulse::Ask(number) => self.request(&ToVmm::Beat(number)),
            Pulse::Silent(long) => tracing::warn!("the vmm has not answered for {} s", long.as_secs()),
            Pulse::Calm => {}
        }
        match self.ending {
            Ending::Asked(until) if now >= until => {
                tracing::warn!("the guest has not powered off in {} s: stopping it", SHUTDOWN_GRACE.as_secs());
                self.stop();
            }
            Ending::Stopping(until) if now >= until => {
                if self.status.is_none() {
                    tracing::warn!("the vmm has not ended in {} s: killing it", STOP_GRACE.as_secs());
                }
                self.kill();
            }
            _ => {}
        }
        Ok(())
    }

    fn timeout(&self) -> PollTimeout {
        let beat = self.heart.next();
        let until = match self.ending {
            Ending::Asked(until) | Ending::Stopping(until) => until.min(beat),
            Ending::No | Ending::Killed => beat,
        };
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left as i32).unwrap_or(PollTimeout::MAX)
    }

    fn take_reports(&mut self) {
        while self.link_open {
            match self.vmm.link.hear() {
                Ok(Some(report)) => self.note(report),
                Ok(None) => return,
                Err(ChannelError::Closed) => self.link_open = false,
                Err(error) => {
                    // It is broken, or in other hands. What it says from now on is of no interest.
                    self.link_open = false;
                    tracing::error!("the vmm breaks its protocol and is stopped: {}", cause_chain(&error));
                    self.kill();
                }
            }
        }
    }

    fn note(&mut self, report: FromVmm) {
        match report {
            FromVmm::Started { protocol, engine, startup_ns } => {
                tracing::debug!("{protocol} kernel on engine {engine}, started in {} us", startup_ns / 1000);
                self.stats.insert(0, ("vmm.startup_us".into(), startup_ns / 1000));
            }
            FromVmm::Rebooted { cause } => tracing::info!("the guest reset ({cause}): starting again"),
            FromVmm::Device { name, event } => tell(&name, &event),
            FromVmm::Alive(number) => {
                if self.heart.answered(number, Instant::now()) {
                    tracing::info!("the vmm answers again");
                }
            }
            FromVmm::Ended { outcome, stats } => {
                self.outcome = Some(outcome);
                self.stats.extend(stats);
            }
            // Told before the guest was started; log events do not come here.
            FromVmm::Ready { .. } | FromVmm::Log(_) => {}
        }
    }
}

/// Tells the operator what became of a device.
fn tell(name: &str, event: &DeviceEvent) {
    match event {
        DeviceEvent::Lost(reason) => tracing::error!("{name}: its back end is gone: {reason}"),
        DeviceEvent::Restored => tracing::info!("{name}: a back end serves it again"),
        DeviceEvent::NeedsReset(reason) => tracing::warn!("{name}: it asked the guest's driver for a reset: {reason}"),
    }
}
