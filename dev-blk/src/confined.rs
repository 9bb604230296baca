//! The disk process of `bulkhead run`: it sheds every right before it is given anything, and opens nothing after.
//!
//! Descriptor 3 is its control channel. The broker says what to log; the process confines itself to the profile of its role
//! and says Ready; the broker looks for itself, and then sends the image and a listening socket on which the vmm's
//! connection is pending. The process serves that one connection and ends with it: after a restart there is a new process,
//! never an old one with a second connection.
//!
//! A thread that does no I/O on the disk answers the broker, so that its silence means a process that is stuck.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ipc::ChannelError;
use ipc::control::{self, FromDevice, Serve, ToDevice};
use ipc::outcome::cause_chain;
use ipc::telemetry::Forward;
use policy::confine::{ConfineError, Confinement, confine};
use policy::{Layer, Layers, Role, last_words};
use tracing_subscriber::prelude::*;

use crate::announce::Announcer;
use crate::device::{BadSerial, Device};
use crate::disk::open::{self, OpenError, Source};
use crate::disk::{Cache, Format};
use crate::server::{self, ServeError};
use back_end::inherit::{Inherited, NotInherited};

/// The descriptor of the control channel.
const CONTROL: i32 = 3;
/// How long a worker waits for a next request before it sleeps (see `ipc::spin`).
const SPIN: Duration = Duration::from_micros(30);
/// Exit code: the disk could not be served.
const FAILED: u8 = 4;

type Uplink = ipc::uplink::Uplink<FromDevice, ToDevice>;

/// Why the disk is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfinedError {
    #[error("--confined is for `bulkhead run`, which passes the control channel")]
    Usage(#[from] NotInherited),
    #[error("installing the handlers of last words")]
    LastWords(#[source] nix::Error),
    #[error("talking to the broker")]
    Channel(#[from] ChannelError),
    #[error("confining the disk's process")]
    Confine(#[from] ConfineError),
    #[error("using the image")]
    Open(#[from] OpenError),
    #[error("describing the disk")]
    Serial(#[from] BadSerial),
    #[error("starting the control thread")]
    Thread(#[source] std::io::Error),
    #[error("serving the disk")]
    Serve(#[from] ServeError),
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
    let _ = nix::sys::prctl::set_name(c"bulkhead-dev-blk");
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
    if let (ToDevice::Prepare { log_filter }, _) = uplink.wait()? {
        log_to_broker(&log_filter, uplink);
    }
    let attestation = confine(&Confinement { role: Role::DevBlk, keep: &[uplink.as_fd()], tolerate })?;
    let missing = attestation.missing.iter().map(ToString::to_string).collect();
    uplink.say(&FromDevice::Ready { landlock_proved: attestation.landlock_proved, missing })?;
    let (ToDevice::Serve(what), descriptors) = uplink.wait()? else { return Err(ConfinedError::Incomplete) };
    // The channel has checked that there are two.
    let Ok([image, listener]) = <[OwnedFd; 2]>::try_from(descriptors) else { return Err(ConfinedError::Incomplete) };
    serve(uplink, &what, image, listener)
}

fn serve(uplink: &Arc<Uplink>, what: &Serve, image: OwnedFd, listener: OwnedFd) -> Result<(), ConfinedError> {
    let disk = open::open(open::Options {
        source: Source::Descriptor(image),
        format: what.format.into(),
        cache: what.cache.into(),
        read_only: what.read_only,
        allow_backing: false,
    })?;
    let sectors = disk.capacity();
    let device = Arc::new(Device::new(disk, &what.serial, what.queues)?);
    let announcer = Arc::new(Announcer::default());
    let mut listener = server::inherited(listener)?;
    uplink.say(&FromDevice::Serving { sectors })?;
    let answering = (uplink.clone(), device.clone(), announcer.clone());
    let thread = std::thread::Builder::new().name("control".into());
    thread.spawn(move || answer(&answering.0, &answering.1, &answering.2)).map_err(ConfinedError::Thread)?;
    Ok(server::serve(&device, &mut listener, &announcer, SPIN)?)
}

/// Answers the broker. When it is gone, or speaks out of turn, there is nobody to serve for.
fn answer(uplink: &Uplink, device: &Device, announcer: &Announcer) {
    loop {
        let answered = match uplink.wait() {
            Ok((ToDevice::Beat(number), _)) => uplink.say(&FromDevice::Alive(number)),
            Ok((ToDevice::Resize, _)) => {
                match device.measure().and_then(|sectors| announcer.config_changed().map(|told| (sectors, told))) {
                    Ok((sectors, told)) => tracing::info!("{sectors} sectors now; the guest is told: {told}"),
                    Err(error) => tracing::error!("measuring the image again: {error}"),
                }
                Ok(())
            }
            // The table permits none of these now.
            Ok((ToDevice::Prepare { .. } | ToDevice::Serve(_) | ToDevice::Attach(_), _)) => Ok(()),
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

impl From<control::Format> for Format {
    fn from(format: control::Format) -> Self {
        match format {
            control::Format::Raw => Self::Raw,
            control::Format::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<control::Cache> for Cache {
    fn from(cache: control::Cache) -> Self {
        match cache {
            control::Cache::None => Self::None,
            control::Cache::Writeback => Self::Writeback,
            control::Cache::Unsafe => Self::Unsafe,
        }
    }
}
