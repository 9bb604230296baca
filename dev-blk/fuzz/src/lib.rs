//! What both fuzz targets share: an input is the beginning of a guest's memory, with its virtqueue at fixed places.
//!
//! The first byte of an input is not memory but chooses the device: see [`Choice`].

use std::cell::RefCell;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

// Requests that crashed a process are kept in the same form.
pub use ipc::specimen::{AVAIL, FREE, MEMORY, SIZE, USED};
use ipc::specimen::{EVENT_IDX, LARGE, READ_ONLY};

/// Size of the disk in sectors.
pub const SECTORS: u64 = 64;
/// Size of the large disk in sectors: 4 TiB, of which memory holds what is written.
pub const LARGE_SECTORS: u64 = 1 << 33;

/// The device's properties that the first byte chooses.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The disk is read-only.
    pub read_only: bool,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// The disk is large.
    pub large: bool,
}

impl Choice {
    /// Size of the disk in sectors.
    pub fn sectors(self) -> u64 {
        if self.large { LARGE_SECTORS } else { SECTORS }
    }
}

thread_local! {
    static GUEST: RefCell<Option<GuestMemoryMmap>> = const { RefCell::new(None) };
}

/// Runs `test` on the guest that `input` describes; an empty input describes none.
pub fn with_guest(input: &[u8], test: impl FnOnce(Choice, &GuestMemoryMmap, Queue)) {
    let Some((choice, image)) = input.split_first() else { return };
    let chosen = |bit| choice & bit != 0;
    let choice = Choice { read_only: chosen(READ_ONLY), event_idx: chosen(EVENT_IDX), large: chosen(LARGE) };
    GUEST.with_borrow_mut(|guest| {
        let memory = guest.get_or_insert_with(|| {
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory")
        });
        let image = &image[..image.len().min(MEMORY)];
        memory.write_slice(&vec![0; MEMORY], GuestAddress(0)).expect("inside");
        memory.write_slice(image, GuestAddress(0)).expect("inside");
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(choice.event_idx);
        queue.set_ready(true);
        test(choice, memory, queue);
    });
}
