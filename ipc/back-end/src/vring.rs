//! A virtqueue as the vhost-user library keeps it, with two things of our own.
//!
//! The library's worker ends silently when a kick cannot be read, which a front end causes by reading it first, or by
//! replacing it: here a kick that is not there is no error. And the library keeps the descriptor by which a broken queue
//! is reported, but cannot write it.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory, replaced as a whole when the front end changes its table.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// One virtqueue with its descriptors.
#[derive(Clone)]
pub struct Vring {
    inner: VringMutex<Memory>,
    error: Arc<Mutex<Option<File>>>,
}

impl Vring {
    /// Tells the front end that this queue is broken, if it asked to be told.
    pub fn signal_error(&self) {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = error.as_ref() {
            // A front end that does not take it has lost nothing but the hint.
            let _ = file.write_all(&1u64.to_ne_bytes());
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        Ok(Self { inner: VringMutex::new(mem, max_queue_size)?, error: Arc::default() })
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.inner.read_kick() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(self.inner.get_ref().is_enabled()),
            other => other,
        }
    }

    fn set_err(&self, file: Option<File>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        self.inner.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.inner.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.inner.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file);
    }
}
