//! The code cache: one sealed memfd with two mappings, one to write and one to execute, never both in one.
//!
//! It is filled segment by segment, round and round: old code goes a segment at a time, oldest first.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use memfd::{FileSeal, MemfdOptions};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What most branches come to lies at multiples of this, so that a block which fits a line of the host's caches is in one.
/// Half of it makes short loops up to a third slower in every second place.
const ALIGNMENT: usize = 64;
/// Bytes that come before that in most blocks: the look whether they are meant.
const CHECK: usize = 12;

/// Parts that the cache is emptied by.
pub const SEGMENTS: usize = 4;

/// Why the code cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The memfd could not be created or sized.
    #[error("creating the code cache of {0} bytes")]
    Create(usize, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A mapping failed.
    #[error("mapping the code cache ({0}): does a security policy forbid executable memory?")]
    Map(&'static str, #[source] nix::Error),
}

/// The first offset from `offset` on that a block may begin at.
fn aligned(offset: usize) -> usize {
    (offset + CHECK).next_multiple_of(ALIGNMENT) - CHECK
}

/// A bump allocator over executable memory.
pub struct CodeCache {
    execute: NonNull<u8>,
    write: NonNull<u8>,
    size: usize,
    /// Bytes at the start that stay for ever.
    kept: usize,
    /// The segment being filled.
    segment: usize,
    /// Offset of the next code, in that segment or at its end.
    next: usize,
}

// SAFETY: both mappings belong to this value alone; the pointers are only used through its methods.
unsafe impl Send for CodeCache {}

impl CodeCache {
    /// A cache of `size` bytes, a multiple of [`SEGMENTS`] times 4 KiB.
    pub fn new(size: usize) -> Result<Self, CacheError> {
        let create = |e: Box<dyn std::error::Error + Send + Sync>| CacheError::Create(size, e);
        let options = MemfdOptions::default().close_on_exec(true).allow_sealing(true);
        let memfd = options.create("code-cache").map_err(|e| create(Box::new(e)))?;
        memfd.as_file().set_len(size as u64).map_err(|e| create(Box::new(e)))?;
        let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal];
        memfd.add_seals(&seals).map_err(|e| create(Box::new(e)))?;
        let file = memfd.into_file();
        let length = NonZeroUsize::new(size).ok_or(CacheError::Map("size", nix::Error::EINVAL))?;
        let execute = Self::map(&file, length, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC, "execute")?;
        let write = Self::map(&file, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, "write")?;
        Ok(Self { execute, write, size, kept: 0, segment: 0, next: 0 })
    }

    fn map(file: &File, length: NonZeroUsize, prot: ProtFlags, what: &'static str) -> Result<NonNull<u8>, CacheError> {
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let at = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file, 0) };
        Ok(at.map_err(|e| CacheError::Map(what, e))?.cast())
    }

    /// Address at which the next code will execute.
    pub fn next(&self) -> u64 {
        self.start() + self.next as u64
    }
    /// First executable address.
    pub fn start(&self) -> u64 {
        self.execute.as_ptr() as u64
    }
    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
    /// Size of each segment in bytes.
    pub fn segment_size(&self) -> usize {
        self.size / SEGMENTS
    }

    /// Executable addresses of `segment`.
    pub fn segment_addresses(&self, segment: usize) -> Range<u64> {
        let start = self.start() + (segment * self.segment_size()) as u64;
        start..start + self.segment_size() as u64
    }

    /// Appends `code`, padded with int3 so that what follows the next block's check is aligned. None if this segment has no room.
    pub fn append(&mut self, code: &[u8]) -> Option<u64> {
        let end = aligned(self.next + code.len());
        if end > (self.segment + 1) * self.segment_size() {
            return None;
        }
        let at = self.next();
        // SAFETY: [next, end) is inside the writable mapping; nothing executes it before this returns.
        unsafe {
            let to = self.write.as_ptr().add(self.next);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
            std::ptr::write_bytes(to.add(code.len()), 0xcc, end - self.next - code.len());
        }
        self.next = end;
        Some(at)
    }

    /// What was appended so far stays for ever.
    pub fn keep(&mut self) {
        self.kept = self.next;
    }

    /// Goes on to the next segment, and says which. What is there will be overwritten: nothing may lead there any more.
    pub fn advance(&mut self) -> usize {
        self.segment = (self.segment + 1) % SEGMENTS;
        self.next = aligned((self.segment * self.segment_size()).max(self.kept));
        self.segment
    }

    /// Replaces the 32-bit displacement at executable address `at` so that the branch that ends with it goes to
    /// `target`. The caller runs on the processor's own thread, so the branch is not being executed.
    pub fn patch_branch(&mut self, at: u64, target: u64) {
        self.patch(at, &(target.wrapping_sub(at + 4) as i32).to_le_bytes());
    }

    /// Replaces the code at executable address `at`, as [`Self::patch_branch`] does.
    pub fn patch(&mut self, at: u64, code: &[u8]) {
        let offset = (at - self.start()) as usize;
        if offset + code.len() <= self.size {
            // SAFETY: checked to be inside the mapping, and nobody holds a reference into it.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.as_ptr().add(offset), code.len()) };
        }
    }

    /// Copies code back out, for checking and for messages.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let offset = at.wrapping_sub(self.start()) as usize;
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Vec::new();
        }
        // SAFETY: the range is inside the mapping, which is never unmapped while self lives.
        unsafe { std::slice::from_raw_parts(self.execute.as_ptr().add(offset), length).to_vec() }
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        // SAFETY: the mappings are ours and no emitted code runs once the engine that owns this is gone.
        unsafe {
            let _ = munmap(self.execute.cast(), self.size);
            let _ = munmap(self.write.cast(), self.size);
        }
    }
}
