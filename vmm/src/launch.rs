//! What the broker and the vmm say to each other: the launch message, then requests one way and reports the other.
//!
//! Messages are postcard-encoded, one a packet on a SEQPACKET socket. Each side treats the other's bytes as hostile: a
//! packet has a maximum size, must decode completely, and is checked before use.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cpu::CpuModel;
use crate::outcome::Outcome;
use crate::virtio::{DeviceEvent, MAX_BOUNCE, MIN_BOUNCE};

/// Version of all messages here. Both programs come from one build, so versions must be equal.
pub const VERSION: u32 = 2;
/// Largest packet in bytes.
pub const MAX_PACKET: usize = 64 << 10;
/// Longest guest command line in bytes; kernels have lower limits of their own.
pub const MAX_COMMAND_LINE: usize = 16 << 10;
/// Least guest RAM in bytes.
pub const MIN_MEMORY: u64 = 1 << 20;
/// Most guest RAM in bytes: what 36 physical address bits reach, less the PCI hole.
pub const MAX_MEMORY: u64 = 63 << 30;

/// Most disks.
pub const MAX_DISKS: usize = 16;
/// Longest name of a device in bytes.
pub const MAX_NAME: usize = 32;

/// A disk: a process that speaks vhost-user, behind a connected socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// What messages call it.
    pub name: String,
    /// Stream socket, connected to a vhost-user-blk back end.
    pub socket: RawFd,
    /// Bytes of its bounce region, a multiple of 4 KiB.
    pub bounce: u64,
}

/// Everything the vmm needs to know. Descriptors are inherited across exec and named by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Guest RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// The guest kernel's command line.
    pub command_line: String,
    /// Name of the engine.
    pub engine: String,
    /// The guest's processor, as [`CpuModel`] parses it.
    pub cpu: String,
    /// A reset of the guest ends the machine.
    pub no_reboot: bool,
    /// Report counters at the end.
    pub stats: bool,
    /// Log as JSON lines.
    pub json: bool,
    /// CLOCK_MONOTONIC in nanoseconds when the broker began to start the vmm.
    pub started_ns: u64,
    /// Regular file with the kernel, readable.
    pub kernel: RawFd,
    /// Regular file with the initrd, readable.
    pub initrd: Option<RawFd>,
    /// Stream socket that carries the first serial port's bytes both ways.
    pub console: Option<RawFd>,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskConfig>,
}

/// What the broker asks of a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Press the ACPI power button: the guest shuts down if it cares to.
    PowerButton,
    /// End now.
    Stop,
}

/// What the vmm tells the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The first guest instruction is next.
    Started {
        /// Boot protocol of the kernel.
        protocol: String,
        /// Engine in use.
        engine: String,
        /// Nanoseconds since [`LaunchConfig::started_ns`].
        startup_ns: u64,
    },
    /// The guest reset; the machine starts again.
    Rebooted {
        /// What caused it.
        cause: String,
    },
    /// Something became of a device's process or driver.
    Device {
        /// The device's name.
        name: String,
        /// What.
        event: DeviceEvent,
    },
    /// The last message.
    Ended {
        /// Why.
        outcome: Outcome,
        /// Counters, if asked for: name and value, in order.
        stats: Vec<(String, u64)>,
    },
}

/// Why a message could not be exchanged or accepted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LaunchError {
    #[error("making the control channel")]
    Make(#[source] nix::Error),
    #[error("receiving on the control channel")]
    Receive(#[source] nix::Error),
    #[error("sending on the control channel")]
    Send(#[source] nix::Error),
    #[error("the other side closed the control channel")]
    Closed,
    #[error("a control message of {0} bytes: at most {MAX_PACKET} are allowed")]
    Size(usize),
    #[error("a control message that does not decode")]
    Decode(#[source] postcard::Error),
    #[error("a control message with {0} bytes too many at its end")]
    Trailing(usize),
    #[error(
        "launch message version {found}, this program speaks {VERSION}: install bulkhead and bulkhead-vmm together"
    )]
    Version { found: u32 },
    #[error("launch message: {0}")]
    Invalid(String),
}

impl LaunchConfig {
    /// Checks everything that can be checked without touching a descriptor.
    pub fn validate(&self) -> Result<(), LaunchError> {
        if self.version != VERSION {
            return Err(LaunchError::Version { found: self.version });
        }
        let invalid = |what: String| Err(LaunchError::Invalid(what));
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(4096) {
            return invalid(format!("{} bytes of memory: 1 MiB to 63 GiB in steps of 4 KiB", self.memory));
        }
        if self.command_line.len() > MAX_COMMAND_LINE {
            return invalid(format!("a command line of {} bytes", self.command_line.len()));
        }
        if let Err(error) = self.cpu.parse::<CpuModel>() {
            return invalid(error.to_string());
        }
        self.validate_disks()?;
        let named = [Some(self.kernel), self.initrd, self.console].into_iter().flatten();
        let mut fds: Vec<RawFd> = named.chain(self.disks.iter().map(|disk| disk.socket)).collect();
        if fds.iter().any(|fd| *fd <= libc::STDERR_FILENO) {
            return invalid(format!("descriptors {fds:?}: 0 to 2 are not to be handed over"));
        }
        fds.sort_unstable();
        if fds.windows(2).any(|w| w[0] == w[1]) {
            return invalid(format!("descriptors {fds:?} are not distinct"));
        }
        Ok(())
    }
}

impl LaunchConfig {
    fn validate_disks(&self) -> Result<(), LaunchError> {
        let invalid = |what: String| Err(LaunchError::Invalid(what));
        if self.disks.len() > MAX_DISKS {
            return invalid(format!("{} disks: at most {MAX_DISKS} are possible", self.disks.len()));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let name = &disk.name;
            if name.is_empty() || name.len() > MAX_NAME || self.disks[..index].iter().any(|d| d.name == *name) {
                return invalid(format!("a disk named {name:?}: names have 1 to {MAX_NAME} bytes and are distinct"));
            }
            if !(MIN_BOUNCE..=MAX_BOUNCE).contains(&disk.bounce) || !disk.bounce.is_multiple_of(4096) {
                return invalid(format!(
                    "a bounce region of {} bytes for {name}: 1 MiB to 1 GiB in steps of 4 KiB",
                    disk.bounce
                ));
            }
        }
        Ok(())
    }
}

/// Encodes a message. Fails only if it is too large.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LaunchError> {
    let bytes = postcard::to_stdvec(message).map_err(LaunchError::Decode)?;
    if bytes.len() > MAX_PACKET { Err(LaunchError::Size(bytes.len())) } else { Ok(bytes) }
}

/// Decodes a packet, all of it.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, LaunchError> {
    if packet.len() > MAX_PACKET {
        return Err(LaunchError::Size(packet.len()));
    }
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(LaunchError::Trailing(rest.len())),
        Err(source) => Err(LaunchError::Decode(source)),
    }
}

/// One end of the control channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Wraps a SEQPACKET socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a message without blocking. A full socket is an error: neither side sends enough to fill one.
    pub fn send<T: Serialize>(&self, message: &T) -> Result<(), LaunchError> {
        let bytes = encode(message)?;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.0.as_raw_fd(), &bytes, flags).map_err(LaunchError::Send)?;
        Ok(())
    }

    /// Waits for a message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<T, LaunchError> {
        self.receive_with(MsgFlags::empty())
    }

    /// Takes a message if one is there.
    pub fn try_receive<T: DeserializeOwned>(&self) -> Result<Option<T>, LaunchError> {
        match self.receive_with(MsgFlags::MSG_DONTWAIT) {
            Ok(message) => Ok(Some(message)),
            Err(LaunchError::Receive(Errno::EAGAIN)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: MsgFlags) -> Result<T, LaunchError> {
        // One byte more than allowed shows that a packet was too long, since the rest of it is lost.
        let mut packet = vec![0; MAX_PACKET + 1];
        loop {
            match recv(self.0.as_raw_fd(), &mut packet, flags) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(LaunchError::Closed),
                Ok(length) => return decode(&packet[..length]),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(LaunchError::Receive(source)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
