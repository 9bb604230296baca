//! A device of a running machine, as the broker sees it: the process behind it, supervised by the table of [`table`].
//!
//! A device is served by a process of ours, which is started again when it dies, or by somebody else's, to which a new
//! connection is tried. Either way the vmm keeps what is outstanding and gives it to the next one, so that a guest sees a
//! pause and no error; when none is to be had, the vmm is told, and the guest gets errors.

pub mod back_end;
mod blame;
mod news;
mod patience;
mod source;
mod stall;
pub mod table;
mod watch;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipc::control::{DeviceConfig, FromDevice, Orphan, ToVmm};
use ipc::outcome::cause_chain;
use ipc::rate::Bucket;
use policy::Layers;

use crate::heart::Heart;
use crate::link::{TURN, VmmLink};
use crate::nic::flows::Flows;
use crate::process::{ended_from_outside, manner};
use crate::quarantine::Quarantine;
use crate::spawn::PATIENCE;
use crate::supervise::NEWS;
use back_end::{BackEnd, BackEndError};
use blame::Blame;
use patience::Patience;
pub use source::Source;
use stall::Stall;
use table::{Action, Event, State};

/// How long a process whose connection is over may take to end by itself.
const LEAVING: Duration = Duration::from_millis(500);
/// Between two questions whether it is there, and silence that means that it hangs.
const BEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// See the module.
#[derive(Debug)]
pub struct Device {
    pub name: String,
    /// The `cgroup.procs` of the control group of its processes, if they have one.
    pub cgroup: Option<PathBuf>,
    number: u16,
    source: Source,
    state: State,
    back_end: Option<BackEnd>,
    /// The vmm's end of a connection that it has not been given yet.
    stream: Option<UnixStream>,
    /// Connections that the vmm was given so far.
    connections: u64,
    heart: Heart,
    patience: Patience,
    stall: Stall,
    /// When the state has lasted too long, or the pause is over.
    until: Option<Instant>,
    /// Since when it is stopped, while it is being started: later its silence tells.
    stopped: Option<Instant>,
    /// Why it was sent SIGKILL, and whether that is its own fault.
    cause: Option<(String, bool)>,
    /// What made us think that it is about to end.
    doubt: Option<String>,
    down: Option<Instant>,
    /// The vmm is still to be told that it was given up.
    owed: bool,
    /// How often its driver's faults are told: a guest makes as many as it likes.
    news: Bucket,
    blame: Blame,
    /// TCP connections that processes before this one had.
    orphans: Vec<Orphan>,
}

/// What a device may need of others.
pub struct Context<'a> {
    /// None while the machine is being started.
    pub vmm: Option<&'a mut VmmLink>,
    pub tolerate: &'a Layers,
    /// Where requests are kept that crash their process.
    pub quarantine: &'a Quarantine,
}

impl Device {
    /// Device `number` of the machine, called `name`. There is nothing behind it yet.
    pub fn new(number: u16, name: String, source: Source) -> Self {
        Self {
            name,
            cgroup: None,
            number,
            source,
            state: State::Pausing,
            back_end: None,
            stream: None,
            connections: 0,
            heart: Heart::new(Instant::now(), BEAT.0, BEAT.1),
            patience: Patience::default(),
            stall: Stall::default(),
            until: None,
            stopped: None,
            cause: None,
            doubt: None,
            down: None,
            owed: false,
            news: Bucket::new(NEWS.0, NEWS.1, Instant::now()),
            blame: Blame::default(),
            orphans: Vec::new(),
        }
    }

    /// What the vmm is told of it.
    pub fn config(&self) -> DeviceConfig {
        self.source.config(&self.name)
    }

    /// Starts its process, or connects to somebody else's. For the start of a machine.
    pub fn start(&mut self, tolerate: &Layers) -> Result<(), BackEndError> {
        self.enter(State::Confining);
        self.launch(tolerate)
    }

    /// Waits until it is served, and takes the connection for the vmm. For the start of a machine.
    pub fn first_connection(&mut self, tolerate: &Layers) -> Result<UnixStream, BackEndError> {
        let until = Instant::now() + PATIENCE;
        let mut nobody = Context { vmm: None, tolerate, quarantine: &Quarantine::None };
        loop {
            if let Some(stream) = self.stream.take_if(|_| self.state == State::Serving) {
                self.connections += 1;
                self.blame.connected();
                return Ok(stream);
            }
            let Some(back_end) = &mut self.back_end else {
                // Somebody else's was connected to by `start`.
                self.happened(Event::Ready, &mut nobody);
                self.happened(Event::Opened, &mut nobody);
                continue;
            };
            let message = match back_end.link.await_one(until) {
                Ok(message) => message.ok_or(BackEndError::Late)?,
                Err(ipc::ChannelError::Closed) => {
                    back_end.process.words.read_last();
                    return Err(BackEndError::Died);
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(event) = self.heard(message, tolerate)? {
                self.happened(event, &mut nobody);
            }
        }
    }

    /// What a message of its process means.
    fn heard(&mut self, message: FromDevice, tolerate: &Layers) -> Result<Option<Event>, BackEndError> {
        let Some(back_end) = &mut self.back_end else { return Err(BackEndError::Died) };
        match message {
            ready @ FromDevice::Ready { .. } => {
                back_end.verify(&ready, tolerate)?;
                self.stream = back_end.hand_over(&self.name, self.number, &self.source, &self.orphans)?;
                Ok(Some(Event::Ready))
            }
            FromDevice::Serving { sectors } => {
                let (pid, what) = (back_end.process.pid(), self.source.what());
                tracing::info!("{}: process {pid} is confined and serves {what}, {sectors} sectors", self.name);
                Ok(Some(Event::Opened))
            }
            FromDevice::Attached => {
                let (pid, what) = (back_end.process.pid(), self.source.what());
                tracing::info!("{}: process {pid} is confined and serves a {what}", self.name);
                Ok(Some(Event::Opened))
            }
            FromDevice::Failed(reason) => Err(BackEndError::Failed(reason)),
            FromDevice::Alive(number) => {
                self.heart.answered(number, Instant::now());
                Ok(None)
            }
            // The link has shown it.
            FromDevice::Log(_) => Ok(None),
        }
    }

    fn enter(&mut self, state: State) {
        let now = Instant::now();
        self.until = match state {
            State::Confining | State::Opening => Some(now + PATIENCE),
            State::Leaving => Some(now + LEAVING),
            State::Serving | State::Dying | State::Pausing | State::GivenUp => None,
        };
        if state == State::Serving {
            self.heart = Heart::new(now, BEAT.0, BEAT.1);
            self.patience.serving(now);
        }
        self.state = state;
    }

    /// Looks the event up in the table, and does what it says.
    fn happened(&mut self, event: Event, context: &mut Context<'_>) {
        let (state, action) = table::next(self.state, event);
        if state != self.state {
            tracing::debug!("{}: {:?} in {:?}: {action:?}, {state:?}", self.name, event, self.state);
            self.enter(state);
        }
        match action {
            // Serving was part of looking at the process: what fails there is an event of its own.
            Action::Nothing | Action::Serve => {}
            Action::Launch => self.launch_again(context),
            Action::Connect => self.connect(context),
            Action::Kill => self.kill(context),
            Action::Plan => self.plan(context),
            Action::Abandon => self.abandon(context),
        }
    }

    fn launch(&mut self, tolerate: &Layers) -> Result<(), BackEndError> {
        self.patience.launched(Instant::now());
        (self.cause, self.doubt, self.owed) = (None, None, false);
        (self.stall, self.stopped) = (Stall::default(), None);
        if let Some(role) = self.source.role() {
            self.back_end = Some(BackEnd::start(&self.name, role, self.cgroup.as_deref(), tolerate)?);
        }
        if let Source::Foreign(disk) = &self.source {
            let error = |source| BackEndError::Foreign { path: disk.socket.clone(), source };
            self.stream = Some(disk.connect().map_err(error)?);
        }
        Ok(())
    }

    fn launch_again(&mut self, context: &mut Context<'_>) {
        match self.launch(context.tolerate) {
            Ok(()) if self.back_end.is_none() => {
                self.happened(Event::Ready, context);
                self.happened(Event::Opened, context);
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!("{}: {}", self.name, cause_chain(&error));
                self.cause = Some(("it could not be started".into(), true));
                self.happened(Event::Exited, context);
            }
        }
    }

    /// Gives the vmm the connection. While the machine is being started, it is kept.
    fn connect(&mut self, context: &mut Context<'_>) {
        let Some(vmm) = &mut context.vmm else { return };
        let Some(stream) = self.stream.take() else { return };
        let fault = self.blame.verdict();
        match vmm.say(&ToVmm::Replace { device: self.number, fault }, &[stream.as_fd()]) {
            Ok(()) => {
                self.connections += 1;
                self.blame.connected();
            }
            // The process sees that its connection is over, and ends.
            Err(error) => tracing::warn!("{}: the vmm does not take its connection: {error}", self.name),
        }
    }

    fn kill(&mut self, context: &mut Context<'_>) {
        match &self.back_end {
            Some(back_end) => back_end.process.kill(),
            // Somebody else's process is not ours to end: letting go of it is all.
            None => self.happened(Event::Exited, context),
        }
    }

    fn abandon(&mut self, context: &mut Context<'_>) {
        tracing::error!("{}: given up: {}", self.name, self.source.then());
        self.owed = true;
        self.settle(context);
    }

    /// The vmm must hear that a device was given up, or the guest waits for ever: a channel that is full is tried again.
    fn settle(&mut self, context: &mut Context<'_>) {
        let Some(vmm) = context.vmm.as_mut().filter(|_| self.owed) else { return };
        let said = vmm.say(&ToVmm::Abandon { device: self.number }, &[]);
        self.owed = matches!(said, Err(ipc::ChannelError::Full));
        if let Err(error) = said {
            tracing::debug!("{}: telling the vmm that it was given up: {error}", self.name);
        }
    }

    /// There is no process any more: when is there to be another?
    fn plan(&mut self, context: &mut Context<'_>) {
        self.stream = None;
        let now = Instant::now();
        self.down.get_or_insert(now);
        let (reason, fault) = self.cause.take().unwrap_or(("its connection is over".into(), true));
        // How somebody else's process ended is not for us to know.
        self.blame.ended(fault && self.source.role().is_some());
        match self.patience.ended(fault, now) {
            Some(due) => {
                tracing::warn!("{}: {reason}; another is tried", self.name);
                self.until = Some(due);
            }
            None => {
                tracing::error!("{}: {reason}; it fails again and again", self.name);
                self.happened(Event::Hopeless, context);
            }
        }
    }

    /// The process has ended.
    pub fn exited(&mut self, context: &mut Context<'_>) {
        let Some(mut back_end) = self.back_end.take() else { return };
        back_end.process.words.read_last();
        self.orphans = back_end.flows.take().map(Flows::into_orphans).unwrap_or_default();
        let (pid, status) = (back_end.process.pid(), back_end.process.wait());
        let how = status.map_or_else(|error| error.to_string(), manner);
        // From us, with a reason, or from an operator or the kernel.
        let outside = status.is_ok_and(ended_from_outside);
        let doubt = self.doubt.take().unwrap_or("it died".into());
        let (reason, fault) = self.cause.take().unwrap_or((doubt, !outside));
        self.cause = Some((format!("process {pid}: {reason} ({how})"), fault));
        self.happened(Event::Exited, context);
    }

    /// Its process has said something, or closed the channel, which is how it ends.
    pub fn hear(&mut self, context: &mut Context<'_>) {
        let mut packets = TURN;
        loop {
            let Some(back_end) = &mut self.back_end else { return };
            let heard = match back_end.link.hear(&mut packets) {
                Ok(None) => return,
                Ok(Some(message)) => self.heard(message, context.tolerate),
                Err(ipc::ChannelError::Closed) => return back_end.open = false,
                Err(error) => Err(error.into()),
            };
            match heard {
                Ok(Some(event)) => self.happened(event, context),
                Ok(None) => {}
                Err(error) => return self.broken(cause_chain(&error), context),
            }
        }
    }

    /// It is of no use. One that was killed from outside while it was looked at is not to blame: how it ends will tell.
    fn broken(&mut self, reason: String, context: &mut Context<'_>) {
        if let Some(back_end) = &mut self.back_end {
            back_end.open = false;
        }
        if self.state == State::Serving {
            self.cause = Some((reason, true));
            return self.happened(Event::Broken, context);
        }
        self.doubt = Some(reason);
        self.happened(Event::Missing, context);
    }

    /// The operator wants another process.
    pub fn restart(&mut self, context: &mut Context<'_>) {
        self.patience.renew();
        self.cause = Some(("the operator wants another".into(), false));
        self.happened(Event::Restart, context);
    }

    /// The operator gave its image another size: a process that serves it is told. One that is yet to open it, or the next,
    /// measures it by itself.
    pub fn resize(&mut self) -> Result<(), String> {
        let Source::Own(image) = &self.source else {
            return Err(format!("{} has no image of ours: if it is a disk, tell its back end", self.name));
        };
        let Some(back_end) = self.back_end.as_mut().filter(|_| self.state == State::Serving) else { return Ok(()) };
        back_end.resize(image).map_err(|error| format!("{}: {}", self.name, cause_chain(&error)))
    }

    /// Its process, if there is one.
    pub fn back_end(&self) -> Option<&BackEnd> {
        self.back_end.as_ref()
    }

    /// Reads what its process has written to standard error, all of it.
    pub fn read_last_words(&mut self) {
        if let Some(back_end) = &mut self.back_end {
            back_end.process.words.read_last();
        }
    }

    /// Reads what its process writes to standard error.
    pub fn read_words(&mut self) {
        if let Some(back_end) = &mut self.back_end {
            back_end.process.words.read();
        }
    }
}

#[cfg(test)]
mod tests;
