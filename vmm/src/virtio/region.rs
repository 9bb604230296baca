//! The bounce region: a small memfd, sealed against resizing, that is all a device process ever maps of us.
//!
//! Its layout is ours alone to know. For each queue there are four pages of *control*: descriptor table, available
//! ring, used ring, and a 64-byte *slot* for each chain, which holds the chain's first readable and last writable bytes
//! (request header and status). The rest are *data* pages, handed out by [`super::pool::Pool`].
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use ipc::control::{MAX_BOUNCE, MIN_BOUNCE};
use ipc::shm::ShmError;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::memory::Shared;

/// Where a region is in the address space of a device that maps guest RAM as well: above all of it.
pub const RINGS: u64 = 1 << 40;
/// Unit of the data area in bytes.
pub const PAGE: u64 = 4096;
/// Descriptors of a shadow queue.
pub const RING: u16 = 256;
/// Descriptors set aside for each chain.
pub const PER_CHAIN: u16 = 4;
/// Chains that a shadow queue holds at most.
pub const CHAINS: u16 = RING / PER_CHAIN;
/// Bytes in a chain's slot for its first readable bytes, and as many for its last writable ones.
pub const SLOT_HALF: u32 = 32;

const CONTROL_PAGES: u64 = 4;

/// Why a bounce region could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RegionError {
    #[error("a bounce region of {0} bytes: 1 MiB to 1 GiB, in steps of 4 KiB, are possible")]
    Size(u64),
    #[error("creating a bounce region")]
    Create(#[from] ShmError),
    #[error("mapping {size} bytes of bounce region")]
    Map { size: u64, source: nix::Error },
}

/// A bounce region, mapped. Addresses are offsets from its start.
#[derive(Debug)]
pub struct Region {
    file: File,
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: the mapping lives as long as the value and is only accessed by raw copies and atomics (see `memory`).
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

// SAFETY: `at` checks the range against the mapping, which lives as long as the value; there are no references into it.
unsafe impl Shared for Region {
    fn at(&self, address: u64, length: usize) -> Option<*mut u8> {
        let end = address.checked_add(length as u64)?;
        // SAFETY: the offset is inside the mapping.
        (end <= self.size).then(|| unsafe { self.base.as_ptr().add(address as usize) })
    }
}

impl Region {
    /// Makes a zeroed region of `size` bytes.
    pub fn new(size: u64) -> Result<Self, RegionError> {
        if !(MIN_BOUNCE..=MAX_BOUNCE).contains(&size) || !size.is_multiple_of(PAGE) {
            return Err(RegionError::Size(size));
        }
        let file = ipc::shm::sealed("bounce", size)?;
        let length = NonZeroUsize::new(size as usize).ok_or(RegionError::Size(size))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address the kernel chooses. The seals keep it backed: no SIGBUS.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }
            .map_err(|source| RegionError::Map { size, source })?;
        // What passes through is guest data: not for core files. Failure only means a larger one.
        // SAFETY: the range was just mapped by us.
        let _ = unsafe { madvise(base, size as usize, MmapAdvise::MADV_DONTDUMP) };
        Ok(Self { file, base: base.cast(), size })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memfd, for the device's memory table.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it.
        let _ = unsafe { munmap(self.base.cast(), self.size as usize) };
    }
}

/// Where the parts of one queue lie in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Slots of the chains, two halves of [`SLOT_HALF`] bytes each.
    pub slots: u64,
}

impl Control {
    /// The control pages of queue `index`.
    pub fn of(index: usize) -> Self {
        let base = index as u64 * CONTROL_PAGES * PAGE;
        Self { descriptors: base, avail: base + PAGE, used: base + 2 * PAGE, slots: base + 3 * PAGE }
    }

    /// Where the first readable bytes of chain `chain` go.
    pub fn head(&self, chain: u16) -> u64 {
        self.slots + u64::from(chain) * u64::from(2 * SLOT_HALF)
    }

    /// Where the last writable bytes of chain `chain` go.
    pub fn tail(&self, chain: u16) -> u64 {
        self.head(chain) + u64::from(SLOT_HALF)
    }
}

/// First page and number of data pages of a region of `size` bytes that serves `queues` queues.
pub fn data_pages(size: u64, queues: usize) -> (u64, u64) {
    let first = queues as u64 * CONTROL_PAGES;
    (first, (size / PAGE).saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_region_is_reached() {
        let region = Region::new(MIN_BOUNCE).unwrap();
        assert_eq!(region.write(MIN_BOUNCE - 4, &[1, 2, 3, 4]), Some(()));
        assert_eq!(region.read::<4>(MIN_BOUNCE - 4), Some([1, 2, 3, 4]));
        assert_eq!(region.read::<4>(MIN_BOUNCE - 3), None);
        assert_eq!(region.write(u64::MAX - 1, &[0; 4]), None);
        assert_eq!(region.load_u16(MIN_BOUNCE - 4), Some(0x0201));
        assert_eq!(region.load_u16(1), None, "not aligned");
        assert!(matches!(Region::new(MIN_BOUNCE + 1), Err(RegionError::Size(_))));
    }

    #[test]
    fn the_parts_of_a_queue_do_not_overlap() {
        let (one, two) = (Control::of(0), Control::of(1));
        assert!(one.descriptors + 16 * u64::from(RING) <= one.avail);
        assert!(one.avail + 6 + 2 * u64::from(RING) <= one.used);
        assert!(one.used + 6 + 8 * u64::from(RING) <= one.slots);
        assert!(one.tail(CHAINS - 1) + u64::from(SLOT_HALF) <= two.descriptors);
        assert_eq!(data_pages(MIN_BOUNCE, 2), (8, 248));
    }
}
