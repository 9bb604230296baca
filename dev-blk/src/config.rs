//! What the device says of itself: feature bits and the configuration space (virtio 1.2 §5.2.3, §5.2.4).
//!
//! Both follow from the options and the image alone, so a replacement process started with the same ones offers the
//! same: only the capacity changes, when the image is resized.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::request::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, SECTOR, SEG_MAX, SIZE_MAX};

/// Host page size and the block size of most media: what guests should align to.
const PHYSICAL_BLOCK: u32 = 4096;
/// Bytes of the configuration space; what lies behind reads as zero.
const BYTES: usize = 60;

/// The properties that the configuration space is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Smallest unit without reading more, in bytes: a power of two from 512 to 4096.
    pub block: u32,
    /// Virtqueues.
    pub queues: u16,
    /// Nothing may be written.
    pub read_only: bool,
}

impl Shape {
    /// Virtio feature bits offered.
    pub fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        match self.read_only {
            true => bits.push(VIRTIO_BLK_F_RO),
            false => bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]),
        }
        bits.iter().fold(0, |all, bit| all | 1 << bit)
    }

    /// `size` bytes of the configuration space from `offset` on, for a disk of `capacity` sectors.
    pub fn config(&self, capacity: u64, offset: u32, size: u32) -> Vec<u8> {
        let space = self.space(capacity);
        let at = |index: u64| usize::try_from(index).ok().and_then(|index| space.get(index)).copied().unwrap_or(0);
        (u64::from(offset)..u64::from(offset) + u64::from(size)).map(at).collect()
    }

    /// `struct virtio_blk_config` up to and with `write_zeroes_may_unmap`; fields not offered are zero.
    fn space(&self, capacity: u64) -> [u8; BYTES] {
        let discard_alignment = self.block / SECTOR as u32;
        let physical = PHYSICAL_BLOCK.max(self.block);
        let mut space = [0; BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &capacity.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        // 16: geometry, not offered.
        put(20, &self.block.to_le_bytes());
        // Topology: log2 of blocks in a physical block, alignment offset, smallest and best I/O size in blocks.
        put(24, &[(physical / self.block).trailing_zeros() as u8, 0]);
        put(26, &((physical / self.block) as u16).to_le_bytes());
        put(28, &0u32.to_le_bytes());
        // 32: writeback, not offered: caching is the host's decision.
        put(34, &self.queues.to_le_bytes());
        if !self.read_only {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &(MAX_RANGES as u32).to_le_bytes());
            put(44, &discard_alignment.to_le_bytes());
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &(MAX_RANGES as u32).to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { block: 512, queues: 4, read_only: false };

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let all = SHAPE.config(0x1122_3344_5566, 0, 60);
        let le = |at: usize, size: usize| {
            all[at..at + size].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        assert_eq!(le(0, 8), 0x1122_3344_5566);
        assert_eq!((le(8, 4), le(12, 4), le(20, 4)), (1 << 20, 126, 512));
        assert_eq!((le(24, 1), le(26, 2), le(34, 2)), (3, 8, 4));
        assert_eq!((le(36, 4), le(40, 4), le(44, 4)), (1 << 22, 32, 1));
        assert_eq!((le(48, 4), le(52, 4), le(56, 1)), (1 << 15, 32, 1));
    }

    #[test]
    fn any_window_is_answered_and_the_rest_is_zero() {
        let all = SHAPE.config(7, 0, 256);
        assert_eq!(all[60..], [0; 196]);
        assert_eq!(SHAPE.config(7, 20, 4), all[20..24]);
        assert_eq!(SHAPE.config(7, u32::MAX, 16), [0; 16]);
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let shape = Shape { read_only: true, ..SHAPE };
        let gained = shape.features() & !SHAPE.features();
        let lost = SHAPE.features() & !shape.features();
        assert_eq!((gained, lost), (1 << VIRTIO_BLK_F_RO, 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES));
        assert_eq!(shape.config(7, 36, 24), [0; 24]);
    }
}
