//! The vhost-user side: one worker thread per virtqueue, over the library that speaks the protocol.
//!
//! The library calls [`VhostUserBackend::handle_event`] on a queue's own thread when it is kicked, and everything else on
//! the socket's thread. A worker holds its queue's lock while it works on a batch, so a stop (GET_VRING_BASE) takes
//! effect between batches, with nothing in flight.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vhost::vhost_user::Backend as BackChannel;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use ipc::spin::Spin;

use crate::announce::Announcer;
use crate::device::Device;
use crate::queue::{self, Broken, Engine};
use crate::request::MAX_DESCRIPTORS;
use back_end::complain::Complaints;
use back_end::vring::{Memory, Vring};

/// The back end of one connection.
pub struct Backend {
    device: Arc<Device>,
    memory: Memory,
    announcer: Arc<Announcer>,
    workers: Vec<Worker>,
    complaints: Complaints,
}

/// What belongs to one queue.
struct Worker {
    engine: Mutex<(Engine, Spin)>,
    /// Nothing is taken until the front end stops and starts the queue.
    broken: AtomicBool,
}

impl Backend {
    /// A back end for `device`. Workers wait at most `spin` for a next request before they sleep.
    pub fn new(device: Arc<Device>, memory: Memory, announcer: Arc<Announcer>, spin: Duration) -> Self {
        let worker =
            || Worker { engine: Mutex::new((Engine::default(), Spin::new(spin))), broken: AtomicBool::new(false) };
        let workers = (0..device.queues()).map(|_| worker()).collect();
        Self { device, memory, announcer, workers, complaints: Complaints::default() }
    }

    /// Works until the queue is empty and the driver knows that it must notify. Runs on the queue's thread.
    fn serve(&self, vring: &Vring, worker: &Worker) -> Result<(), Broken> {
        let mut engine = worker.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let (engine, spin) = &mut *engine;
        spin.woke();
        loop {
            match self.batch(vring, engine)? {
                Batch::Stopped => return Ok(()),
                Batch::More => {}
                Batch::Empty => {
                    let found = spin.wait(|| self.has_work(vring));
                    if !found && self.may_sleep(vring)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whoever drives the queue can break it, stop it and break it again, as often as it likes.
    fn complain(&self, queue: usize, reason: &(dyn std::error::Error + 'static)) {
        let Some(suppressed) = self.complaints.admit() else { return };
        tracing::warn!(queue, reason, suppressed, "the guest broke a virtqueue; it is not served until it is reset");
    }

    /// One turn with the queue locked.
    fn batch(&self, vring: &Vring, engine: &mut Engine) -> Result<Batch, Broken> {
        let mut state = vring.get_mut();
        if !state.get_queue().ready() || !state.is_enabled() {
            return Ok(Batch::Stopped);
        }
        let memory = self.memory.memory();
        state.disable_notification()?;
        let progress = engine.run(state.get_queue_mut(), &*memory, &self.device)?;
        if progress.completed > 0 && state.needs_notification()? {
            // A front end that cannot be told still finds its used ring filled.
            let _ = state.signal_used_queue();
        }
        Ok(if progress.empty { Batch::Empty } else { Batch::More })
    }

    /// Whether another batch has something to find, an error among it.
    fn has_work(&self, vring: &Vring) -> bool {
        let state = vring.get_ref();
        let queue = state.get_queue();
        !queue.ready() || !state.is_enabled() || !queue::is_empty(queue, &*self.memory.memory()).unwrap_or(false)
    }

    /// Asks the driver to notify; false if it has added something meanwhile.
    fn may_sleep(&self, vring: &Vring) -> Result<bool, Broken> {
        let mut state = vring.get_mut();
        if !state.get_queue().ready() || !state.is_enabled() {
            return Ok(true);
        }
        Ok(!state.enable_notification()?)
    }
}

enum Batch {
    Stopped,
    More,
    Empty,
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.workers.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_DESCRIPTORS
    }

    fn features(&self) -> u64 {
        self.device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.device.accept(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // No INFLIGHT_SHMFD: the library cannot keep it. Completion is in order, so a front end may resubmit.
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.workers.iter().for_each(|worker| worker.broken.store(false, Ordering::Release));
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.config(offset, size)
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the configuration space has no writable field"))
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        // It is the one that `new` was given.
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: BackChannel) {
        self.announcer.connected(channel);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.workers.len()).map(|index| 1 << index).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if let Some(worker) = self.workers.get(index as usize) {
            worker.broken.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn handle_event(&self, event: u16, _events: EventSet, vrings: &[Vring], thread: usize) -> io::Result<()> {
        // An error here would silently end the worker: there is none.
        let (Some(vring), Some(worker)) = (vrings.get(usize::from(event)), self.workers.get(thread)) else {
            return Ok(());
        };
        if worker.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Err(broken) = self.serve(vring, worker) {
            worker.broken.store(true, Ordering::Release);
            self.complain(thread, &broken);
            vring.signal_error();
        }
        Ok(())
    }
}
