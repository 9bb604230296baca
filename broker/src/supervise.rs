//! Watches a running machine: the vmm's console, reports and death, its devices' processes, and the operator's signals, in
//! one loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc::ChannelError;
use ipc::control::{FromVmm, ToVmm};
use ipc::outcome::{Outcome, cause_chain};
use ipc::rate::Bucket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use crate::control_api::{Api, Request};
use crate::devices::{Devices, Part};
use crate::escape::Action;
use crate::heart::{Heart, Pulse};
use crate::inspect;
use crate::link::TURN;
use crate::relay::Relay;
use crate::runtime::Socket;
use crate::signals::StopSignals;
use crate::spawn::Vmm;

/// How long a guest may take to shut down after the power button.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long the vmm may take to end after it was told to.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long it may take to end by itself.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// Between two questions whether the vmm answers, and silence that is worth a message. A vmm is not replaced for silence:
/// the guest's state is in it.
const BEAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));

/// News of one kind that are told at once, and a second. Those beyond are not told.
pub const NEWS: (u32, u32) = (20, 1);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signal,
    /// Before whatever is of devices: at its end, what becomes of them is of no interest.
    Link,
    VmmEnd,
    Words,
    Console,
    Input,
    Output,
    Api,
    Device(usize, Part),
}

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
    // Before the devices, whose connections end with it.
    vmm: Vmm,
    devices: Devices,
    /// None only while it is being served.
    api: Option<Api>,
    name: String,
    relay: Relay,
    signals: StopSignals,
    ending: Ending,
    outcome: Option<Outcome>,
    stats: Vec<(String, u64)>,
    link_open: bool,
    /// When a vmm that said that it is at its end, or let go of its channel, is killed.
    leave_by: Option<Instant>,
    status: Option<WaitStatus>,
    heart: Heart,
    /// How often the guest's resets are told: it may reset as often as it likes.
    news: Bucket,
}

impl Supervisor {
    /// Takes over a vmm that was just started.
    pub fn new(vmm: Vmm, devices: Devices, socket: Socket, relay: Relay, signals: StopSignals) -> Self {
        let (name, api) = (socket.name.clone(), Some(Api::new(socket)));
        let (outcome, stats, status) = (None, Vec::new(), None);
        let heart = Heart::new(Instant::now(), BEAT.0, BEAT.1);
        Self {
            vmm,
            devices,
            api,
            name,
            relay,
            signals,
            ending: Ending::No,
            outcome,
            stats,
            link_open: true,
            leave_by: None,
            status,
            heart,
            news: Bucket::new(NEWS.0, NEWS.1, Instant::now()),
        }
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
        let sources = self.sources(stdin.as_fd());
        let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<(Source, PollFlags)> = sources
            .iter()
            .zip(&fds)
            .filter_map(|((source, ..), fd)| Some((*source, fd.revents().filter(|flags| !flags.is_empty())?)))
            .collect();
        for (source, flags) in ready {
            self.serve(source, flags)?;
        }
        self.devices.turn(Instant::now(), &mut self.vmm.link);
        if self.api.as_ref().and_then(Api::next).is_some_and(|next| next <= Instant::now()) {
            self.serve_api();
        }
        self.check_patience()
    }

    fn sources<'a>(&'a self, stdin: BorrowedFd<'a>) -> Vec<(Source, BorrowedFd<'a>, PollFlags)> {
        let (input, running) = (PollFlags::POLLIN, self.status.is_none());
        let mut sources = vec![(Source::Signal, self.signals.as_fd(), input)];
        if self.link_open {
            sources.push((Source::Link, self.vmm.link.as_fd(), input));
        }
        if running {
            sources.push((Source::VmmEnd, self.vmm.process.pidfd(), input));
        }
        if self.vmm.process.words.open() {
            sources.push((Source::Words, self.vmm.process.words.as_fd(), input));
        }
        let console = self.console_flags();
        if !console.is_empty() {
            sources.push((Source::Console, self.vmm.console.as_fd(), console));
        }
        if self.relay.wants_input() && running {
            sources.push((Source::Input, stdin, input));
        }
        if let Some(output) = self.relay.output() {
            sources.push((Source::Output, output, PollFlags::POLLOUT));
        }
        let api = self.api.iter().flat_map(Api::sources);
        sources.extend(api.map(|fd| (Source::Api, fd, input)));
        sources.extend(self.devices.sources().into_iter().map(|(i, part, fd)| (Source::Device(i, part), fd, input)));
        sources
    }

    fn console_flags(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.relay.wants_console());
        flags.set(PollFlags::POLLOUT, self.relay.wants_console_room() && self.status.is_none());
        flags
    }

    fn serve(&mut self, source: Source, flags: PollFlags) -> io::Result<()> {
        match source {
            Source::Signal => {
                if self.signals.take().is_some() {
                    self.asked_to_end();
                }
            }
            Source::Link => self.take_reports(TURN),
            Source::VmmEnd => {
                self.status = Some(self.vmm.process.wait()?);
                // What it said before its end, all of it.
                self.vmm.link.close();
                self.take_reports(u32::MAX);
                self.vmm.process.words.read_last();
                self.relay.end_of_vmm(&self.vmm.console);
                self.devices.retire();
            }
            Source::Words => drop(self.vmm.process.words.read()),
            Source::Console => self.serve_console(flags),
            Source::Input => self.read_input(),
            Source::Output => self.relay.write_output(),
            Source::Api => self.serve_api(),
            Source::Device(index, part) => {
                // A device ends because the vmm does: what the vmm said last was said before.
                self.take_reports(TURN);
                self.devices.serve(index, part, &mut self.vmm.link);
            }
        }
        Ok(())
    }

    fn serve_api(&mut self) {
        if let Some(mut api) = self.api.take() {
            api.serve(|request| self.obey(&request));
            self.api = Some(api);
        }
    }

    fn obey(&mut self, request: &Request) -> Value {
        match request {
            Request::Inspect => {
                let (devices, mut processes) = self.devices.report();
                processes.insert(0, inspect::process("vmm", "vmm", self.vmm.process.pid(), true));
                json!({ "name": self.name, "broker": std::process::id(), "processes": processes, "devices": devices })
            }
            Request::Restart { device } => match self.devices.restart(device, &mut self.vmm.link) {
                true => json!({ "done": true }),
                false => json!({ "error": format!("the machine has no device called {device}") }),
            },
            Request::Stop => {
                self.asked_to_end();
                json!({ "done": true })
            }
        }
    }

    fn serve_console(&mut self, flags: PollFlags) {
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.relay.read_console(&mut self.vmm.console);
        }
        if flags.contains(PollFlags::POLLOUT) {
            self.relay.write_console(&mut self.vmm.console);
        }
    }

    fn read_input(&mut self) {
        for action in self.relay.read_input() {
            match action {
                Action::Quit => self.stop(),
                Action::PowerButton => self.request(&ToVmm::PowerButton),
                Action::Help => {}
            }
        }
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
            self.vmm.process.kill();
        }
        self.ending = Ending::Killed;
    }

    /// There is nothing left for the vmm but to end.
    fn leaving(&mut self) {
        self.leave_by.get_or_insert(Instant::now() + LEAVE_GRACE);
    }

    fn check_patience(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match self.heart.turn(now) {
            Pulse::Ask(number) => self.request(&ToVmm::Beat(number)),
            Pulse::Silent(long) => tracing::warn!("the vmm has not answered for {} s", long.as_secs()),
            Pulse::Calm => {}
        }
        if self.leave_by.take_if(|until| *until <= now).is_some() && self.status.is_none() {
            tracing::warn!("the vmm is at its end and has not ended in {} s: killing it", LEAVE_GRACE.as_secs());
            self.vmm.process.kill();
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
        let others = [self.leave_by, self.devices.next(), self.api.as_ref().and_then(Api::next)];
        let until = others.into_iter().flatten().fold(until, Instant::min);
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left as i32).unwrap_or(PollTimeout::MAX)
    }

    /// Hears what the vmm has said, in so many packets at most.
    fn take_reports(&mut self, mut packets: u32) {
        while self.link_open {
            match self.vmm.link.hear(&mut packets) {
                Ok(Some(report)) => self.note(report),
                Ok(None) => return,
                Err(ChannelError::Closed) => {
                    self.link_open = false;
                    self.leaving();
                }
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
            FromVmm::Rebooted { cause } => {
                if self.news.take(Instant::now()) {
                    tracing::info!("the guest reset ({cause}): starting again");
                }
            }
            FromVmm::Device { device, connection, event } => {
                self.devices.reported(device, connection, event, &mut self.vmm.link);
            }
            FromVmm::Alive(number) => {
                if self.heart.answered(number, Instant::now()) {
                    tracing::info!("the vmm answers again");
                }
            }
            FromVmm::Ended { outcome, stats } => {
                self.devices.retire();
                self.outcome = Some(outcome);
                self.stats.extend(stats);
                self.leaving();
            }
            // Told before the guest was started; log events do not come here.
            FromVmm::Ready { .. } | FromVmm::Log(_) => {}
        }
    }
}
