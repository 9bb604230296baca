//! What differs between device types, as far as the vmm must know: little, since the devices themselves are elsewhere.

use super::chain::Chain;
use super::dma::Dma;

/// What a device can be asked for at most, found from the bounce region's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queues.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
    /// Data bytes of one request.
    pub request: u64,
}

/// A device type.
pub trait Kind: Send {
    /// Virtio device id (virtio 1.2, §5).
    fn id(&self) -> u16;

    /// PCI class code: base class, subclass and interface.
    fn class(&self) -> u32;

    /// Which of the device's own feature bits may be offered to a guest, of those that the back end offers.
    fn features(&self) -> u64;

    /// Feature bits that are offered whatever the back end says, because the vmm itself sees to them.
    fn own_features(&self) -> u64;

    /// Bytes of configuration space.
    fn config_size(&self) -> usize;

    /// What the guest is shown for the configuration that the back end gave, which has [`Self::config_size`] bytes.
    fn config(&self, backend: &[u8], limits: Limits) -> Vec<u8>;

    /// How many of a request's first readable bytes go to the device in a descriptor of their own. Each has as many.
    fn head(&self) -> u32;

    /// How many of a request's last writable bytes do. Each has as many.
    fn tail(&self) -> u32;

    /// What the request with this head asks for, in words. The bytes are the guest's: whatever they are, the words are few and
    /// ours.
    fn describe(&self, head: &[u8], out_bytes: u64, in_bytes: u64) -> String;

    /// Completes `chain` as failed, without a device: writes what says so, and returns how many bytes that were. The
    /// only way a chain ends without its device.
    fn fail(&self, chain: &Chain, dma: &mut Dma<'_>) -> u32;
}
