//! The vhost-user front end of one device: what talks to the device process, so that nobody else has to wait for it.
//!
//! Two threads. The *control* thread speaks the protocol (`connection`), which means blocking on a socket whose other
//! end is hostile. The *bell* thread (`bell`) listens for calls and hang-ups, and is the control thread's watchdog. The
//! device model, on the processor's thread, sends [`Command`]s and takes [`Event`]s; neither ever blocks it.

mod bell;
mod connection;
mod descriptors;
mod stall;
mod storm;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use bell::{Bell, Watch};
use connection::Connection;
pub use connection::{Offer, Wanted, towards_device};
pub use descriptors::Kick;
use descriptors::borrow;

use crate::outcome::cause_chain;

/// How long a device may take to answer a message.
const ANSWER: Duration = Duration::from_secs(5);
/// Least time between two changes of a configuration.
const CONFIG_PAUSE: Duration = Duration::from_millis(10);

/// What the device model asks for.
pub enum Command {
    /// Use this socket from now on; its connection is number `serial`.
    Adopt {
        /// Number of the connection.
        serial: u64,
        /// A connected vhost-user socket.
        socket: OwnedFd,
    },
    /// Start the queues of connection `serial` with these features.
    Start {
        /// Number of the connection.
        serial: u64,
        /// How many of its queues.
        queues: u16,
        /// Features towards the device.
        features: u64,
    },
    /// Stop the queues.
    Stop {
        /// Number of the connection.
        serial: u64,
    },
    /// Give the connection up.
    Drop {
        /// Number of the connection.
        serial: u64,
    },
    /// The device has sent a request of its own.
    Listen,
    /// End the thread.
    End,
}

/// What happened.
pub enum Event {
    /// A connection is there. Kicks are one a queue.
    Offered {
        /// Number of the connection.
        serial: u64,
        /// What the device offers.
        offer: Offer,
        /// Our ends of its kicks.
        kicks: Vec<Kick>,
    },
    /// The queues run.
    Started {
        /// Number of the connection.
        serial: u64,
    },
    /// The queues are at rest.
    Stopped {
        /// Number of the connection.
        serial: u64,
    },
    /// The configuration changed to this.
    Config {
        /// Number of the connection.
        serial: u64,
        /// All of it.
        config: Vec<u8>,
    },
    /// Requests are out, and none came back for so long.
    Stalled {
        /// Number of the connection.
        serial: u64,
        /// For how long.
        long: Duration,
    },
    /// The connection is over.
    Lost {
        /// Number of the connection.
        serial: u64,
        /// Why.
        reason: String,
    },
}

/// Where events go, and how the processor is told of them.
pub struct Port {
    events: Mutex<VecDeque<Event>>,
    arrived: Condvar,
    due: AtomicBool,
    attention: Box<dyn Fn() + Send + Sync>,
}

impl Port {
    /// `attention` asks the processor to serve its devices.
    pub fn new(attention: Box<dyn Fn() + Send + Sync>) -> Self {
        let (events, arrived) = (Mutex::new(VecDeque::new()), Condvar::new());
        Self { events, arrived, due: AtomicBool::new(false), attention }
    }

    /// Something is to be served. Asks only once until it is.
    pub fn ring(&self) {
        if !self.due.swap(true, Ordering::AcqRel) {
            (self.attention)();
        }
    }

    /// Something is to be served, and whoever asks is the one who serves it.
    pub fn set_due(&self) {
        self.due.store(true, Ordering::Release);
    }

    /// True once after any number of [`Self::ring`]s.
    pub fn take_due(&self) -> bool {
        self.due.load(Ordering::Relaxed) && self.due.swap(false, Ordering::AcqRel)
    }

    /// Takes the oldest event.
    pub fn take(&self) -> Option<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Waits for an event, for `limit` at most. For the start of a machine alone.
    pub fn wait(&self, limit: Duration) -> Option<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.arrived.wait_timeout_while(events, limit, |events| events.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    /// Of several configurations that were not looked at, the last counts: a device cannot pile them up.
    fn post(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Event::Config { .. }, Some(Event::Config { .. })) = (&event, events.back()) {
            events.pop_back();
        }
        events.push_back(event);
        drop(events);
        self.arrived.notify_all();
        self.ring();
    }
}

/// The front end of one device. Dropping it ends its threads and its connection.
pub struct FrontEnd {
    commands: Sender<Command>,
    /// Events for the device model.
    pub port: Arc<Port>,
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
}

impl FrontEnd {
    /// Starts the threads of the device called `name`.
    pub fn new(name: &str, wanted: Wanted, port: Arc<Port>) -> std::io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let (commands, received) = channel();
        let mut front_end = Self { commands, port, bell, threads: Vec::new() };
        let (bell, port) = (front_end.bell.clone(), front_end.port.clone());
        front_end.spawn(format!("{name}-ctl"), move || control(&received, &bell, &port, &wanted))?;
        let (bell, port, commands) = (front_end.bell.clone(), front_end.port.clone(), front_end.commands.clone());
        front_end.spawn(format!("{name}-bell"), move || bell.run(&port, &commands))?;
        Ok(front_end)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Sends a command; the thread is there as long as the value.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Outstanding requests must be back within `time`, or the connection is shut down.
    pub fn expect_drained(&self, time: Duration) {
        self.bell.arm(Watch::Drain, time);
    }

    /// They are.
    pub fn drained(&self) {
        self.bell.disarm(Watch::Drain);
    }

    /// Completions were found: calls are not in vain.
    pub fn progress(&self, completions: u16) {
        self.bell.progress.fetch_add(u64::from(completions), Ordering::Relaxed);
    }

    /// Whether requests are out that the device is to complete: [`Event::Stalled`] tells if it does not.
    pub fn expect_completions(&self, out: bool) {
        self.bell.out.store(out, Ordering::Relaxed);
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.send(Command::End);
        self.bell.end();
        for thread in self.threads.drain(..) {
            // A panic there was shown when it happened.
            let _ = thread.join();
        }
    }
}

/// The control thread.
fn control(commands: &Receiver<Command>, bell: &Bell, port: &Port, wanted: &Wanted) {
    let mut current: Option<(u64, Connection)> = None;
    while let Ok(command) = commands.recv() {
        bell.arm(Watch::Answer, ANSWER);
        let done = match command {
            Command::End => return,
            Command::Adopt { serial, socket } => {
                current = None;
                adopt(serial, socket, bell, port, wanted).map(|connection| current = Some((serial, connection)))
            }
            Command::Drop { serial } => {
                if current.as_ref().is_some_and(|(number, _)| *number == serial) {
                    bell.release();
                    current = None;
                }
                Ok(())
            }
            other => match &mut current {
                Some((serial, connection)) => obey(other, *serial, connection, port),
                None => Ok(()),
            },
        };
        bell.disarm(Watch::Answer);
        if let Err((serial, reason)) = done {
            bell.release();
            current = None;
            port.post(Event::Lost { serial, reason });
        }
    }
}

type Done = Result<(), (u64, String)>;

fn adopt(serial: u64, socket: OwnedFd, bell: &Bell, port: &Port, wanted: &Wanted) -> Result<Connection, (u64, String)> {
    let failed = |error: &dyn std::error::Error| (serial, cause_chain(error));
    bell.guard(serial, socket.as_fd()).map_err(|e| failed(&e))?;
    // Guarding ended the last connection, and its deadline with it.
    bell.arm(Watch::Answer, ANSWER);
    let (connection, offer, kicks) = Connection::open(UnixStream::from(socket), wanted).map_err(|e| failed(&e))?;
    let requests = connection.requests.as_ref().map(borrow);
    bell.listen(connection.calls.iter().map(borrow), requests).map_err(|e| failed(&e))?;
    port.post(Event::Offered { serial, offer, kicks });
    Ok(connection)
}

fn obey(command: Command, current: u64, connection: &mut Connection, port: &Port) -> Done {
    let failed = |error: connection::ConnectionError| (current, cause_chain(&error));
    match command {
        Command::Start { serial, queues, features } if serial == current => {
            connection.start(features, queues).map_err(failed)?;
            port.post(Event::Started { serial });
        }
        Command::Stop { serial } if serial == current => {
            connection.stop().map_err(failed)?;
            port.post(Event::Stopped { serial });
        }
        Command::Listen => listen(current, connection, port)?,
        _ => {}
    }
    Ok(())
}

/// Serves requests of the device's own, if there are any: the command may be of a connection before this one. The channel
/// is watched edge-triggered, so all that is there is taken, but slowly: no configuration changes more often, and a device
/// that keeps announcing runs into the watchdog.
fn listen(serial: u64, connection: &mut Connection, port: &Port) -> Done {
    let failed = |error: &dyn std::error::Error| (serial, cause_chain(error));
    let Some(requests) = &mut connection.requests else { return Ok(()) };
    let mut served = false;
    while poll(&mut [PollFd::new(borrow(requests), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    {
        requests.handle_request().map_err(|e| failed(&e))?;
        std::thread::sleep(CONFIG_PAUSE);
        served = true;
    }
    if served {
        let config = connection.config().map_err(|e| failed(&e))?;
        port.post(Event::Config { serial, config });
    }
    Ok(())
}
