//! One vhost-user connection, spoken by the `vhost` crate. Every function here may wait for the device process, so only
//! the front end's own thread calls them, with the watchdog set.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd as OwnEventFd};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, FrontendReqHandler, VhostUserFrontend, VhostUserFrontendReqHandler};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::descriptors::{Kick, as_eventfd};
use crate::mmu::GuestRam;
use crate::virtio::guest_ring::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::pci::F_VERSION_1;
use crate::virtio::region::{Control, RING, RINGS, Region, RegionError};
use crate::virtio::transfer::Transfer;

/// Where the region lies in the address space that messages speak of. Not where it is mapped: the back end only takes
/// differences, and where our memory lies is not for it to know.
const USER_ADDRESS: u64 = 1 << 32;
/// Where RAM goes on that the PCI hole leaves no room for.
const ABOVE_HOLE: u64 = 1 << 32;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const QUEUE_LIMIT: u64 = 64;

/// What a device's front end asks of its process.
#[derive(Clone)]
pub struct Wanted {
    /// Queues, if it has as many.
    pub queues: u16,
    /// Queues that it must have.
    pub least_queues: u16,
    /// Bytes of configuration space.
    pub config_size: usize,
    /// Bytes of bounce region.
    pub bounce: u64,
    /// Guest RAM, if the process is to have it.
    pub ram: Option<Arc<GuestRam>>,
}

/// What a device process offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Virtio and vhost feature bits.
    pub features: u64,
    /// Configuration space.
    pub config: Vec<u8>,
    /// Queues, at least one and at most as many as wanted.
    pub queues: u16,
    /// The region that this process will map.
    pub region: Arc<Region>,
    /// It will map guest RAM as well.
    pub shared: bool,
}

impl Offer {
    /// How requests get to the process.
    pub fn transfer(&self) -> Transfer {
        if self.shared { Transfer::Direct } else { Transfer::Copied }
    }
}

/// Why a connection cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConnectionError {
    #[error("making the bounce region")]
    Region(#[from] RegionError),
    #[error("making kicks and calls")]
    Descriptors(#[source] nix::Error),
    #[error("{step}")]
    Step { step: &'static str, source: vhost::Error },
    #[error("the device does not offer {0}, which is needed")]
    Lacks(&'static str),
}

/// A connection.
pub struct Connection {
    frontend: Frontend,
    region: Arc<Region>,
    ram: Option<Arc<GuestRam>>,
    queues: u16,
    /// What the device signals completions by, one of each queue.
    pub calls: Vec<EventFd>,
    kicks: Vec<EventFd>,
    /// Where the device sends requests of its own: that its configuration changed.
    pub requests: Option<FrontendReqHandler<ConfigChanged>>,
    config_size: usize,
}

/// Takes the announcement that the device's configuration changed; every other request is refused.
#[derive(Debug)]
pub struct ConfigChanged;

impl VhostUserFrontendReqHandler for ConfigChanged {
    fn handle_config_change(&self) -> vhost::vhost_user::HandlerResult<u64> {
        Ok(0)
    }
}

fn step<T>(step: &'static str, result: vhost::Result<T>) -> Result<T, ConnectionError> {
    result.map_err(|source| ConnectionError::Step { step, source })
}

impl Connection {
    /// Shakes hands. Nothing of ours is shared yet.
    pub fn open(socket: UnixStream, wanted: &Wanted) -> Result<(Self, Offer, Vec<Kick>), ConnectionError> {
        let mut frontend = Frontend::from_stream(socket, QUEUE_LIMIT);
        step("becoming the owner", frontend.set_owner())?;
        let features = step("asking for features", frontend.get_features())?;
        if features & F_VERSION_1 == 0 {
            return Err(ConnectionError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if features & F_PROTOCOL_FEATURES == 0 {
            return Err(ConnectionError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        let ram = wanted.ram.clone();
        if ram.is_some() && features & F_INDIRECT_DESC == 0 {
            return Err(ConnectionError::Lacks("VIRTIO_RING_F_INDIRECT_DESC"));
        }
        let protocol = negotiate(&mut frontend)?;
        let queues = match protocol.contains(VhostUserProtocolFeatures::MQ) {
            true => step("asking for the number of queues", frontend.get_queue_num())?,
            false => 1,
        };
        let queues = u16::try_from(queues).unwrap_or(u16::MAX).min(wanted.queues);
        if queues < wanted.least_queues {
            return Err(ConnectionError::Lacks("as many queues as such a device has"));
        }
        let region = Arc::new(Region::new(wanted.bounce)?);
        let (calls, kicks, ours) = bells(queues).map_err(ConnectionError::Descriptors)?;
        let config_size = wanted.config_size;
        let shared = ram.is_some();
        let mut connection =
            Self { frontend, region: region.clone(), ram, queues, calls, kicks, requests: None, config_size };
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            connection.open_requests(protocol)?;
        }
        let config = connection.config()?;
        Ok((connection, Offer { features, config, queues, region, shared }, ours))
    }

    fn open_requests(&mut self, protocol: VhostUserProtocolFeatures) -> Result<(), ConnectionError> {
        let lacking = |_| ConnectionError::Descriptors(nix::Error::last());
        let mut requests = FrontendReqHandler::new(Arc::new(ConfigChanged)).map_err(lacking)?;
        requests.set_reply_ack_flag(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        let theirs = super::descriptors::Raw(requests.get_tx_raw_fd());
        step("opening the device's own channel", self.frontend.set_backend_request_fd(&theirs))?;
        self.requests = Some(requests);
        Ok(())
    }

    /// The device's configuration space.
    pub fn config(&mut self) -> Result<Vec<u8>, ConnectionError> {
        let blank = vec![0; self.config_size];
        let flags = VhostUserConfigFlags::empty();
        let got = self.frontend.get_config(0, self.config_size as u32, flags, &blank);
        let (_, mut config) = step("asking for the configuration", got)?;
        config.resize(self.config_size, 0);
        Ok(config)
    }

    /// Shares the memory that the device is to have, and starts the first `queues` queues: those that the region has room for, be there more
    /// or not. `features` are those that guest and vmm chose.
    pub fn start(&mut self, features: u64, queues: u16) -> Result<(), ConnectionError> {
        self.queues = self.queues.min(queues);
        let f = &mut self.frontend;
        step("setting features", f.set_features(features | F_PROTOCOL_FEATURES))?;
        let base = if self.ram.is_some() { RINGS } else { 0 };
        let mut table = self.ram.as_deref().map(guest_ram).unwrap_or_default();
        table.push(shared(base, self.region.size(), 0, self.region.fd()));
        step("sharing memory", f.set_mem_table(&table))?;
        for index in 0..usize::from(self.queues) {
            step("setting a queue's size", f.set_vring_num(index, RING))?;
            step("setting a queue's start", f.set_vring_base(index, 0))?;
            step("setting a queue's place", f.set_vring_addr(index, &place(index, base)))?;
            step("setting a queue's call", f.set_vring_call(index, &self.calls[index]))?;
            step("setting a queue's kick", f.set_vring_kick(index, &self.kicks[index]))?;
            step("enabling a queue", f.set_vring_enable(index, true))?;
        }
        Ok(())
    }

    /// Stops the queues that were started: when this returns the device has let go of them.
    pub fn stop(&mut self) -> Result<(), ConnectionError> {
        for index in 0..usize::from(self.queues) {
            step("stopping a queue", self.frontend.get_vring_base(index))?;
        }
        Ok(())
    }
}

fn negotiate(frontend: &mut Frontend) -> Result<VhostUserProtocolFeatures, ConnectionError> {
    use VhostUserProtocolFeatures as P;
    let offered = step("asking for protocol features", frontend.get_protocol_features())?;
    if !offered.contains(P::CONFIG) {
        return Err(ConnectionError::Lacks("VHOST_USER_PROTOCOL_F_CONFIG"));
    }
    let chosen = offered & (P::CONFIG | P::MQ | P::REPLY_ACK | P::BACKEND_REQ);
    step("setting protocol features", frontend.set_protocol_features(chosen))?;
    if chosen.contains(P::REPLY_ACK) {
        // From now on a refusal is an answer, not a surprise later.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(chosen)
}

/// Calls, the device's ends of kicks, and ours, one of each queue.
fn bells(queues: u16) -> nix::Result<(Vec<EventFd>, Vec<EventFd>, Vec<Kick>)> {
    let (mut calls, mut kicks, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..queues {
        calls.push(as_eventfd(OwnEventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?.into()));
        let (kick, theirs) = Kick::pair()?;
        kicks.push(as_eventfd(theirs));
        ours.push(kick);
    }
    Ok((calls, kicks, ours))
}

/// Ring addresses are in the address space that the memory table's user addresses are in.
fn place(index: usize, region: u64) -> VringConfigData {
    let (control, base) = (Control::of(index), USER_ADDRESS + region);
    VringConfigData {
        queue_max_size: RING,
        queue_size: RING,
        flags: 0,
        desc_table_addr: base + control.descriptors,
        used_ring_addr: base + control.used,
        avail_ring_addr: base + control.avail,
        log_addr: None,
    }
}

/// A part of the memory table: `size` bytes at `offset` of a file, which the device has at `address`.
fn shared(address: u64, size: u64, offset: u64, file: BorrowedFd<'_>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: address,
        memory_size: size,
        userspace_addr: USER_ADDRESS + address,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

/// Guest RAM, below the PCI hole and above it, at the guest's own addresses.
fn guest_ram(ram: &GuestRam) -> Vec<VhostUserMemoryRegionInfo> {
    let parts = [(0, ram.low_size(), 0), (ABOVE_HOLE, ram.high_size(), ram.low_size())];
    let parts = parts.into_iter().filter(|(_, size, _)| *size > 0);
    parts.map(|(address, size, offset)| shared(address, size, offset, ram.fd())).collect()
}

/// The features that the shadow queues use towards a device that offers `features`, for a driver that chose `guest`.
/// Indirect descriptors are for a device that maps guest RAM; through a region a chain has few parts.
pub fn towards_device(features: u64, guest: u64, kind: u64, transfer: Transfer) -> u64 {
    let indirect = if transfer == Transfer::Direct { F_INDIRECT_DESC } else { 0 };
    features & (guest & kind | F_VERSION_1 | F_EVENT_IDX | indirect)
}
