//! A front end of our own: the vhost crate's protocol, one memory region, and a driver that sends one request at a time.

use std::error::Error;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What every step here may fail with.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The request data, and room for 64 KiB.
pub const DATA: u64 = 0x2_0000;
const BYTES: usize = 1 << 20;
const SIZE: u16 = 16;
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_1000;
/// Bytes that each queue's rings are apart, and where they are within.
const RINGS: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES and VIRTIO_BLK_F_FLUSH.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 9;
/// No answer for so long means that none will come.
const PATIENCE: Duration = Duration::from_secs(120);

struct Queue {
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    next: u16,
}

/// A connected front end.
pub struct Front {
    /// The protocol, for what has no function here.
    pub protocol: Frontend,
    /// What the back end sees of the guest.
    pub memory: GuestMemoryMmap,
    queues: Vec<Queue>,
}

impl Front {
    /// Connects and starts `queues` virtqueues.
    pub fn connect(socket: &Path, queues: usize) -> Outcome<Self> {
        let file = memfd::MemfdOptions::default().create("guest")?.into_file();
        file.set_len(BYTES as u64)?;
        let range = (GuestAddress(0), BYTES, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range])?;
        let mut front = Self { protocol: Frontend::connect(socket, queues as u64)?, memory, queues: Vec::new() };
        front.negotiate()?;
        for index in 0..queues {
            front.start(index)?;
        }
        Ok(front)
    }

    fn negotiate(&mut self) -> Outcome {
        self.protocol.set_owner()?;
        assert_eq!(self.protocol.get_features()? & FEATURES, FEATURES);
        self.protocol.set_features(FEATURES)?;
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(self.protocol.get_protocol_features()?.contains(wanted));
        self.protocol.set_protocol_features(wanted)?;
        self.protocol.get_queue_num()?;
        let region = self.memory.iter().next().ok_or("no memory")?;
        let file = region.file_offset().ok_or("no file")?;
        self.protocol.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: BYTES as u64,
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: file.file().as_raw_fd(),
        }])?;
        Ok(())
    }

    /// Starts a queue with empty rings.
    pub fn start(&mut self, index: usize) -> Outcome {
        let rings = index as u64 * RINGS;
        self.memory.write_slice(&[0; RINGS as usize], GuestAddress(rings))?;
        let base = self.memory.get_host_address(GuestAddress(rings))? as u64;
        let (kick, call, error) =
            (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        self.protocol.set_vring_num(index, SIZE)?;
        self.protocol.set_vring_base(index, 0)?;
        self.protocol.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: base,
                used_ring_addr: base + USED,
                avail_ring_addr: base + AVAIL,
                log_addr: None,
            },
        )?;
        self.protocol.set_vring_call(index, &call)?;
        self.protocol.set_vring_err(index, &error)?;
        self.protocol.set_vring_kick(index, &kick)?;
        self.protocol.set_vring_enable(index, true)?;
        let queue = Queue { kick, call, error, next: 0 };
        match self.queues.get_mut(index) {
            Some(old) => *old = queue,
            None => self.queues.push(queue),
        }
        Ok(())
    }

    /// Makes a chain of raw descriptors available and notifies the back end.
    pub fn offer(&mut self, index: usize, descriptors: &[(u64, u32, u16, u16)]) -> Outcome {
        let rings = index as u64 * RINGS;
        for (slot, &(at, len, flags, next)) in descriptors.iter().enumerate() {
            let raw = RawDescriptor::from(Descriptor::new(at, len, flags, next));
            self.memory.write_obj(raw, GuestAddress(rings + slot as u64 * 16))?;
        }
        let queue = &mut self.queues[index];
        self.memory.write_obj(0u16, GuestAddress(rings + AVAIL + 4 + u64::from(queue.next % SIZE) * 2))?;
        queue.next = queue.next.wrapping_add(1);
        self.memory.store(queue.next, GuestAddress(rings + AVAIL + 2), Ordering::Release)?;
        Ok(queue.kick.write(1)?)
    }

    /// Sends a request, with `bytes` of data at [`DATA`], and waits for its status.
    pub fn request(&mut self, index: usize, kind: u32, sector: u64, bytes: u32) -> Outcome<u8> {
        self.memory.write_obj(kind, GuestAddress(HEADER))?;
        self.memory.write_obj(sector, GuestAddress(HEADER + 8))?;
        self.memory.write_obj(0xffu8, GuestAddress(STATUS))?;
        let data_flags = if kind == 0 { 3 } else { 1 };
        match bytes {
            0 => self.offer(index, &[(HEADER, 16, 1, 1), (STATUS, 1, 2, 0)])?,
            _ => self.offer(index, &[(HEADER, 16, 1, 1), (DATA, bytes, data_flags, 2), (STATUS, 1, 2, 0)])?,
        }
        self.finish(index)
    }

    fn finish(&mut self, index: usize) -> Outcome<u8> {
        let queue = &self.queues[index];
        let used = GuestAddress(index as u64 * RINGS + USED + 2);
        while self.memory.load::<u16>(used, Ordering::Acquire)? != queue.next {
            wait(&queue.call)?;
        }
        Ok(self.memory.read_obj(GuestAddress(STATUS))?)
    }

    /// Waits until the back end says that a queue is broken.
    pub fn wait_for_error(&self, index: usize) -> Outcome {
        wait(&self.queues[index].error)
    }

    /// The capacity in the configuration space.
    pub fn capacity(&mut self) -> Outcome<u64> {
        let (_, bytes) = self.protocol.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])?;
        Ok(u64::from_le_bytes(bytes.as_slice().try_into()?))
    }
}

/// Waits for an event and consumes it.
fn wait(event: &EventFd) -> Outcome {
    let started = Instant::now();
    while let Err(error) = event.read() {
        if error.kind() != ErrorKind::WouldBlock {
            return Err(error.into());
        }
        if started.elapsed() > PATIENCE {
            return Err("the back end does not answer".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
