//! What broker and vmm say to each other of a device that a third process serves.

use serde::{Deserialize, Serialize};

use super::short;
use crate::specimen::Specimen;

/// Most devices: with kernel, initrd and console their sockets fit into one message.
pub const MAX_DEVICES: usize = 16;
/// Longest name of a device in bytes.
pub const MAX_NAME: usize = 32;
/// Least bytes of a bounce region.
pub const MIN_BOUNCE: u64 = 1 << 20;
/// Most bytes of a bounce region.
pub const MAX_BOUNCE: u64 = 1 << 30;

/// Most queues of a device.
pub const MAX_QUEUES: u16 = 16;

/// Most queues of all devices together: each takes descriptors in the vmm.
pub const MAX_ALL_QUEUES: u16 = 64;

/// What a device is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// virtio-blk.
    Disk,
    /// virtio-net.
    Nic,
}

/// Which memory a device's process is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DmaMode {
    /// Its bounce region alone, through which the vmm copies what passes.
    #[default]
    Bounce,
    /// All of guest RAM beside a region with its rings: it reads and writes what it likes.
    Shared,
}

/// A device: a process that speaks vhost-user, behind a connected stream socket that comes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// What messages call it.
    pub name: String,
    /// What the guest sees.
    pub kind: DeviceKind,
    /// Bytes of its bounce region, a multiple of 4 KiB.
    pub bounce: u64,
    /// Virtqueues that the guest is offered.
    pub queues: u16,
    /// Which memory its process is given.
    pub dma: DmaMode,
}

/// What became of a device's process or driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceEvent {
    /// The process behind it is gone or was dropped, for this reason. Requests wait for another.
    Lost(String),
    /// A process is behind it again.
    Restored,
    /// It has requests, and has completed none for so many seconds. Told again while that lasts.
    Stalled(u32),
    /// It asks its driver for a reset, for this reason.
    NeedsReset(String),
    /// This request crashed its process each time when it was the only one there. It has failed, and only it.
    Quarantined(Box<Specimen>),
}

impl DeviceEvent {
    pub(super) fn validate(&self) -> Result<(), String> {
        match self {
            Self::Lost(reason) | Self::NeedsReset(reason) => short(reason),
            Self::Quarantined(specimen) => specimen.validate(),
            Self::Restored | Self::Stalled(_) => Ok(()),
        }
    }
}

/// Checks the number of a device.
pub(super) fn validate_number(device: u16) -> Result<(), String> {
    if usize::from(device) < MAX_DEVICES { Ok(()) } else { Err(format!("device number {device}")) }
}

/// Checks what decoding cannot: number, names and sizes of devices.
pub(super) fn validate(devices: &[DeviceConfig]) -> Result<(), String> {
    if devices.len() > MAX_DEVICES {
        return Err(format!("{} devices: at most {MAX_DEVICES} are possible", devices.len()));
    }
    for (index, DeviceConfig { name, bounce, queues, .. }) in devices.iter().enumerate() {
        if name.is_empty() || name.len() > MAX_NAME || devices[..index].iter().any(|d| d.name == *name) {
            return Err(format!("a device named {name:?}: names have 1 to {MAX_NAME} bytes and are distinct"));
        }
        if !(MIN_BOUNCE..=MAX_BOUNCE).contains(bounce) || !bounce.is_multiple_of(4096) {
            return Err(format!("a bounce region of {bounce} bytes for {name}: 1 MiB to 1 GiB in steps of 4 KiB"));
        }
        if !(1..=MAX_QUEUES).contains(queues) {
            return Err(format!("{queues} queues for {name}: 1 to {MAX_QUEUES} are possible"));
        }
    }
    let all: u16 = devices.iter().map(|device| device.queues).sum();
    if all > MAX_ALL_QUEUES {
        return Err(format!("{all} queues in all: at most {MAX_ALL_QUEUES} are possible"));
    }
    Ok(())
}
