//! The chart: for each guest EIP the host address of the block that begins there, in one array of 8 bytes for each guest
//! byte, so that an indirect branch is one host instruction: no hashing, no looking whether it came to the right place.
//!
//! There is one chart, for the address space and mode whose pages [`super::joints`] joins; a chart of its own for each would
//! cost a page of host memory for each 512 bytes of code, each time that a program starts. What is not on the chart reads
//! as zero, and a branch there faults at address zero with all guest state in place, see [`super::fault`].
//!
//! The context lies before it, so that emitted code reaches both by r15.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::context::Context;

const PAGE: usize = 4096;
/// Bytes of the chart.
const SIZE: usize = 8 << 32;
/// Where it begins, after the context.
pub const CHART: usize = size_of::<Context>().next_multiple_of(PAGE);
/// Host pages of the chart that may be in use; then all of it is given back.
const MAX_PAGES: usize = 4096;
/// Notes of what was put on it at most; then it is emptied.
const MAX_FILLED: usize = 1 << 16;

/// The context of one processor, with the chart behind it.
pub struct Chart {
    at: NonNull<u8>,
    /// The host lets the chart be written.
    usable: bool,
    /// EIPs that may be on it.
    filled: Vec<u32>,
    /// A bit for each host page that may have been touched since they were given back, and how many those are.
    touched: Vec<u64>,
    pages: usize,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Chart {}

impl Chart {
    /// A fresh context and an empty chart.
    pub fn new() -> Result<Self, nix::Error> {
        let length = NonZeroUsize::new(CHART + SIZE).ok_or(nix::Error::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses, page-aligned as the context needs; the context is
        // written inside it before anyone reads it.
        unsafe {
            let at = mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags)?;
            let mut chart =
                Self { at: at.cast(), usable: false, filled: Vec::new(), touched: vec![0; SIZE / PAGE / 64], pages: 0 };
            mprotect(at, CHART, writable)?;
            at.cast::<Context>().write(Context::new());
            // A host that counts all that could be written may refuse; indirect branches then go by the tables.
            chart.usable = mprotect(at.byte_add(CHART), SIZE, writable).is_ok();
            Ok(chart)
        }
    }

    /// False if the host has no room for it.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    fn entry(&self, eip: u32) -> *mut u64 {
        // Inside the mapping for any EIP.
        self.at.as_ptr().wrapping_add(CHART + 8 * eip as usize).cast()
    }

    /// Puts the block for `eip`, whose main entry is at executable address `main`, on the chart.
    pub fn put(&mut self, eip: u32, main: u64) {
        if !self.usable {
            return;
        }
        self.touch(eip);
        if self.filled.len() >= MAX_FILLED {
            self.clear();
        }
        self.filled.push(eip);
        // SAFETY: inside the mapping, which is writable.
        unsafe { self.entry(eip).write(main) };
    }

    /// The chart is read or written at `eip`: gives all of it back if that makes it too large.
    pub fn touch(&mut self, eip: u32) {
        let page = 8 * eip as usize / PAGE;
        let (word, bit) = (page / 64, 1 << (page % 64));
        if self.touched[word] & bit != 0 {
            return;
        }
        if self.pages >= MAX_PAGES {
            self.give_back();
        }
        self.touched[word] |= bit;
        self.pages += 1;
    }

    /// Takes the block for `eip` off the chart.
    pub fn remove(&mut self, eip: u32) {
        let page = 8 * eip as usize / PAGE;
        if self.touched[page / 64] & 1 << (page % 64) != 0 {
            // SAFETY: inside the mapping, which is writable if anything was touched.
            unsafe { self.entry(eip).write(0) };
        }
    }

    /// Takes everything off.
    pub fn clear(&mut self) {
        for eip in std::mem::take(&mut self.filled) {
            self.remove(eip);
        }
    }

    /// Maps the chart anew, which frees its pages and the host's own tables of them.
    fn give_back(&mut self) {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        let start = NonZeroUsize::new(self.at.as_ptr() as usize + CHART);
        // SAFETY: replaces the chart, which is ours, by an empty one; the context before it stays.
        let mapped = NonZeroUsize::new(SIZE)
            .map(|size| unsafe { mmap_anonymous(start, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) });
        if !matches!(mapped, Some(Ok(_))) {
            // What is there stays there, and must not lead anywhere.
            self.clear();
        }
        self.filled.clear();
        self.touched.fill(0);
        self.pages = 0;
    }
}

impl Deref for Chart {
    type Target = Context;

    fn deref(&self) -> &Context {
        // SAFETY: written in `new`, never moved, and borrowed as `self` is.
        unsafe { self.at.cast().as_ref() }
    }
}

impl DerefMut for Chart {
    fn deref_mut(&mut self) -> &mut Context {
        // SAFETY: as in `deref`.
        unsafe { self.at.cast().as_mut() }
    }
}

impl Drop for Chart {
    fn drop(&mut self) {
        // SAFETY: ours, and no emitted code runs once its engine is gone. The context owns nothing.
        let _ = unsafe { munmap(self.at.cast(), CHART + SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(chart: &Chart, eip: u32) -> u64 {
        // SAFETY: inside the mapping, which is readable.
        unsafe { chart.entry(eip).read() }
    }

    #[test]
    fn what_is_put_is_there_until_it_goes() {
        let mut chart = Chart::new().unwrap();
        if !chart.is_usable() {
            return;
        }
        for eip in [0, 1, 0x1234_5678, u32::MAX] {
            assert_eq!(at(&chart, eip), 0);
            chart.put(eip, 0x7000 + u64::from(eip));
            assert_eq!(at(&chart, eip), 0x7000 + u64::from(eip));
        }
        chart.remove(1);
        chart.remove(0x5000_0000);
        assert_eq!((at(&chart, 0), at(&chart, 1)), (0x7000, 0));
        chart.clear();
        assert_eq!((at(&chart, 0), at(&chart, u32::MAX)), (0, 0));
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut chart = Chart::new().unwrap();
        for n in 0..3 * MAX_FILLED as u32 {
            chart.put(7, u64::from(n));
            assert!(chart.filled.len() <= MAX_FILLED);
        }
        chart.cpl = 3;
        for n in 0..3 * MAX_PAGES as u32 {
            chart.put(n * 4096, 1);
            assert!(chart.pages <= MAX_PAGES && chart.filled.len() <= MAX_PAGES);
        }
        assert_eq!(chart.cpl, 3, "the context went with the chart");
        assert!(!chart.is_usable() || at(&chart, 0) == 0, "the first was not given back");
    }
}
