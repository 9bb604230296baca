//! virtio-net, as seen from the vmm (virtio 1.2, §5.1): queue 0 has buffers that the driver lends for what will be received,
//! queue 1 what it sends. Each packet has a 12-byte header before it, whose fields are between driver and device.
//!
//! Not offered: MRG_RXBUF (a packet must fit into one buffer), offloads, several queue pairs, and the control queue.

use super::chain::Chain;
use super::dma::Dma;
use super::kind::{Chains, Kind, Limits};

/// VIRTIO_NET_F_MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_STATUS.
pub const F_STATUS: u64 = 1 << 16;

/// struct virtio_net_hdr with num_buffers, which VERSION_1 always has.
const HEADER: u32 = 12;
/// struct virtio_net_config up to and with mtu.
const CONFIG_SIZE: usize = 12;
const MAX_PAIRS: usize = 8;
/// receiveq1.
const RECEIVE: usize = 0;

/// A network card with one pair of queues.
#[derive(Debug)]
pub struct Net;

impl Kind for Net {
    fn id(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        // Network, Ethernet.
        0x02_0000
    }

    fn features(&self) -> u64 {
        F_MTU | F_MAC | F_STATUS
    }

    fn own_features(&self) -> u64 {
        0
    }

    fn config_size(&self) -> usize {
        CONFIG_SIZE
    }

    fn config(&self, backend: &[u8], _limits: Limits) -> Vec<u8> {
        let mut config = backend.to_vec();
        config.resize(CONFIG_SIZE, 0);
        config[MAX_PAIRS..MAX_PAIRS + 2].copy_from_slice(&1u16.to_le_bytes());
        config
    }

    fn least_queues(&self) -> u16 {
        2
    }

    fn chains(&self, queue: usize) -> Chains {
        if queue == RECEIVE { Chains::Lent(HEADER) } else { Chains::Sent(HEADER) }
    }

    fn describe(&self, _head: &[u8], out_bytes: u64, in_bytes: u64) -> String {
        format!("a packet of {} bytes", (out_bytes + in_bytes).saturating_sub(HEADER.into()))
    }

    /// A packet that cannot be sent is lost; the driver is only told that its buffer is free.
    fn fail(&self, _chain: &Chain, _dma: &mut Dma<'_>) -> u32 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_ends_address_and_mtu_are_shown_and_one_pair_of_queues() {
        let backend = [2, 3, 4, 5, 6, 7, 1, 0, 9, 9, 0xdc, 5];
        let config = Net.config(&backend, Limits { queues: 2, queue_size: 256, request: 1 << 20 });
        assert_eq!(config, [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0xdc, 5]);
        assert_eq!(Net.config(&[], Limits { queues: 2, queue_size: 256, request: 0 }).len(), CONFIG_SIZE);
        assert_eq!((Net.chains(0), Net.chains(1)), (Chains::Lent(12), Chains::Sent(12)));
    }
}
