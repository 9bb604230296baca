//! The messages between the broker and the processes that it confines, and the table that says which is permitted when.
//!
//! ```text
//! broker                          vmm
//!   Prepare ──────────────────────►  makes guest RAM and engine, confines itself
//!   ◄────────────────────────────── Ready
//!   verifies through /proc
//!   Start + kernel, initrd, console, devices ►
//!   ◄────────────────────────────── Started, and what happens from then on
//!   ◄────────────────────────────── Ended
//! ```
//!
//! The process behind a device is started and verified the same way; see [`ToDevice`].

mod back_end;
mod device;
mod table;

use serde::{Deserialize, Serialize};

pub use back_end::{Attach, Cache, Format, FromDevice, MAX_SERIAL, Orphan, Serve, ToDevice};
pub use device::{
    DeviceConfig, DeviceEvent, DeviceKind, DmaMode, MAX_BOUNCE, MAX_DEVICES, MAX_NAME, MAX_QUEUES, MIN_BOUNCE,
};
pub use table::{Conversation, Permitted, Phase, Row};

use crate::channel::Message;
use crate::outcome::Outcome;
use crate::telemetry::Record;

/// Longest guest command line in bytes; kernels have lower limits of their own.
pub const MAX_COMMAND_LINE: usize = 16 << 10;
/// Least guest RAM in bytes.
pub const MIN_MEMORY: u64 = 1 << 20;
/// Most guest RAM in bytes: what 36 physical address bits reach, less the PCI hole.
pub const MAX_MEMORY: u64 = 63 << 30;
/// Longest text in a message from a confined process, in bytes.
pub const MAX_TEXT: usize = 8 << 10;
/// Most counters at the end.
const MAX_COUNTERS: usize = 4096;

/// What the broker says to the vmm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVmm {
    /// What is needed before confinement. It is waiting when the vmm starts.
    Prepare(Prepare),
    /// The vmm was found to be confined: run this. Comes with the kernel, the initrd if there is one, the console's
    /// stream socket, and the socket of each device, in this order; files are regular and readable.
    Start(Start),
    /// Press the ACPI power button: the guest shuts down if it cares to.
    PowerButton,
    /// Are you there?
    Beat(u32),
    /// Another process is behind this device, reached by the socket that comes along: what is outstanding goes there.
    /// Connections of a device are counted from 0; this is the next.
    Replace {
        /// Number of the device, as in [`Start::devices`].
        device: u16,
        /// The process behind the connection before this one ended by its own fault, and no signal from outside: one of
        /// the requests that it had may be to blame.
        fault: bool,
    },
    /// No process will be behind this device: what is outstanding and what comes fails, until it is replaced.
    Abandon {
        /// Number of the device.
        device: u16,
    },
    /// End now.
    Stop,
}

/// See [`ToVmm::Prepare`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Guest RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// Name of the engine.
    pub engine: String,
    /// The guest's processor, as the vmm's `CpuModel` parses it.
    pub cpu: String,
    /// Which log events to send, as tracing-subscriber's filters have it.
    pub log_filter: String,
}

/// See [`ToVmm::Start`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The guest kernel's command line.
    pub command_line: String,
    /// A reset of the guest ends the machine.
    pub no_reboot: bool,
    /// Report counters at the end.
    pub stats: bool,
    /// CLOCK_MONOTONIC in nanoseconds when the broker began to start the vmm.
    pub started_ns: u64,
    /// There is an initrd.
    pub initrd: bool,
    /// Disks and network cards, in the order of their PCI slots.
    pub devices: Vec<DeviceConfig>,
}

/// What the vmm says to the broker. All of it is untrusted there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVmm {
    /// It has confined itself.
    Ready {
        /// It saw Landlock deny something: this does not show from outside.
        landlock_proved: bool,
        /// Layers that it does without, by name.
        missing: Vec<String>,
    },
    /// The first guest instruction is next.
    Started {
        /// Boot protocol of the kernel.
        protocol: String,
        /// Engine in use.
        engine: String,
        /// Nanoseconds since [`Start::started_ns`].
        startup_ns: u64,
    },
    /// The guest reset; the machine starts again.
    Rebooted {
        /// What caused it.
        cause: String,
    },
    /// Something became of a device's process or driver.
    Device {
        /// Number of the device, as in [`Start::devices`].
        device: u16,
        /// The connection that this is about, counted from 0.
        connection: u64,
        /// What.
        event: DeviceEvent,
    },
    /// The answer to [`ToVmm::Beat`].
    Alive(u32),
    /// Something to log.
    Log(Record),
    /// The last message.
    Ended {
        /// Why.
        outcome: Outcome,
        /// Counters, if asked for: name and value, in order.
        stats: Vec<(String, u64)>,
    },
}

impl Message for ToVmm {
    fn descriptors(&self) -> usize {
        match self {
            Self::Start(start) => 2 + usize::from(start.initrd) + start.devices.len(),
            Self::Replace { .. } => 1,
            Self::Prepare(_) | Self::PowerButton | Self::Beat(_) | Self::Abandon { .. } | Self::Stop => 0,
        }
    }

    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Prepare(prepare) => prepare.validate(),
            Self::Start(start) => start.validate(),
            Self::Replace { device, .. } | Self::Abandon { device } => device::validate_number(*device),
            Self::PowerButton | Self::Beat(_) | Self::Stop => Ok(()),
        }
    }
}

impl Start {
    fn validate(&self) -> Result<(), String> {
        if self.command_line.len() > MAX_COMMAND_LINE {
            return Err(format!("a command line of {} bytes", self.command_line.len()));
        }
        device::validate(&self.devices)
    }
}

impl Prepare {
    fn validate(&self) -> Result<(), String> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) || !self.memory.is_multiple_of(4096) {
            return Err(format!("{} bytes of memory: 1 MiB to 63 GiB in steps of 4 KiB", self.memory));
        }
        Ok(())
    }
}

impl Message for FromVmm {
    /// Nothing that the vmm holds is for the broker.
    fn descriptors(&self) -> usize {
        0
    }

    fn validate(&self) -> Result<(), String> {
        match self {
            Self::Ready { missing, .. } => missing.iter().try_for_each(|name| short(name)),
            Self::Started { protocol, engine, .. } => short(protocol).and(short(engine)),
            Self::Rebooted { cause } => short(cause),
            Self::Device { device, event, .. } => device::validate_number(*device).and(event.validate()),
            Self::Alive(_) => Ok(()),
            Self::Log(record) => record.validate(),
            Self::Ended { stats, .. } if stats.len() > MAX_COUNTERS => Err(format!("{} counters", stats.len())),
            Self::Ended { stats, outcome } => {
                short(&outcome.to_string()).and(stats.iter().try_for_each(|(name, _)| short(name)))
            }
        }
    }
}

/// A text of a confined process must not fill the broker's memory.
fn short(text: &str) -> Result<(), String> {
    match text.len() {
        ..=MAX_TEXT => Ok(()),
        long => Err(format!("a text of {long} bytes")),
    }
}

#[cfg(test)]
mod tests;
