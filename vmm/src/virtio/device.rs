//! A virtio device as the guest meets it: registers, shadow queues, and the life of the process behind them.
//!
//! Everything here happens on the processor's thread. Register accesses arrive as the board passes them on; queues are
//! only touched in [`VirtioPci::serve`], which the machine calls between two runs of the engine (see `dma`). The device
//! process is reached through the front end's commands and events, so nothing here waits for it: while there is no
//! process, or one that is being stopped, chains stay in the guest's ring.
//!
//! ```text
//! Down ─Offered→ Idle ─DRIVER_OK→ Starting ─Started→ Running
//!                 ↑                                    │ reset by the guest
//!                 └──Stopped── Stopping ←─all back── Draining          (from anywhere: Lost → Down)
//! ```

mod life;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipc::control::DeviceEvent;

use super::chain::GuestError;
use super::device_ring::PeerError;
use super::dma::Dma;
use super::front_end::{FrontEnd, Kick, Offer};
use super::guest_ring::{F_EVENT_IDX, F_INDIRECT_DESC, GuestRing};
use super::hunt::Hunt;
use super::kind::{Kind, Limits};
use super::pci::{Access, Assigned, Effect, F_VERSION_1, Pins, Transport, status};
use super::pool::Pool;
use super::region::{self, PAGE, Region};
use super::shadow::Shadow;
use super::transfer::{Bounce, Transfer};
use crate::chipset::{Bar, PciFunction};
use crate::mmu::GuestRam;

/// Entries of a guest's queue.
pub const QUEUE_SIZE: u16 = 256;
/// How long outstanding requests may take to come back after a reset by the guest.
const DRAIN: Duration = Duration::from_secs(10);

/// How many needs of a reset the machine is told of.
const COMPLAINTS: u32 = 8;

/// What the machine is told of a device, and of which connection: they are counted from 0.
pub type Report = Box<dyn Fn(u64, DeviceEvent) + Send + Sync>;

/// A connection with its bounce region.
struct Peer {
    serial: u64,
    offer: Offer,
    kicks: Vec<Kick>,
    pool: Pool,
    /// The driver's life that its queues were started for.
    life: u64,
}

/// Where the device process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Idle,
    Starting,
    Running,
    Draining,
    Stopping,
}

struct Inner {
    kind: Box<dyn Kind>,
    pins: Box<dyn Pins>,
    report: Report,
    front_end: FrontEnd,
    ram: Arc<GuestRam>,
    transport: Transport,
    shadows: Vec<Shadow>,
    link: Link,
    peer: Option<Peer>,
    /// Connections so far: the number of the current one.
    serial: u64,
    /// The current connection is over. Its end may be noticed in two places.
    over: bool,
    /// How often the machine was told that the driver is to reset.
    complaints: u32,
    /// Resets by the driver so far: its life's number.
    life: u64,
    /// Back end configuration that the guest's view was made from.
    config: Vec<u8>,
    /// There is no process to be had: requests fail.
    abandoned: bool,
    /// Which request crashes the process.
    hunt: Hunt,
    transfer: Transfer,
    /// A process that maps guest RAM was lost with requests outstanding, and is not known to have ended.
    at_large: bool,
    /// The queue that is served first next time.
    turn: usize,
}

/// A virtio PCI function.
pub struct VirtioPci {
    name: String,
    inner: Mutex<Inner>,
}

/// What a device is made of.
pub struct Parts {
    /// Its name, for messages.
    pub name: String,
    /// Its type.
    pub kind: Box<dyn Kind>,
    /// Its interrupts.
    pub pins: Box<dyn Pins>,
    /// Who is told what becomes of it.
    pub report: Report,
    /// Its front end, which has sent `first`.
    pub front_end: FrontEnd,
    /// The connection of the front end.
    pub first: (u64, Offer, Vec<Kick>),
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// What firmware assigns.
    pub assigned: Assigned,
}

impl VirtioPci {
    /// A device with a process behind it.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { name, kind, pins, report, front_end, first, ram, assigned } = parts;
        let (serial, offer, kicks) = first;
        let queues = offer.queues;
        let transport = Transport::new(&*kind, offered(&*kind, offer.features), queues, QUEUE_SIZE, assigned);
        let transfer = offer.transfer();
        let shadows = (0..usize::from(queues)).map(|index| Shadow::new(index, transfer, kind.chains(index))).collect();
        let mut inner = Inner {
            kind,
            pins,
            report,
            front_end,
            ram,
            transport,
            shadows,
            link: Link::Down,
            peer: None,
            serial,
            over: false,
            complaints: 0,
            life: 0,
            config: Vec::new(),
            abandoned: false,
            hunt: Hunt::default(),
            transfer,
            at_large: false,
            turn: 0,
        };
        inner.show(&offer.config, &offer.region);
        inner.adopt(serial, offer, kicks);
        Arc::new(Self { name, inner: Mutex::new(inner) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due: takes news of the process, completions, and new chains. Must be called on the processor's
    /// thread while no engine runs; the frames that `dma` notes must be invalidated before one does.
    pub fn serve(&self, dma: &mut Dma<'_>) {
        let mut inner = self.lock();
        if inner.front_end.port.take_due() {
            inner.serve(dma);
        }
    }

    /// True while a process may still write guest RAM for what was asked before the last reset. It is served until then.
    pub fn is_resetting(&self) -> bool {
        self.lock().transport.common.resetting != 0
    }

    /// Whether requests are out that a process may soon complete. If so it does not call until [`Self::ask_calls`] asks again:
    /// look whether it [`Self::has_completed`] something.
    pub fn decline_calls(&self) -> bool {
        let inner = &mut *self.lock();
        inner.want_calls(false);
        inner.link == Link::Running && inner.shadows.iter().any(|shadow| shadow.due() > 0)
    }

    /// Has the process call again. Look once more afterwards.
    pub fn ask_calls(&self) {
        self.lock().want_calls(true);
    }

    /// True if the process completed something since it was served last. Then it is due to be served.
    pub fn has_completed(&self) -> bool {
        let inner = self.lock();
        let region = inner.peer.as_ref().filter(|_| inner.link == Link::Running).map(|peer| &peer.offer.region);
        let completed = region.is_some_and(|region| inner.shadows.iter().any(|shadow| shadow.has_completed(region)));
        if completed {
            inner.front_end.port.set_due();
        }
        completed
    }

    /// Uses another process from now on, reached by `socket`, the last one having ended. What is outstanding goes to it. If
    /// the last one ended by its own `fault`, one of the requests that it had is to blame for that, perhaps. For any thread.
    pub fn replace(&self, socket: OwnedFd, fault: bool) {
        self.lock().replace(socket, fault);
    }

    /// There is no process any more, nor to be had: until [`Self::replace`], what is outstanding and all that comes fails. For any
    /// thread; it happens when the device is served next.
    pub fn abandon(&self) {
        let mut inner = self.lock();
        (inner.abandoned, inner.at_large) = (true, false);
        inner.front_end.port.ring();
    }
}

/// What a guest is offered by a device whose process offers `backend`.
fn offered(kind: &dyn Kind, backend: u64) -> u64 {
    backend & kind.features() | kind.own_features() | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
}

impl Inner {
    fn serve(&mut self, dma: &mut Dma<'_>) {
        while let Some(event) = self.front_end.port.take() {
            self.event(event);
        }
        if !self.abandoned {
            self.settle(dma);
        }
        match self.link {
            _ if self.abandoned => self.refuse(dma),
            Link::Idle => self.start(),
            Link::Running => self.pump(dma),
            Link::Draining => self.drain(dma),
            Link::Down | Link::Starting | Link::Stopping => {}
        }
        self.expect_completions();
        self.end_reset(dma);
    }

    /// Makes the guest's view of the back end's configuration.
    fn show(&mut self, config: &[u8], region: &Region) {
        let queues = self.shadows.len();
        let request = region::data_pages(region.size(), queues).1 * PAGE / 2;
        let limits = Limits { queues: queues as u16, queue_size: QUEUE_SIZE, request };
        self.config = config.to_vec();
        self.transport.config = self.kind.config(config, limits);
    }

    fn announce_config(&mut self) {
        self.transport.common.generation = self.transport.common.generation.wrapping_add(1);
        if self.transport.common.has(status::DRIVER_OK) {
            self.transport.interrupt_config(&*self.pins);
        }
    }

    /// Takes completions and sends chains, on every queue; in a hunt, the one that is on trial.
    fn pump(&mut self, dma: &mut Dma<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let mut bounce = Bounce { region: &peer.offer.region, pool: &mut peer.pool };
        let mut wrong: Result<(), PeerError> = Ok(());
        for (index, shadow) in self.shadows.iter_mut().enumerate() {
            let (harvest, result) = shadow.harvest(&mut bounce, dma);
            self.front_end.progress(harvest.completed);
            if harvest.interrupt {
                self.transport.interrupt_queue(index, &*self.pins);
            }
            wrong = wrong.and(result);
        }
        if let Err(error) = wrong {
            return self.drop_peer(error.to_string());
        }
        if self.transport.common.has(status::NEEDS_RESET) {
            return;
        }
        self.hunt.clear(|id| self.shadows[id.queue].has(id.chain));
        if let Some(id) = self.hunt.on_trial() {
            let kick = peer.kicks.get(id.queue);
            let wanted = self.shadows[id.queue].release(id.chain, &mut bounce, dma, &*self.kind);
            return kick.filter(|_| wanted).into_iter().for_each(Kick::kick);
        }
        let mut broken: Result<(), GuestError> = Ok(());
        // A queue that takes all the room of the region has it last next time.
        let count = self.shadows.len();
        self.turn = (self.turn + 1) % count.max(1);
        for index in (0..count).map(|index| (index + self.turn) % count) {
            let (wanted, result) = self.shadows[index].publish(&mut bounce, dma, &*self.kind);
            if wanted && let Some(kick) = peer.kicks.get(index) {
                kick.kick();
            }
            broken = broken.and(result);
        }
        if let Err(error) = broken {
            self.needs_reset(error.to_string());
        }
    }

    fn want_calls(&mut self, wanted: bool) {
        if let Some(peer) = self.peer.as_ref().filter(|_| self.link == Link::Running) {
            self.shadows.iter_mut().for_each(|shadow| shadow.want_calls(&peer.offer.region, wanted));
        }
    }

    fn needs_reset(&mut self, reason: String) {
        if !self.transport.common.has(status::NEEDS_RESET) {
            self.transport.common.status |= status::NEEDS_RESET;
            if self.transport.common.has(status::DRIVER_OK) {
                self.transport.interrupt_config(&*self.pins);
            }
            // A guest can cause any number of these, and none is news after the first few.
            self.complaints = self.complaints.saturating_add(1);
            if self.complaints <= COMPLAINTS {
                (self.report)(self.serial, DeviceEvent::NeedsReset(reason));
            }
        }
    }

    fn access(&mut self, access: Access) {
        match access {
            Access::Done | Access::Common(Effect::None) => {}
            // Both mean work on the guest's memory, which is for `serve`.
            Access::Notified(_) | Access::Common(Effect::DriverOk) => self.front_end.port.ring(),
            Access::Common(Effect::Reset) => self.reset_by_driver(),
            Access::Common(Effect::Enabled(index)) => self.enabled(usize::from(index)),
        }
    }

    fn enabled(&mut self, index: usize) {
        let features = self.transport.common.negotiated();
        let Some(queue) = self.transport.common.queues.get(index) else { return };
        match GuestRing::new(&self.ram, queue.places, features) {
            Ok(ring) => self.shadows[index].attach_guest(ring),
            Err(error) => self.needs_reset(error.to_string()),
        }
    }

    /// From the moment this returns no byte of the guest's is written for what it asked before; by a process that maps
    /// guest RAM, from the moment that the status reads 0.
    fn reset_by_driver(&mut self) {
        self.life += 1;
        let outstanding = self.shadows.iter().any(|shadow| shadow.outstanding() > 0);
        if self.transfer == Transfer::Direct && (outstanding || self.at_large) {
            self.transport.common.resetting = status::DRIVER_OK;
            self.front_end.port.ring();
        }
        self.shadows.iter_mut().for_each(Shadow::reset_guest);
        self.hunt.reset();
        self.transport.reset(&*self.pins);
        if self.link == Link::Running {
            self.begin_draining();
        }
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u8, width: u8) -> u32 {
        let inner = &mut *self.lock();
        inner.transport.config_read(offset, width, &*inner.pins)
    }

    fn config_write(&self, offset: u8, width: u8, value: u32) {
        let inner = &mut *self.lock();
        let access = inner.transport.config_write(offset, width, value, &*inner.pins);
        inner.access(access);
    }

    fn bars(&self) -> Vec<Bar> {
        self.lock().transport.bars()
    }

    fn bar_read(&self, _index: u8, offset: u64, width: u8) -> u64 {
        let inner = &mut *self.lock();
        inner.transport.bar_read(offset, width, &*inner.pins)
    }

    fn bar_write(&self, _index: u8, offset: u64, width: u8, value: u64) {
        let inner = &mut *self.lock();
        let access = inner.transport.bar_write(offset, width, value, &*inner.pins);
        inner.access(access);
    }

    fn reset(&self) {
        let inner = &mut *self.lock();
        inner.reset_by_driver();
        inner.transport.power_up(&*inner.kind, &*inner.pins);
    }
}
