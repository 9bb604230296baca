//! What a driver reads of the card: features and configuration space (virtio 1.2, §5.1.3, §5.1.4).

use vhost::vhost_user::message::VhostUserVirtioFeatures;

/// Longest IP packet in bytes.
pub const MTU: usize = 1500;
/// Bytes of struct virtio_net_config up to and with mtu.
const SIZE: usize = 12;

/// VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC.
const OWN: u64 = 1 << 3 | 1 << 5;
/// VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1.
const RING: u64 = 1 << 28 | 1 << 29 | 1 << 32;

/// Features that are offered.
pub fn features() -> u64 {
    OWN | RING | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// `size` bytes at `offset` of the configuration space; what lies outside it is left out.
pub fn read(mac: [u8; 6], offset: u32, size: u32) -> Vec<u8> {
    let mut config = [0; SIZE];
    config[..6].copy_from_slice(&mac);
    // max_virtqueue_pairs, then mtu.
    config[8..10].copy_from_slice(&1u16.to_le_bytes());
    config[10..].copy_from_slice(&(MTU as u16).to_le_bytes());
    config.iter().copied().skip(offset as usize).take(size as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_the_configuration_can_be_read() {
        assert_eq!(read([1, 2, 3, 4, 5, 6], 0, 12), [1, 2, 3, 4, 5, 6, 0, 0, 1, 0, 0xdc, 5]);
        assert_eq!(read([1, 2, 3, 4, 5, 6], 4, 100).len(), 8);
        assert!(read([0; 6], u32::MAX, u32::MAX).is_empty());
    }
}
