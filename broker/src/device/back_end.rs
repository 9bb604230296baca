//! One process of a device: its start, what it holds when it is confined, and the hand-over of its connection and of what it
//! serves: an image, or a way out.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ipc::ChannelError;
use ipc::control::{Attach, FromDevice, Orphan, ToDevice};
use policy::launch::limit_file_size;
use policy::{Layers, Role};

use super::Source;
use crate::images::Image;
use crate::link::{DeviceLink, Link};
use crate::logging;
use crate::nic::Nic;
use crate::nic::flows::Flows;
use crate::process::{Process, ProcessError, Program};

/// What it holds when it is confined: the standard descriptors and its control channel; a card's, its clock too.
const HOLDS: [&str; 5] = ["/dev/null", "/dev/null", "pipe:", "socket:", "anon_inode:[timerfd]"];

/// A process of a device, as long as it has not ended.
#[derive(Debug)]
pub struct BackEnd {
    pub process: Process,
    pub link: DeviceLink,
    /// A network card's way out.
    pub flows: Option<Flows>,
    role: Role,
    /// More may come on the link.
    pub open: bool,
    /// How far it may write into a raw image.
    limit: u64,
}

/// Why a device is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BackEndError {
    #[error("its process")]
    Process(#[from] ProcessError),
    #[error("talking to its process")]
    Channel(#[from] ChannelError),
    #[error("making its way out")]
    Flows(#[source] nix::Error),
    #[error("making its connection to the vmm, in {}", place.display())]
    Connection { place: PathBuf, source: io::Error },
    #[error("keeping its process from making its image larger than it is")]
    Size(#[source] io::Error),
    #[error("its process says: {0}")]
    Failed(String),
    #[error("its process ended before it served; its last words are above")]
    Died,
    #[error("its process was not ready in time")]
    Late,
    #[error("connecting to its back end at {}: is it running, and may you connect?", path.display())]
    Foreign { path: PathBuf, source: io::Error },
}

impl BackEnd {
    /// Starts the process of the device called `name`, which confines itself as `role`, in the control group of this
    /// `cgroup.procs`, if there is one. Must be called on the main thread.
    pub fn start(name: &str, role: Role, cgroup: Option<&Path>, tolerate: &Layers) -> Result<Self, BackEndError> {
        let (mut link, control) = Link::new(name)?;
        // Queued before the process exists: it finds it waiting.
        link.say(&ToDevice::Prepare { log_filter: logging::filter_text() }, &[])?;
        let file = if role == Role::DevNet { "bulkhead-dev-net" } else { "bulkhead-dev-blk" };
        let program = Program { file, arguments: &["--confined"], name, cgroup };
        let process = Process::start(program, tolerate, control.as_fd())?;
        Ok(Self { process, link, flows: None, role, open: true, limit: 0 })
    }

    /// Looks whether the process is confined, as it says by `ready`.
    pub fn verify(&self, ready: &FromDevice, tolerate: &Layers) -> Result<(), BackEndError> {
        let FromDevice::Ready { landlock_proved, missing } = ready else { return Err(BackEndError::Late) };
        let holds = if self.role == Role::DevNet { &HOLDS[..] } else { &HOLDS[..4] };
        Ok(self.process.verify(*landlock_proved, missing, holds, tolerate)?)
    }

    /// Hands over what device `number` serves, and one end of a new connection; the other end is for the vmm.
    pub fn hand_over(
        &mut self,
        name: &str,
        number: u16,
        source: &Source,
        orphans: &[Orphan],
    ) -> Result<Option<UnixStream>, BackEndError> {
        match source {
            Source::Own(image) => self.serve(image).map(Some),
            Source::Nic(nic) => self.attach(name, nic, nic.attach(number, orphans)).map(Some),
            Source::Foreign(_) => Ok(None),
        }
    }

    fn serve(&mut self, image: &Image) -> Result<UnixStream, BackEndError> {
        let (listener, stream) = connection()?;
        self.bound(image)?;
        self.link.say(&ToDevice::Serve(image.disk.serve()), &[image.file.as_fd(), listener.as_fd()])?;
        Ok(stream)
    }

    fn attach(&mut self, name: &str, nic: &Nic, attach: Attach) -> Result<UnixStream, BackEndError> {
        let (listener, stream) = connection()?;
        let (flows, theirs) = Flows::new(name, nic, &attach.orphans).map_err(BackEndError::Flows)?;
        self.link.say(&ToDevice::Attach(attach), &[listener.as_fd(), theirs.as_fd()])?;
        self.flows = Some(flows);
        Ok(stream)
    }
}

impl BackEnd {
    /// Its image has another size: the process measures it and tells the vmm.
    pub fn resize(&mut self, image: &Image) -> Result<(), BackEndError> {
        self.bound(image)?;
        Ok(self.link.say(&ToDevice::Resize, &[])?)
    }

    /// The process cannot make a raw image larger than it is, whoever takes it over. A qcow2 image grows by its nature. Where
    /// the operator made it smaller, what the process is doing just now may still end beyond.
    fn bound(&mut self, image: &Image) -> Result<(), BackEndError> {
        let Some(bytes) = image.fixed_size().map_err(BackEndError::Size)? else { return Ok(()) };
        self.limit = self.limit.max(bytes);
        limit_file_size(self.process.pid(), self.limit).map_err(|error| BackEndError::Size(error.into()))
    }
}

/// A listening socket with one connection pending, and that connection: the vhost-user library accepts connections
/// itself. The socket has a name only inside this function, in a directory that nobody else can enter.
fn connection() -> Result<(UnixListener, UnixStream), BackEndError> {
    let place = std::env::temp_dir();
    let failed = |source| BackEndError::Connection { place: place.clone(), source };
    // mkdtemp(3) puts others for the last six letters.
    let template = place.join(format!("bulkhead-{}", "X".repeat(6)));
    let dir = nix::unistd::mkdtemp(&template).map_err(|error| failed(error.into()))?;
    let path = dir.join("socket");
    let made = UnixListener::bind(&path).and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
    // What is not there need not be removed; what cannot be removed harms nobody.
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir(&dir);
    made.map_err(failed)
}
