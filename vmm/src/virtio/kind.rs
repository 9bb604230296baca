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

/// What the chains of a queue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chains {
    /// Requests with their answers. When their process is gone, the next one gets them.
    Request {
        /// How many of a request's first readable bytes go to the device in a descriptor of their own. Each has as many.
        head: u32,
        /// How many of a request's last writable bytes do. Each has as many.
        tail: u32,
    },
    /// Buffers lent ahead of time, of at least so many bytes, for what the device will have to say: nobody waits for them,
    /// they never fail, and all of them together take half of the region at most. The next process gets them.
    Lent(u32),
    /// What is sent, at least so many bytes. What a process had when it ended is lost, as it may be on any wire.
    Sent(u32),
}

impl Chains {
    /// Least bytes of a chain's readable and writable side.
    pub fn least(self) -> (u64, u64) {
        match self {
            Self::Request { head, tail } => (head.into(), tail.into()),
            Self::Lent(bytes) => (0, bytes.into()),
            Self::Sent(bytes) => (bytes.into(), 0),
        }
    }

    /// Whether a chain may have bytes on the readable and on the writable side.
    pub fn sides(self) -> (bool, bool) {
        (!self.are_lent(), !matches!(self, Self::Sent(_)))
    }

    /// Bytes with descriptors of their own: first readable ones, last writable ones.
    pub fn ends(self) -> (u32, u32) {
        if let Self::Request { head, tail } = self { (head, tail) } else { (0, 0) }
    }

    /// See [`Self::Lent`].
    pub fn are_lent(self) -> bool {
        matches!(self, Self::Lent(_))
    }

    /// How many of `pages` data pages the queue leaves to others.
    pub fn leaves(self, pages: u64) -> u64 {
        if self.are_lent() { pages / 2 } else { 0 }
    }
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

    /// Fewest queues that a device of this type has.
    fn least_queues(&self) -> u16;

    /// What the chains of queue `queue` are.
    fn chains(&self, queue: usize) -> Chains;

    /// What the request with this head asks for, in words. The bytes are the guest's: whatever they are, the words are few and
    /// ours.
    fn describe(&self, head: &[u8], out_bytes: u64, in_bytes: u64) -> String;

    /// Completes `chain` as failed, without a device: writes what says so, and returns how many bytes that were. The
    /// only way a chain ends without its device. Never called for one that is lent.
    fn fail(&self, chain: &Chain, dma: &mut Dma<'_>) -> u32;
}
