//! Virtio devices: connects their front ends, waits for what their processes offer, and puts them on the PCI bus.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::io::Shared;
use super::news::News;
use crate::Uplink;
use crate::chipset::{Board, platform};
use crate::cpu::Lines;
use crate::mmu::GuestRam;
use crate::virtio::{Assigned, Block, Command, Event, FrontEnd, Kind, Net, Parts, Pins, Port, VirtioPci, Wanted};
use ipc::control::{DeviceConfig, DeviceKind, DmaMode};

/// How long a device's process may take to shake hands when the machine starts.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes of address space between the BARs of two slots.
const BAR_STEP: u32 = 1 << 20;

/// A device, as it came with the start message.
pub struct Device {
    /// What it is.
    pub config: DeviceConfig,
    /// The connected vhost-user socket.
    pub socket: OwnedFd,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DeviceError {
    #[error("starting the threads of {name}")]
    Threads { name: String, source: std::io::Error },
    #[error("{name}: its vhost-user back end cannot be used: {reason}")]
    Refused { name: String, reason: String },
    #[error("{0}: its vhost-user back end does not answer")]
    Silent(String),
    #[error("{0}: no PCI slot is free")]
    Slot(String),
}

/// The wires of one slot.
struct Slot {
    board: Weak<Board>,
    device: u8,
}

impl Pins for Slot {
    fn message(&self, address: u64, data: u32) {
        if let Some(board) = self.board.upgrade() {
            board.deliver_msi(address, data);
        }
    }

    fn line(&self, level: bool) {
        if let Some(board) = self.board.upgrade() {
            board.set_pci_irq(self.device, 0, level);
        }
    }
}

/// What the devices are attached to.
pub struct Host<'a> {
    pub ram: &'a Arc<GuestRam>,
    pub board: &'a Arc<Board>,
    pub lines: &'a Arc<Lines>,
    pub uplink: &'a Arc<Uplink>,
    pub news: &'a Arc<News>,
    pub shared: &'a Arc<Shared>,
}

/// Attaches `devices` in the order of their slots. Their processes shake hands all at the same time.
pub fn attach(devices: Vec<Device>, host: &Host<'_>) -> Result<Vec<Arc<VirtioPci>>, DeviceError> {
    let connected: Vec<Connected> =
        devices.into_iter().map(|device| connect(device, host)).collect::<Result<_, _>>()?;
    let until = Instant::now() + HANDSHAKE;
    (platform::VIRTIO_SLOT..).zip(connected).map(|(slot, connected)| plug(connected, slot, until, host)).collect()
}

/// A device whose process was asked what it offers.
struct Connected {
    name: String,
    kind: Box<dyn Kind>,
    front_end: FrontEnd,
}

fn connect(device: Device, host: &Host<'_>) -> Result<Connected, DeviceError> {
    let (lines, config) = (host.lines.clone(), device.config);
    let kind: Box<dyn Kind> = match config.kind {
        DeviceKind::Disk => Box::new(Block),
        DeviceKind::Nic => Box::new(Net),
    };
    let port = Arc::new(Port::new(Box::new(move || lines.request())));
    let ram = (config.dma == DmaMode::Shared).then(|| host.ram.clone());
    let wanted = Wanted {
        queues: config.queues,
        least_queues: kind.least_queues(),
        config_size: kind.config_size(),
        bounce: config.bounce,
        ram,
    };
    let name = config.name;
    let front_end =
        FrontEnd::new(&name, wanted, port).map_err(|source| DeviceError::Threads { name: name.clone(), source })?;
    front_end.send(Command::Adopt { serial: 0, socket: device.socket });
    Ok(Connected { name, kind, front_end })
}

fn plug(connected: Connected, slot: u8, until: Instant, host: &Host<'_>) -> Result<Arc<VirtioPci>, DeviceError> {
    let Connected { name, kind, front_end } = connected;
    let left = until.saturating_duration_since(Instant::now());
    let first = match front_end.port.wait(left) {
        Some(Event::Offered { serial, offer, kicks }) => (serial, offer, kicks),
        Some(Event::Lost { reason, .. }) => return Err(DeviceError::Refused { name, reason }),
        _ => return Err(DeviceError::Silent(name)),
    };
    let (uplink, device) = (host.uplink.clone(), u16::from(slot - platform::VIRTIO_SLOT));
    let (news, shared) = (host.news.clone(), host.shared.clone());
    let report = move |connection, event| {
        if !news.tell(device, connection, event, |message| uplink.say(message)) {
            // Its thread says it again when there is room.
            shared.wake();
        }
    };
    let index = u32::from(slot - platform::VIRTIO_SLOT);
    let assigned = Assigned { base: platform::VIRTIO_BARS + index * BAR_STEP, irq: platform::pci_irq(slot, 0) };
    let device = VirtioPci::new(Parts {
        name: name.clone(),
        kind,
        pins: Box::new(Slot { board: Arc::downgrade(host.board), device: slot }),
        report: Box::new(report),
        front_end,
        first,
        ram: host.ram.clone(),
        assigned,
    });
    if host.board.attach_pci(slot << 3, device.clone()) { Ok(device) } else { Err(DeviceError::Slot(name)) }
}
