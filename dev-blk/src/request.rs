//! From a descriptor chain to a request: everything a guest can get wrong is found here, before any I/O.
//!
//! Parsing is pure: it reads guest memory (each descriptor and header once, by value) and touches nothing else, so that
//! it can be fuzzed alone. Its result is one of three. A [`Request`] whose operation is `Ok` is within the disk and may be
//! executed as it stands. One whose operation is `Err` has a place for its status, which says what was wrong. A
//! [`Malformed`] chain has no such place: the queue that it came from is broken until the driver resets it.
//!
//! Layout (virtio 1.2 §5.2.6): device-readable header of 16 bytes and data, then device-writable data and one status
//! byte. How these are cut into descriptors is the driver's choice (§2.7.4.1), so nothing here depends on it.

#[cfg(test)]
mod tests;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

/// The unit of all sector numbers, whatever the block size (§5.2.4).
pub const SECTOR: u64 = 512;
/// Descriptors of one chain, as many as the largest queue has: a longer chain is not allowed (§2.7.5.3.1).
pub const MAX_DESCRIPTORS: usize = 1024;
/// Data segments of one request, advertised: with header and status they fill a queue of 128, QEMU's default.
pub const SEG_MAX: u32 = 126;
/// Bytes of one data segment, advertised.
pub const SIZE_MAX: u32 = 1 << 20;
/// Bytes of data of one request: what the advertised limits allow.
pub const MAX_DATA: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Ranges of one discard or write-zeroes request, advertised.
pub const MAX_RANGES: usize = 32;
/// Sectors of one discarded range, advertised: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors of one zeroed range, advertised: 16 MiB, since a host file system may need them written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 15;
/// Length of the serial number (§5.2.6).
pub const SERIAL_BYTES: usize = 20;

const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
const FLAG_UNMAP: u32 = 1;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of the first byte; nothing says that memory is there.
    pub address: GuestAddress,
    /// Bytes.
    pub length: u32,
}

/// A range of the disk in bytes, inside the disk, aligned to sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The range may be deallocated (write-zeroes only).
    pub unmap: bool,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the writable data from the disk, from this byte on.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Store the readable data on the disk, from this byte on.
    Write {
        /// Where on the disk.
        offset: u64,
    },
    /// All completed writes reach stable storage.
    Flush,
    /// The serial number goes to the writable data.
    Identify,
    /// The ranges' content is no longer needed.
    Discard,
    /// The ranges read as zero afterwards.
    WriteZeroes,
}

/// A chain that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What to do, or the status that says why not. Whatever it names lies inside the disk.
    pub operation: Result<Operation, u8>,
    /// Device-readable memory after the header.
    pub readable: &'a [Segment],
    /// Device-writable memory before the status byte.
    pub writable: &'a [Segment],
    /// What to discard or zero.
    pub ranges: &'a [Range],
    /// Where the status byte goes; memory is there.
    pub status: GuestAddress,
}

impl Request<'_> {
    /// Bytes that the device may write before the status byte, below 4 GiB.
    pub fn writable_bytes(&self) -> u64 {
        total(self.writable)
    }
}

/// What the disk allows at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size in sectors.
    pub capacity: u64,
    /// Nothing may be written.
    pub read_only: bool,
}

/// A chain that cannot be answered. The driver broke a rule that the device cannot report through the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A loop, a bad index, a bad indirect table, more than 4 GiB, or a descriptor outside memory.
    #[error("the chain does not end")]
    Unterminated,
    /// More descriptors than a queue has.
    #[error("the chain is longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// §2.7.4.2: writable descriptors come after all readable ones.
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    /// No writable byte.
    #[error("there is no place for the status byte")]
    NoStatus,
    /// The status byte is not in memory.
    #[error("the status byte lies outside guest memory")]
    StatusOutside,
}

/// Parses chains one after the other, reusing its buffers.
#[derive(Debug, Default)]
pub struct Parser {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    ranges: Vec<Range>,
}

struct Header {
    kind: u32,
    sector: u64,
}

impl Parser {
    /// Parses one chain. The result borrows the parser's buffers until the next call.
    pub fn parse<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: DescriptorChain<&M>,
        limits: Limits,
    ) -> Result<Request<'_>, Malformed> {
        self.collect(chain)?;
        let status = self.take_status(mem)?;
        let operation = match self.take_header(mem) {
            Some(header) => self.decide(mem, &header, limits),
            None => Err(IOERR),
        };
        let Self { readable, writable, ranges } = self;
        Ok(Request { operation, readable, writable, ranges, status })
    }

    /// Walks the chain. The iterator stops silently at whatever is wrong, so completeness is checked afterwards: a
    /// chain ends with a descriptor that has no successor.
    fn collect<M: GuestMemory>(&mut self, chain: DescriptorChain<&M>) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        self.ranges.clear();
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(Malformed::TooLong);
            }
            let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
            match descriptor.is_write_only() {
                true => self.writable.push(segment),
                false if self.writable.is_empty() => self.readable.push(segment),
                false => return Err(Malformed::Order),
            }
            ended = !descriptor.has_next();
        }
        if ended { Ok(()) } else { Err(Malformed::Unterminated) }
    }

    /// Cuts the last writable byte off and finds it in memory.
    fn take_status<M: GuestMemory>(&mut self, mem: &M) -> Result<GuestAddress, Malformed> {
        while self.writable.last().is_some_and(|segment| segment.length == 0) {
            self.writable.pop();
        }
        let last = self.writable.last_mut().ok_or(Malformed::NoStatus)?;
        last.length -= 1;
        let status = last.address.checked_add(last.length.into()).ok_or(Malformed::StatusOutside)?;
        if !mem.check_range(status, 1, Permissions::Write) {
            return Err(Malformed::StatusOutside);
        }
        Ok(status)
    }

    /// Cuts the header off the readable data. None if there is too little or it is not in memory.
    fn take_header<M: GuestMemory>(&mut self, mem: &M) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES as usize];
        read_prefix(mem, &self.readable, &mut bytes)?;
        let mut left = HEADER_BYTES as u32;
        for segment in &mut self.readable {
            let cut = left.min(segment.length);
            segment.address = GuestAddress(segment.address.0.wrapping_add(cut.into()));
            segment.length -= cut;
            left -= cut;
        }
        self.readable.retain(|segment| segment.length > 0);
        Some(Header { kind: le32(&bytes, 0), sector: le64(&bytes, 8) })
    }

    /// Decides what the request is, and whether the disk allows it.
    fn decide<M: GuestMemory>(&mut self, mem: &M, header: &Header, limits: Limits) -> Result<Operation, u8> {
        let written = total(&self.readable);
        let read = total(&self.writable);
        let writes = [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES].contains(&header.kind);
        // §5.2.6.2: a write to a read-only disk fails and writes nothing.
        if writes && (limits.read_only || read > 0) {
            return Err(IOERR);
        }
        match header.kind {
            VIRTIO_BLK_T_IN if written == 0 => Ok(Operation::Read { offset: extent(header.sector, read, limits)? }),
            VIRTIO_BLK_T_OUT => Ok(Operation::Write { offset: extent(header.sector, written, limits)? }),
            VIRTIO_BLK_T_FLUSH if written == 0 && read == 0 => Ok(Operation::Flush),
            VIRTIO_BLK_T_GET_ID if written == 0 && (SERIAL_BYTES as u64..=MAX_DATA).contains(&read) => {
                Ok(Operation::Identify)
            }
            VIRTIO_BLK_T_DISCARD => {
                self.collect_ranges(mem, MAX_DISCARD_SECTORS, 0, limits)?;
                Ok(Operation::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.collect_ranges(mem, MAX_WRITE_ZEROES_SECTORS, FLAG_UNMAP, limits)?;
                Ok(Operation::WriteZeroes)
            }
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID => Err(IOERR),
            _ => Err(UNSUPP),
        }
    }

    /// Reads the ranges of a discard or write-zeroes request. §5.2.6.2: flags that are not `known`, unmap in a discard
    /// among them, are unsupported; a range outside the disk or the advertised limits fails.
    fn collect_ranges<M: GuestMemory>(
        &mut self,
        mem: &M,
        max_sectors: u32,
        known: u32,
        limits: Limits,
    ) -> Result<(), u8> {
        let bytes = total(&self.readable);
        if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) || bytes > RANGE_BYTES * MAX_RANGES as u64 {
            return Err(IOERR);
        }
        let mut buffer = [0; RANGE_BYTES as usize * MAX_RANGES];
        let used = &mut buffer[..bytes as usize];
        read_prefix(mem, &self.readable, used).ok_or(IOERR)?;
        for raw in used.chunks_exact(RANGE_BYTES as usize) {
            let (sector, sectors, flags) = (le64(raw, 0), le32(raw, 8), le32(raw, 12));
            if flags & !known != 0 {
                return Err(UNSUPP);
            }
            let end = sector.checked_add(sectors.into()).ok_or(IOERR)?;
            if sectors > max_sectors || end > limits.capacity {
                return Err(IOERR);
            }
            let (offset, length) = (sector * SECTOR, u64::from(sectors) * SECTOR);
            self.ranges.push(Range { offset, length, unmap: flags & FLAG_UNMAP != 0 });
        }
        Ok(())
    }
}

const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// The byte offset of a transfer, if it is whole sectors, within the advertised limits, and inside the disk.
fn extent(sector: u64, bytes: u64, limits: Limits) -> Result<u64, u8> {
    let sectors = bytes / SECTOR;
    let end = sector.checked_add(sectors).ok_or(IOERR)?;
    if !bytes.is_multiple_of(SECTOR) || bytes > MAX_DATA || end > limits.capacity {
        return Err(IOERR);
    }
    sector.checked_mul(SECTOR).ok_or(IOERR)
}

/// Bytes of all segments; the chain's iterator has seen to it that this is below 4 GiB.
fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

/// Reads the first bytes of a scattered buffer. None if there are fewer, or they are not in memory.
fn read_prefix<M: GuestMemory>(mem: &M, segments: &[Segment], bytes: &mut [u8]) -> Option<()> {
    let mut left = bytes;
    for segment in segments {
        let count = left.len().min(segment.length as usize);
        let (now, later) = left.split_at_mut(count);
        mem.read_slice(now, segment.address).ok()?;
        left = later;
    }
    left.is_empty().then_some(())
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}
