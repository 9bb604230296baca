//! Virtio devices, disks and network cards: what the guest sees of them, and the firewall between its memory and the processes behind them.
//!
//! A device is another process, confined and not trusted, that speaks vhost-user. Unless the operator gave that up for it,
//! it never maps guest RAM. For each of the guest's queues there is a *shadow* queue, whose rings and buffers lie in a small
//! memfd, the bounce region:
//!
//! ```text
//! guest RAM:  guest_ring, chain ──┐                      ┌── device_ring :bounce region
//!                                 ├─ shadow (records), ──┤   pool, region
//!                                 │  transfer            │
//! dma (noted for the engine) ─────┘                      └── front_end: socket, kicks, calls ── device process
//! pci: registers, MSI-X ── device: one function, its state machine ── kind: block, net
//! ```
//!
//! Both sides are hostile: guest memory and bounce region are read once, by value, and only through `memory`. The room
//! knows guest RAM and the PCI bus; it never sees an engine. Who calls it: the board passes register accesses on, the
//! machine calls [`VirtioPci::serve`] on the processor's thread. See design page, "DMA firewall".

mod block;
mod chain;
mod device;
mod device_ring;
mod dma;
mod front_end;
mod guest_ring;
mod hunt;
mod kind;
mod memory;
mod net;
mod pci;
mod pool;
mod region;
mod shadow;
mod specimen;
mod transfer;

pub use block::Block;
pub use device::{Parts, Report, VirtioPci};
pub use dma::Dma;
pub use front_end::{Command, Event, FrontEnd, Port, Wanted};
pub use ipc::control::DeviceEvent;
pub use kind::Kind;
pub use net::Net;
pub use pci::{Assigned, Pins};
