//! What the broker and the process behind one device say to each other. A disk's:
//!
//! ```text
//! broker                          device
//!   Prepare ──────────────────────►  confines itself
//!   ◄────────────────────────────── Ready
//!   verifies through /proc
//!   Serve + image, listener ───────►  opens no file: makes a disk of the image
//!   ◄────────────────────────────── Serving
//!   Beat, Resize ──────────────────► ◄── Alive
//!   ◄────────────────────────────── Failed
//! ```
//!
//! A network card's is told Attach instead, which comes with a listener and the channel by which it asks for flows
//! ([`crate::flow`]), and says Attached.
//!
//! What a device's data passes through, vhost-user between vmm and device, is not the broker's.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use super::device::MAX_QUEUES;
use super::short;
use crate::channel::Message;
use crate::flow::MAX_FLOWS;
use crate::telemetry::Record;

/// Longest serial number of a disk in bytes (virtio 1.2, §5.2.6).
pub const MAX_SERIAL: usize = 20;

/// What an image's bytes mean. Stated by the operator, never guessed: a guest can write whatever would be guessed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's own, versions 2 and 3.
    Qcow2,
}

/// How far a completed write has come, and what a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// Past the host's page cache.
    None,
    /// In the host's page cache; a flush brings it to the medium.
    Writeback,
    /// In the host's page cache; a flush does nothing.
    Unsafe,
}

/// What the broker says to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDevice {
    /// It is waiting when the process starts.
    Prepare {
        /// Which log events to send, as tracing-subscriber's filters have it.
        log_filter: String,
    },
    /// The process was found to be confined: serve this. Comes with the open image, whose lock the broker holds, and a
    /// listening socket on which the vmm's connection is pending.
    Serve(Serve),
    /// The process was found to be confined: be this network card. Comes with a listening socket on which the vmm's
    /// connection is pending, and the channel for flows.
    Attach(Attach),
    /// Are you there?
    Beat(u32),
    /// The image has another size.
    Resize,
}

/// See [`ToDevice::Serve`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// The image's format.
    pub format: Format,
    /// How far a write goes.
    pub cache: Cache,
    /// Refuse writing.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number.
    pub serial: String,
    /// Virtqueues.
    pub queues: u16,
}

/// A connection that nobody serves any more: the guest's port, and its peer.
pub type Orphan = (u16, SocketAddrV4);

/// See [`ToDevice::Attach`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The guest's address on its link.
    pub mac: [u8; 6],
    /// TCP connections that the guest may believe to have, by a process that is gone: its port, and its peer.
    pub orphans: Vec<Orphan>,
}

/// What a device says to the broker. All of it is untrusted there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDevice {
    /// It has confined itself.
    Ready {
        /// It saw Landlock deny something: this does not show from outside.
        landlock_proved: bool,
        /// Layers that it does without, by name.
        missing: Vec<String>,
    },
    /// It accepts the vmm's connection next.
    Serving {
        /// Size of the disk in sectors of 512 bytes.
        sectors: u64,
    },
    /// A network card accepts the vmm's connection next.
    Attached,
    /// The answer to [`ToDevice::Beat`], from a thread that does no I/O.
    Alive(u32),
    /// Something to log.
    Log(Record),
    /// The last message: it cannot be what it should, for this reason.
    Failed(String),
}

impl Message for ToDevice {
    fn descriptors(&self) -> usize {
        if let Self::Serve(_) | Self::Attach(_) = self { 2 } else { 0 }
    }

    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Serve(serve) if serve.serial.len() > MAX_SERIAL => {
                Err(format!("a serial number of {} bytes", serve.serial.len()))
            }
            Self::Serve(serve) if !(1..=MAX_QUEUES).contains(&serve.queues) => Err(format!("{} queues", serve.queues)),
            Self::Prepare { log_filter } => short(log_filter),
            Self::Attach(attach) if attach.mac[0] & 1 != 0 => Err("a group address for a network card".into()),
            Self::Attach(attach) if attach.orphans.len() > MAX_FLOWS => {
                Err(format!("{} connections without a process", attach.orphans.len()))
            }
            Self::Serve(_) | Self::Attach(_) | Self::Beat(_) | Self::Resize => Ok(()),
        }
    }
}

impl Message for FromDevice {
    /// Nothing that a device holds is for the broker.
    fn descriptors(&self) -> usize {
        0
    }

    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Ready { missing, .. } => missing.iter().try_for_each(|name| short(name)),
            Self::Log(record) => record.validate(),
            Self::Failed(reason) => short(reason),
            Self::Serving { .. } | Self::Attached | Self::Alive(_) => Ok(()),
        }
    }
}
