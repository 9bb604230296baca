//! Packets out of one virtqueue and into one (virtio 1.2, §5.1.6): each has a header of 12 bytes before it. No vhost-user
//! here, so a test can drive it over memory of its own.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::GuestMemory;

/// Bytes of struct virtio_net_hdr.
pub const HEADER: usize = 12;
/// Longest Ethernet frame in bytes: an IP packet of [`crate::config::MTU`] and its header.
pub const FRAME: usize = crate::config::MTU + 14;

/// Before a packet for the driver: no offload, one buffer (§5.1.6.4.1).
const RECEIVED: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Why a queue stopped for good. Until the driver resets it nothing is taken from it.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The rings themselves: outside memory, or an index that is ahead by more than the queue holds.
    #[error("its rings are unusable")]
    Ring(#[from] virtio_queue::Error),
    /// The available ring could not be read.
    #[error("its available ring lies outside guest memory")]
    Unreadable,
}

/// Whether the driver has made nothing available that was not taken.
pub fn is_empty<M: GuestMemory>(queue: &Queue, mem: &M) -> Result<bool, Broken> {
    Ok(queue.avail_idx(mem, Ordering::Acquire)?.0 == queue.next_avail())
}

/// Takes the next packet that the driver sends, and gives its buffer back: how many bytes of `frame` it has. One that is
/// not a frame - too long, or not even a header - has none. None if nothing is there.
pub fn take<M>(queue: &mut Queue, mem: &M, frame: &mut [u8; FRAME]) -> Result<Option<usize>, Broken>
where
    M: GuestMemory,
    M::Bitmap: 'static,
{
    if is_empty(queue, mem)? {
        return Ok(None);
    }
    let chain = queue.iter(mem)?.next().ok_or(Broken::Unreadable)?;
    let head = chain.head_index();
    let length = Reader::new(mem, chain).ok().and_then(|mut reader| read(&mut reader, frame)).unwrap_or(0);
    queue.add_used(mem, head, 0)?;
    Ok(Some(length))
}

fn read<B: vm_memory::bitmap::BitmapSlice>(reader: &mut Reader<'_, B>, frame: &mut [u8; FRAME]) -> Option<usize> {
    reader.read_exact(&mut [0; HEADER]).ok()?;
    let length = reader.available_bytes();
    reader.read_exact(frame.get_mut(..length)?).ok()?;
    Some(length)
}

/// Gives the driver a packet. False if it has lent no buffer. One that does not fit into the next buffer is lost, and the
/// buffer given back without it.
pub fn put<M>(queue: &mut Queue, mem: &M, frame: &[u8]) -> Result<bool, Broken>
where
    M: GuestMemory,
    M::Bitmap: 'static,
{
    if is_empty(queue, mem)? {
        return Ok(false);
    }
    let chain = queue.iter(mem)?.next().ok_or(Broken::Unreadable)?;
    let head = chain.head_index();
    let written = Writer::new(mem, chain).ok().and_then(|mut writer| {
        let fits = writer.available_bytes() >= HEADER + frame.len();
        let write = |writer: &mut Writer<'_, _>| writer.write_all(&RECEIVED).and_then(|()| writer.write_all(frame));
        (fits && write(&mut writer).is_ok()).then_some(HEADER + frame.len())
    });
    queue.add_used(mem, head, written.unwrap_or(0) as u32)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
