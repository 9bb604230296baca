//! The block device between queues and disk: carries out one request, finds its status, and tells the operator about
//! errors of the host. It knows neither virtqueues nor vhost-user.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use vm_memory::bitmap::{BS, WithBitmapSlice};
use vm_memory::{GuestMemory, Permissions};

use crate::config::Shape;
use crate::disk::Disk;
use crate::disk::buffers::Buffers;
use crate::disk::raw::is_full;
use crate::disk::scratch::Scratch;
use crate::request::{Limits, Operation, Request, SERIAL_BYTES};
use back_end::complain::Complaints;

/// Status of a request that was carried out.
pub const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// One disk as the guest sees it, shared by all queues.
#[derive(Debug)]
pub struct Device {
    disk: Disk,
    serial: [u8; SERIAL_BYTES],
    shape: Shape,
    /// The driver did not accept FLUSH, so a completed write must already be stable (virtio 1.2 §5.2.6.2).
    write_through: AtomicBool,
    complaints: Complaints,
}

/// The serial number is too long or not printable.
#[derive(Debug, thiserror::Error)]
#[error("the serial number must be at most {SERIAL_BYTES} printable ASCII characters")]
pub struct BadSerial;

impl Device {
    /// A device with `queues` virtqueues over `disk`. `serial` may be empty.
    pub fn new(disk: Disk, serial: &str, queues: u16) -> Result<Self, BadSerial> {
        let mut padded = [0; SERIAL_BYTES];
        let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        padded.get_mut(..serial.len()).filter(|_| printable).ok_or(BadSerial)?.copy_from_slice(serial.as_bytes());
        let shape = Shape { block: disk.block(), queues, read_only: disk.read_only() };
        let (write_through, complaints) = (AtomicBool::new(true), Complaints::default());
        Ok(Self { disk, serial: padded, shape, write_through, complaints })
    }

    /// Virtio features offered.
    pub fn features(&self) -> u64 {
        self.shape.features()
    }

    /// Virtqueues.
    pub fn queues(&self) -> u16 {
        self.shape.queues
    }

    /// The driver's choice of features.
    pub fn accept(&self, features: u64) {
        self.write_through.store(features & 1 << VIRTIO_BLK_F_FLUSH == 0, Ordering::Release);
    }

    /// A window of the configuration space.
    pub fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.shape.config(self.disk.capacity(), offset, size)
    }

    /// What requests must keep to now.
    pub fn limits(&self) -> Limits {
        Limits { capacity: self.disk.capacity(), read_only: self.disk.read_only() }
    }

    /// Measures the image again; its size in sectors. Requests see it at once, the driver when it is told.
    pub fn measure(&self) -> io::Result<u64> {
        self.disk.measure()
    }

    /// Carries a request out and returns its status. On success all of `writable` has been written for Read and the
    /// first bytes for Identify; otherwise its content is undefined.
    pub fn execute<M>(&self, mem: &M, request: &Request<'_>, scratch: &mut Scratch) -> u8
    where
        M: GuestMemory,
        M::Bitmap: 'static,
    {
        let operation = match request.operation {
            Ok(operation) => operation,
            Err(status) => return status,
        };
        match self.carry_out(mem, operation, request, scratch) {
            Ok(()) => OK,
            Err(error) => {
                self.complain(operation, &error);
                IOERR
            }
        }
    }

    fn carry_out<M>(
        &self,
        mem: &M,
        operation: Operation,
        request: &Request<'_>,
        scratch: &mut Scratch,
    ) -> io::Result<()>
    where
        M: GuestMemory,
        M::Bitmap: 'static,
    {
        #[cfg(feature = "faulty")]
        crate::faulty::before(operation);
        let writable = || gather(mem, request.writable, Permissions::Write);
        match operation {
            Operation::Read { offset } => self.disk.read(&writable()?, offset, scratch),
            Operation::Write { offset } => {
                let data = gather(mem, request.readable, Permissions::Read)?;
                self.disk.write(&data, offset, scratch)?;
                self.settle()
            }
            Operation::Flush => self.disk.flush(),
            Operation::Identify => {
                writable()?.copy_in(0, &self.serial);
                Ok(())
            }
            Operation::Discard => {
                request.ranges.iter().try_for_each(|range| self.disk.discard(range.offset, range.length))?;
                self.settle()
            }
            Operation::WriteZeroes => {
                for range in request.ranges {
                    self.disk.write_zeroes(range.offset, range.length, range.unmap, scratch)?;
                }
                self.settle()
            }
        }
    }

    /// Makes a write stable at once for a driver that will not ask for it.
    fn settle(&self) -> io::Result<()> {
        if self.write_through.load(Ordering::Acquire) { self.disk.flush() } else { Ok(()) }
    }

    fn complain(&self, operation: Operation, error: &io::Error) {
        let Some(suppressed) = self.complaints.admit() else { return };
        let remedy = match is_full(error) {
            true => "; the host's disk is full: free space there, then let the guest retry",
            false => "",
        };
        tracing::error!(?operation, suppressed, "the guest got an I/O error: {error}{remedy}");
    }
}

fn gather<'a, M>(
    mem: &'a M,
    segments: &[crate::request::Segment],
    access: Permissions,
) -> io::Result<Buffers<'a, BS<'a, M::Bitmap>>>
where
    M: GuestMemory,
    M::Bitmap: 'static + WithBitmapSlice<'a>,
{
    Buffers::gather(mem, segments, access)
}
