//! virtio-blk, as seen from the vmm (virtio 1.2, §5.2): a request is a 16-byte header, data, and a status byte.

use super::chain::{Chain, Pieces};
use super::dma::Dma;
use super::kind::{Chains, Kind, Limits};

/// VIRTIO_BLK_F_SIZE_MAX.
pub const F_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX.
pub const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
pub const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
pub const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_MQ.
pub const F_MQ: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD.
pub const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// VIRTIO_BLK_S_IOERR.
const S_IOERR: u8 = 1;

const HEADER: u32 = 16;
const STATUS: u32 = 1;
/// struct virtio_blk_discard_write_zeroes.
const RANGE: u64 = 16;
/// struct virtio_blk_config up to and with write_zeroes_may_unmap and its padding.
const CONFIG_SIZE: usize = 60;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const NUM_QUEUES: usize = 34;

/// A disk.
#[derive(Debug)]
pub struct Block;

impl Kind for Block {
    fn id(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        // Mass storage, other: no generic driver takes it for something else.
        0x01_8000
    }

    /// Not CONFIG_WCE, by which a guest could write configuration space, whose answers come from a cache.
    fn features(&self) -> u64 {
        F_RO | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ | F_DISCARD | F_WRITE_ZEROES
    }

    fn own_features(&self) -> u64 {
        F_SIZE_MAX | F_SEG_MAX
    }

    fn config_size(&self) -> usize {
        CONFIG_SIZE
    }

    /// No request that keeps to SIZE_MAX and SEG_MAX is larger than the bounce region takes.
    fn config(&self, backend: &[u8], limits: Limits) -> Vec<u8> {
        let mut config = backend.to_vec();
        config.resize(CONFIG_SIZE, 0);
        let segments = u32::from(limits.queue_size).saturating_sub(2).max(1);
        let size = (limits.request / u64::from(segments)).clamp(1, 1 << 20) as u32;
        // Segments of whole pages, where the region allows that.
        let size = if size >= 4096 { size & !4095 } else { size };
        config[SIZE_MAX..SIZE_MAX + 4].copy_from_slice(&size.to_le_bytes());
        config[SEG_MAX..SEG_MAX + 4].copy_from_slice(&segments.to_le_bytes());
        config[NUM_QUEUES..NUM_QUEUES + 2].copy_from_slice(&limits.queues.to_le_bytes());
        config
    }

    fn least_queues(&self) -> u16 {
        1
    }

    fn chains(&self, _queue: usize) -> Chains {
        Chains::Request { head: HEADER, tail: STATUS }
    }

    fn describe(&self, head: &[u8], out_bytes: u64, in_bytes: u64) -> String {
        let number = |range: std::ops::Range<usize>| {
            head.get(range).unwrap_or_default().iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let (kind, sector) = (number(0..4), number(8..16));
        match kind {
            0 => format!("a read of {in_bytes} bytes at sector {sector}"),
            1 => format!("a write of {out_bytes} bytes at sector {sector}"),
            4 => "a flush".into(),
            8 => "a request for the serial number".into(),
            11 => format!("a discard of {} ranges", out_bytes / RANGE),
            13 => format!("a write of zeroes to {} ranges", out_bytes / RANGE),
            other => format!("a request of type {other}"),
        }
    }

    fn fail(&self, chain: &Chain, dma: &mut Dma<'_>) -> u32 {
        let Some(last) = chain.in_bytes().checked_sub(u64::from(STATUS)) else { return 0 };
        let place = Pieces::after(&chain.writable, last).next(STATUS);
        place.and_then(|(gpa, _)| dma.write(gpa, &[S_IOERR])).map_or(0, |()| STATUS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Segment;
    use super::*;
    use crate::mmu::GuestRam;

    #[test]
    fn limits_are_put_over_the_back_ends() {
        let backend: Vec<u8> = (0..60).collect();
        let config = Block.config(&backend, Limits { queues: 2, queue_size: 256, request: 4 << 20 });
        assert_eq!(config[..8], backend[..8], "the capacity is the back end's");
        assert_eq!(config[8..12], 16384u32.to_le_bytes());
        assert_eq!(config[12..16], 254u32.to_le_bytes());
        assert_eq!(config[34..36], [2, 0]);
        let config = Block.config(&[], Limits { queues: 1, queue_size: 1, request: 0 });
        assert_eq!((config.len(), &config[8..16]), (60, &[1, 0, 0, 0, 1, 0, 0, 0][..]));
    }

    #[test]
    fn requests_are_described_whatever_their_bytes() {
        let head = |kind: u32, sector: u64| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        assert_eq!(Block.describe(&head(0, 2048), 0, 4096), "a read of 4096 bytes at sector 2048");
        assert_eq!(Block.describe(&head(1, u64::MAX), 9, 0), format!("a write of 9 bytes at sector {}", u64::MAX));
        assert_eq!(Block.describe(&head(11, 0), 32, 0), "a discard of 2 ranges");
        assert_eq!(Block.describe(&head(u32::MAX, 0), 0, 0), "a request of type 4294967295");
        assert_eq!(Block.describe(&[1], 0, 0), "a read of 0 bytes at sector 0");
    }

    #[test]
    fn a_failed_request_has_an_error_status_in_its_last_byte() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let writable = vec![Segment { gpa: 0x1000, length: 512 }, Segment { gpa: 0x3000, length: 1 }];
        let mut dma = Dma::new(&ram);
        let chain = Chain { head: 3, readable: Vec::new(), writable };
        assert_eq!(Block.fail(&chain, &mut dma), 1);
        assert_eq!(ram.read_u32(0x3000), Some(1));
        assert_eq!(ram.read_u32(0x1000), Some(0));
        assert_eq!(Block.fail(&Chain::default(), &mut dma), 0, "nowhere to say it");
    }
}
