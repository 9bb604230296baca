//! The vhost-user side: one thread for both queues, over the library that speaks the protocol.
//!
//! The library calls [`VhostUserBackend::handle_event`] on that thread for kicks, and for what else the card waits for;
//! everything else on the socket's thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use back_end::complain::Complaints;
use back_end::vring::{Memory, Vring};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::card::Card;
use crate::config;

/// Entries of a queue at most.
const QUEUE_SIZE: usize = 1024;
/// Number of queues; the library has its own event of this number.
const QUEUES: usize = 2;
/// A flow, or an answer of the broker's.
const LINK: u64 = QUEUES as u64 + 1;
/// The clock.
const TIMER: u64 = QUEUES as u64 + 2;

/// The back end of one connection.
pub struct Backend {
    mac: [u8; 6],
    memory: Memory,
    card: Mutex<Card>,
    complaints: Complaints,
}

impl Backend {
    /// A back end for `card`.
    pub fn new(mac: [u8; 6], card: Card, memory: Memory) -> Self {
        Self { mac, memory, card: Mutex::new(card), complaints: Complaints::default() }
    }

    fn card(&self) -> MutexGuard<'_, Card> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `daemon`, which serves this back end, wait for what wakes its card. Its thread is there already.
    pub fn wait_with(&self, daemon: &VhostUserDaemon<Arc<Self>>) -> io::Result<()> {
        let card = self.card();
        for handler in daemon.get_epoll_handlers() {
            for (waker, number) in card.wakers().iter().zip([LINK, TIMER]) {
                handler.register_listener(waker.as_raw_fd(), EventSet::IN, number)?;
            }
        }
        Ok(())
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        config::features()
    }

    fn acked_features(&self, _features: u64) {}

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&self) {
        (0..QUEUES).for_each(|queue| self.card().mend(queue));
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config::read(self.mac, offset, size)
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the configuration space has no writable field"))
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        // It is the one that `new` was given.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![(1 << QUEUES) - 1]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        self.card().mend(index as usize);
        Ok(())
    }

    fn handle_event(&self, event: u16, _events: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let mut card = self.card();
        if u64::from(event) == TIMER {
            card.tick();
        }
        // An error here would silently end the thread: there is none.
        if let Err((queue, broken)) = card.work(vrings, &self.memory) {
            // Whoever drives the queue can break it, stop it and break it again, as often as it likes.
            if let Some(suppressed) = self.complaints.admit() {
                let reason: &(dyn std::error::Error + 'static) = &broken;
                tracing::warn!(
                    queue,
                    reason,
                    suppressed,
                    "the guest broke a virtqueue; it is not served until it is reset"
                );
            }
            vrings.get(queue).into_iter().for_each(Vring::signal_error);
        }
        Ok(())
    }
}
