//! Guest RAM: one memfd, sealed against resizing, mapped once.
//!
//! Physical layout, as on PC chipsets: RAM from 0 up to [`LOW_RAM_LIMIT`], the PCI hole up to 4 GiB, and what is left
//! of RAM from 4 GiB on. The memfd holds both parts back to back.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// log2 of the size of a page frame.
pub const FRAME_SHIFT: u32 = 12;
/// Size of a page frame in bytes.
pub const FRAME_SIZE: usize = 1 << FRAME_SHIFT;
/// End of RAM below 4 GiB: the PCI hole starts here.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RamError {
    #[error("guest RAM of {0} bytes: the size must be a multiple of 4 KiB between 1 MiB and 64 GiB")]
    Size(u64),
    #[error("making guest RAM")]
    Create(#[from] ipc::shm::ShmError),
    #[error("mapping {size} bytes of guest RAM: is RLIMIT_AS or vm.overcommit_memory in the way?")]
    Map { size: u64, source: nix::Error },
}

/// Flag of a frame: an engine holds decoded or translated code from it, so stores must be reported.
const CODE: u8 = 1;

/// Guest RAM. Shared by processors and devices; all access is by value or by copy.
pub struct GuestRam {
    file: File,
    base: NonNull<u8>,
    size: u64,
    /// One byte a frame: see [`CODE`].
    frames: Box<[AtomicU8]>,
}

// SAFETY: the mapping lives as long as the value, and every access to it is a raw copy: no reference into guest RAM is
// ever formed, so sharing between threads has the semantics of real memory shared by processors.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Makes `size` bytes of zeroed RAM.
    pub fn new(size: u64) -> Result<Self, RamError> {
        if !(1 << 20..=64 << 30).contains(&size) || !size.is_multiple_of(FRAME_SIZE as u64) {
            return Err(RamError::Size(size));
        }
        let file = ipc::shm::sealed("guest-ram", size)?;
        let length = std::num::NonZeroUsize::new(size as usize).ok_or(RamError::Size(size))?;
        // SAFETY: a fresh shared mapping at an address the kernel chooses; nothing else is replaced.
        let base =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0) }
                .map_err(|source| RamError::Map { size, source })?;
        // Guest memory in a core file would be a leak. Failure only means a larger core.
        // SAFETY: the range was just mapped by us.
        let _ = unsafe { madvise(base, size as usize, MmapAdvise::MADV_DONTDUMP) };
        let frames = (0..size >> FRAME_SHIFT).map(|_| AtomicU8::new(0)).collect();
        Ok(Self { file, base: base.cast(), size, frames })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// The part below the PCI hole, in bytes: RAM at 0.
    pub fn low_size(&self) -> u64 {
        self.size.min(LOW_RAM_LIMIT)
    }
    /// The part above 4 GiB, in bytes: RAM at 4 GiB.
    pub fn high_size(&self) -> u64 {
        self.size - self.low_size()
    }
    /// The memfd, for mapping windows.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Offset in the memfd of physical address `gpa`; None outside RAM.
    #[inline]
    pub fn offset_of(&self, gpa: u64) -> Option<u64> {
        if gpa < LOW_RAM_LIMIT {
            (gpa < self.size).then_some(gpa)
        } else {
            let offset = gpa.wrapping_sub(FOUR_GIB).wrapping_add(LOW_RAM_LIMIT);
            (gpa >= FOUR_GIB && offset < self.size).then_some(offset)
        }
    }

    /// Host address of the byte at `gpa`, valid to the end of its frame; None outside RAM.
    #[inline]
    pub fn host_address(&self, gpa: u64) -> Option<*mut u8> {
        // SAFETY: the offset was checked against the mapping's size.
        self.offset_of(gpa).map(|o| unsafe { self.base.as_ptr().add(o as usize) })
    }

    /// Copies RAM at `gpa` into `to`. False, with `to` untouched, if any byte lies outside RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        match self.span(gpa, to.len()) {
            Some(from) => {
                // SAFETY: `span` checked the whole range; `to` is a distinct Rust allocation.
                unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
                true
            }
            None => false,
        }
    }

    /// Copies `from` into RAM at `gpa`, without telling engines: for loading images, page-table bits and device DMA
    /// whose caller invalidates code itself. False, with RAM untouched, if any byte lies outside RAM.
    pub fn write(&self, gpa: u64, from: &[u8]) -> bool {
        match self.span(gpa, from.len()) {
            Some(to) => {
                // SAFETY: as in `read`.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
                true
            }
            None => false,
        }
    }

    /// The little-endian u32 at `gpa`; None outside RAM.
    #[inline]
    pub fn read_u32(&self, gpa: u64) -> Option<u32> {
        // SAFETY: `span` checked the four bytes; guest RAM is only ever accessed by copy.
        self.span(gpa, 4).map(|at| unsafe { at.cast::<u32>().read_unaligned() })
    }
    /// The little-endian u64 at `gpa`; None outside RAM.
    #[inline]
    pub fn read_u64(&self, gpa: u64) -> Option<u64> {
        // SAFETY: as in `read_u32`.
        self.span(gpa, 8).map(|at| unsafe { at.cast::<u64>().read_unaligned() })
    }

    /// True if the `copy.len()` bytes of RAM at `gpa` equal `copy`; false if any lies outside RAM.
    pub fn equals(&self, gpa: u64, copy: &[u8]) -> bool {
        self.span(gpa, copy.len()).is_some_and(|at| {
            // SAFETY: `span` checked the whole range; memcmp reads raw bytes and forms no reference.
            unsafe { libc::memcmp(at.cast(), copy.as_ptr().cast(), copy.len()) == 0 }
        })
    }

    /// Zeroes all of RAM, as a cold start does.
    pub fn clear(&self) {
        // SAFETY: the whole mapping is ours. MADV_REMOVE frees the memfd's pages: they read as zero after.
        let freed = unsafe { madvise(self.base.cast(), self.size as usize, MmapAdvise::MADV_REMOVE) };
        if freed.is_err() {
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, self.size as usize) };
        }
    }

    /// Host address of the `len` bytes at `gpa`; None if any lies outside RAM.
    #[inline]
    pub fn span(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let first = self.offset_of(gpa)?;
        let last = gpa.checked_add(len.max(1) as u64 - 1)?;
        (self.offset_of(last)? == first + (len.max(1) as u64 - 1)).then_some(())?;
        // SAFETY: first and last byte are inside the mapping, which is contiguous.
        Some(unsafe { self.base.as_ptr().add(first as usize) })
    }

    /// Marks the frame that holds `gpa` as one that an engine holds code from. Stores to it are reported until
    /// [`Self::clear_code`]. The caller must drop writable software TLB entries for it.
    pub fn mark_code(&self, gpa: u64) {
        if let Some(f) = self.frame(gpa) {
            f.fetch_or(CODE, Ordering::Relaxed);
        }
    }
    /// Ends [`Self::mark_code`].
    pub fn clear_code(&self, gpa: u64) {
        if let Some(f) = self.frame(gpa) {
            f.fetch_and(!CODE, Ordering::Relaxed);
        }
    }
    /// True if an engine holds code from the frame that holds `gpa`.
    #[inline]
    pub fn is_code(&self, gpa: u64) -> bool {
        self.frame(gpa).is_some_and(|f| f.load(Ordering::Relaxed) & CODE != 0)
    }
    fn frame(&self, gpa: u64) -> Option<&AtomicU8> {
        self.frames.get((self.offset_of(gpa)? >> FRAME_SHIFT) as usize)
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it.
        let _ = unsafe { munmap(self.base.cast(), self.size as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_leaves_the_pci_hole() {
        let ram = GuestRam::new(LOW_RAM_LIMIT + (1 << 20)).unwrap();
        assert_eq!((ram.low_size(), ram.high_size()), (LOW_RAM_LIMIT, 1 << 20));
        assert_eq!(ram.offset_of(LOW_RAM_LIMIT), None);
        assert_eq!(ram.offset_of(FOUR_GIB), Some(LOW_RAM_LIMIT));
        assert_eq!(ram.offset_of(FOUR_GIB + (1 << 20)), None);
        assert_eq!(ram.offset_of(u64::MAX), None);
        assert!(!ram.write(LOW_RAM_LIMIT - 2, &[0; 4]), "a write into the hole must be refused whole");
    }

    #[test]
    fn a_small_ram_ends_where_it_ends() {
        let ram = GuestRam::new(1 << 20).unwrap();
        assert!(ram.write((1 << 20) - 4, &[1, 2, 3, 4]));
        assert_eq!(ram.read_u32((1 << 20) - 4), Some(0x0403_0201));
        assert_eq!(ram.read_u32((1 << 20) - 3), None);
        assert_eq!(ram.read_u32(u64::MAX - 1), None);
        ram.clear();
        assert_eq!(ram.read_u32((1 << 20) - 4), Some(0));
    }
}
