//! Memory that someone else writes at the same time: guest RAM, which the guest owns, and the bounce region, which the
//! device process owns as much as we do. Every access is by value or by raw copy, bounds-checked; no reference into such
//! memory is ever formed. Ring indices are read and written as atomics, since they order what lies beside them.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering};

use crate::mmu::GuestRam;

/// Shared memory, addressed by guest-physical address or by offset.
///
/// # Safety
///
/// A pointer that `at` returns must be valid for reads and writes of `length` bytes as long as the value lives, and no
/// Rust reference may exist into that memory.
pub unsafe trait Shared {
    /// Host address of the `length` bytes at `address`; None if any lies outside.
    fn at(&self, address: u64, length: usize) -> Option<*mut u8>;

    /// Copies the `N` bytes at `address` out, once.
    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]>
    where
        Self: Sized,
    {
        let from = self.at(address, N)?;
        let mut bytes = [0; N];
        // SAFETY: `at` promises N readable bytes, and `bytes` is a distinct Rust allocation.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), N) };
        Some(bytes)
    }

    /// Copies `bytes` to `address`. None, with nothing written, if any would lie outside.
    fn write(&self, address: u64, bytes: &[u8]) -> Option<()> {
        let to = self.at(address, bytes.len())?;
        // SAFETY: `at` promises that many writable bytes, and `bytes` is a distinct Rust allocation.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Loads the little-endian u16 at even `address`: what its writer stored before it is seen after it.
    fn load_u16(&self, address: u64) -> Option<u16> {
        self.atomic(address).map(|place| u16::from_le(place.load(Ordering::Acquire)))
    }

    /// Stores a little-endian u16 at even `address`: what was stored before it is seen by who loads it.
    fn store_u16(&self, address: u64, value: u16) -> Option<()> {
        self.atomic(address).map(|place| place.store(value.to_le(), Ordering::Release))
    }

    /// The u16 at `address` as an atomic; None if it lies outside or is not aligned.
    fn atomic(&self, address: u64) -> Option<&AtomicU16> {
        let place = self.at(address, 2)?.cast::<u16>();
        // SAFETY: two valid bytes, aligned; others access them at the same time as processors do, or as atomics.
        place.is_aligned().then(|| unsafe { AtomicU16::from_ptr(place) })
    }
}

// SAFETY: `span` checks the range against a mapping that lives as long as the RAM, which hands out no references.
unsafe impl Shared for GuestRam {
    fn at(&self, address: u64, length: usize) -> Option<*mut u8> {
        self.span(address, length)
    }
}

/// Copies `length` bytes from one shared memory to another. None, with nothing written, if any lies outside.
pub fn copy(from: (&impl Shared, u64), to: (&impl Shared, u64), length: usize) -> Option<()> {
    let (source, target) = (from.0.at(from.1, length)?, to.0.at(to.1, length)?);
    // SAFETY: both ranges are valid for `length` bytes. The memories are different mappings or, with the same one,
    // `copy` allows them to overlap.
    unsafe { std::ptr::copy(source, target, length) };
    Some(())
}
