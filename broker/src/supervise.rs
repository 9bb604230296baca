//! Watches a running machine: the vmm's console, reports and death, its devices' processes, and the operator's signals, in
//! one loop.

mod ending;
mod operator;
mod reports;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc::outcome::Outcome;
use ipc::rate::Bucket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;

use crate::cgroups::Cgroup;
use crate::console::Console;
use crate::control_api::Api;
use crate::devices::{Devices, Part};
use crate::heart::Heart;
use crate::link::TURN;
use crate::notify::Notifier;
use crate::relay::Relay;
use crate::runtime::Socket;
use crate::signals::StopSignals;
use crate::spawn::Vmm;
use ending::Ending;

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
    /// Some may want to know how it ended.
    pub api: Option<Api>,
}

/// The loop's state.
pub struct Supervisor {
    // Before the devices, whose connections end with it.
    vmm: Vmm,
    devices: Devices,
    /// None only while it is being served.
    api: Option<Api>,
    name: String,
    console: Console,
    notifier: Notifier,
    signals: StopSignals,
    /// The guest runs, or has run.
    started: bool,
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
    // Behind the processes that are in it.
    group: Option<Cgroup>,
}

impl Supervisor {
    /// Takes over a vmm that was just started.
    pub fn new(
        vmm: Vmm,
        devices: Devices,
        group: Option<Cgroup>,
        socket: Socket,
        console: Console,
        signals: StopSignals,
    ) -> Self {
        let (name, api) = (socket.name.clone(), Some(Api::new(socket)));
        let (outcome, stats, status) = (None, Vec::new(), None);
        let heart = Heart::new(Instant::now(), BEAT.0, BEAT.1);
        Self {
            vmm,
            devices,
            api,
            name,
            console,
            notifier: Notifier::from_environment(),
            signals,
            started: false,
            ending: Ending::No,
            outcome,
            stats,
            link_open: true,
            leave_by: None,
            status,
            heart,
            news: Bucket::new(NEWS.0, NEWS.1, Instant::now()),
            group,
        }
    }

    /// Runs until the vmm has ended and its output has been shown.
    pub fn run(mut self) -> io::Result<End> {
        loop {
            if let Some(status) = self.status
                && (self.console.finished() || self.ending == Ending::Killed)
            {
                let (outcome, stats, api) = (self.outcome, self.stats, self.api);
                return Ok(End { outcome, stats, status, killed: self.ending == Ending::Killed, api });
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
        self.check_patience();
        Ok(())
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
        if let Console::Relayed(relay) = &self.console {
            sources.extend((relay.wants_input() && running).then_some((Source::Input, stdin, input)));
            sources.extend(relay.output().map(|output| (Source::Output, output, PollFlags::POLLOUT)));
        }
        let api = self.api.iter().flat_map(Api::sources);
        sources.extend(api.map(|(fd, flags)| (Source::Api, fd, flags)));
        sources.extend(self.devices.sources().into_iter().map(|(i, part, fd)| (Source::Device(i, part), fd, input)));
        sources
    }

    /// Nothing while somebody else has the console: its bytes are none of ours.
    fn console_flags(&self) -> PollFlags {
        match &self.console {
            Console::Relayed(relay) if self.status.is_none() => relay.console_flags(),
            Console::Relayed(relay) => relay.console_flags() & PollFlags::POLLIN,
            Console::Kept(kept) => {
                let lent = self.api.as_ref().and_then(Api::console_holder).is_some();
                if kept.open() && !lent { PollFlags::POLLIN } else { PollFlags::empty() }
            }
        }
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
                if self.group.as_ref().is_some_and(|group| group.ran_out_of_memory("vmm")) {
                    tracing::error!(
                        "the kernel ended the vmm for want of memory: raise the limit (--limits memory=...)"
                    );
                }
                self.console.end_of_vmm(&self.vmm.console);
                self.devices.retire();
            }
            Source::Words => drop(self.vmm.process.words.read()),
            Source::Console => self.serve_console(flags),
            Source::Input => self.read_input(),
            Source::Output => self.console.relay().into_iter().for_each(Relay::write_output),
            Source::Api => self.serve_api(),
            Source::Device(index, part) => {
                // A device ends because the vmm does: what the vmm said last was said before.
                self.take_reports(TURN);
                self.devices.serve(index, part, &mut self.vmm.link);
            }
        }
        Ok(())
    }

    fn serve_console(&mut self, flags: PollFlags) {
        let readable = flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
        match &mut self.console {
            Console::Kept(kept) => kept.read(&self.vmm.console),
            Console::Relayed(relay) => {
                if readable {
                    relay.read_console(&mut self.vmm.console);
                }
                if flags.contains(PollFlags::POLLOUT) {
                    relay.write_console(&mut self.vmm.console);
                }
            }
        }
    }

    fn timeout(&self) -> PollTimeout {
        let api = self.api.as_ref().and_then(Api::next);
        let due = [self.ending.due(), self.leave_by, self.devices.next(), api, self.notifier.next()];
        let until = due.into_iter().flatten().fold(self.heart.next(), Instant::min);
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left as i32).unwrap_or(PollTimeout::MAX)
    }
}
