//! The process of `bulkhead run`: it sheds every right before it is given anything, and opens nothing after.
//!
//! Descriptor 3 is its control channel. The broker says what to log; the process confines itself to the profile of its role
//! and says Ready; the broker looks for itself, and then sends a listening socket on which the vmm's connection is pending,
//! and the channel by which the process asks for flows. The process serves that one connection and ends with it.
//!
//! A thread that has nothing to do with packets answers the broker.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use back_end::inherit::{Inherited, NotInherited};
use ipc::ChannelError;
use ipc::control::{Attach, FromDevice, ToDevice};
use ipc::outcome::cause_chain;
use ipc::telemetry::Forward;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use policy::confine::{ConfineError, Confinement, confine};
use policy::{Layer, Layers, Role, last_words};
use tracing_subscriber::prelude::*;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::backend::Backend;
use crate::card::Card;
use crate::user::User;

/// The descriptor of the control channel.
const CONTROL: i32 = 3;
/// Exit code: the card could not be served.
const FAILED: u8 = 4;

type Uplink = ipc::uplink::Uplink<FromDevice, ToDevice>;

/// Why the card is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfinedError {
    #[error("--confined is for `bulkhead run`, which passes the control channel")]
    Usage(#[from] NotInherited),
    #[error("installing the handlers of last words")]
    LastWords(#[source] nix::Error),
    #[error("making a clock")]
    Timer(#[source] nix::Error),
    #[error("talking to the broker")]
    Channel(#[from] ChannelError),
    #[error("confining the card's process")]
    Confine(#[from] ConfineError),
    #[error("making the link")]
    Link(#[source] std::io::Error),
    #[error("starting the control thread")]
    Thread(#[source] std::io::Error),
    #[error("waiting for flows")]
    Wait(#[source] std::io::Error),
    #[error("vhost-user: {0}")]
    Protocol(Error),
    #[error("a message without what belongs to it")]
    Incomplete,
}

/// The whole life of the process.
pub fn main(mut inherited: Inherited, allow_missing: Vec<Layer>) -> ExitCode {
    let socket = match inherited.take(CONTROL) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("{}", cause_chain(&ConfinedError::from(error)));
            return ExitCode::from(FAILED);
        }
    };
    // Executed by descriptor, the process would be called by a number.
    let _ = nix::sys::prctl::set_name(c"bulkhead-dev-net");
    let uplink = Arc::new(Uplink::new(socket));
    match live(&uplink, &allow_missing.into_iter().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = cause_chain(&error);
            if uplink.say(&FromDevice::Failed(reason.clone())).is_err() {
                eprintln!("{reason}");
            }
            ExitCode::from(FAILED)
        }
    }
}

/// In the order of the conversation.
fn live(uplink: &Arc<Uplink>, tolerate: &Layers) -> Result<(), ConfinedError> {
    last_words::install().map_err(ConfinedError::LastWords)?;
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(ConfinedError::Timer)?;
    if let (ToDevice::Prepare { log_filter }, _) = uplink.wait()? {
        log_to_broker(&log_filter, uplink);
    }
    let keep = [uplink.as_fd(), timer.as_fd()];
    let attestation = confine(&Confinement { role: Role::DevNet, keep: &keep, tolerate })?;
    let missing = attestation.missing.iter().map(ToString::to_string).collect();
    uplink.say(&FromDevice::Ready { landlock_proved: attestation.landlock_proved, missing })?;
    let (ToDevice::Attach(what), descriptors) = uplink.wait()? else { return Err(ConfinedError::Incomplete) };
    // The channel has checked that there are two.
    let Ok([listener, flows]) = <[OwnedFd; 2]>::try_from(descriptors) else { return Err(ConfinedError::Incomplete) };
    serve(uplink, &what, listener, flows, timer)
}

fn serve(
    uplink: &Arc<Uplink>,
    what: &Attach,
    listener: OwnedFd,
    flows: OwnedFd,
    timer: TimerFd,
) -> Result<(), ConfinedError> {
    let link = User::new(what.mac, flows, what.orphans.clone()).map_err(ConfinedError::Link)?;
    let mut listener = Listener::from(UnixListener::from(listener));
    uplink.say(&FromDevice::Attached)?;
    let answering = uplink.clone();
    let thread = std::thread::Builder::new().name("control".into());
    thread.spawn(move || answer(&answering)).map_err(ConfinedError::Thread)?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(Backend::new(what.mac, Card::new(link, timer), memory.clone()));
    let daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), memory);
    let mut daemon = daemon.map_err(ConfinedError::Protocol)?;
    backend.wait_with(&daemon).map_err(ConfinedError::Wait)?;
    daemon.start(&mut listener).map_err(ConfinedError::Protocol)?;
    match daemon.wait() {
        // How a front end leaves.
        Err(Error::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) | Ok(()) => Ok(()),
        Err(error) => Err(ConfinedError::Protocol(error)),
    }
}

/// Answers the broker. When it is gone, or speaks out of turn, there is nobody to serve for.
fn answer(uplink: &Uplink) {
    loop {
        let answered = match uplink.wait() {
            Ok((ToDevice::Beat(number), _)) => uplink.say(&FromDevice::Alive(number)),
            // The table permits none of these now, or a card has nothing to do with it.
            Ok((ToDevice::Prepare { .. } | ToDevice::Serve(_) | ToDevice::Attach(_) | ToDevice::Resize, _)) => Ok(()),
            Err(error) => Err(error),
        };
        match answered {
            // A broker that does not read is told nothing; it asks again.
            Ok(()) | Err(ChannelError::Full) => {}
            Err(ChannelError::Closed) => std::process::exit(0),
            Err(error) => {
                eprintln!("talking to the broker: {}", cause_chain(&error));
                std::process::exit(FAILED.into());
            }
        }
    }
}

/// Events go to the broker: this process has no log of its own.
fn log_to_broker(filter: &str, uplink: &Arc<Uplink>) {
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let uplink = uplink.clone();
    let forward = Forward::new(move |record: &_| uplink.say(&FromDevice::Log(Clone::clone(record))).is_ok());
    // Nothing has set another before.
    let _ = tracing_subscriber::registry().with(filter).with(forward).try_init();
}
