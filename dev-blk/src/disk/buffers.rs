//! A request's memory as the kernel sees it: the one place where addresses of guest memory are handed to a system call.
//!
//! Guest memory is shared with processes that write it while we work, so no Rust reference into it is ever made: bytes
//! move either by preadv and pwritev, straight between file and guest, or by vm-memory's volatile copies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::request::Segment;

/// Vectors of one system call: a request within the advertised limits needs one call.
const VECTORS: usize = 128;

/// Scattered guest memory, in the order of the data.
#[derive(Debug)]
pub struct Buffers<'a, B> {
    slices: Vec<VolatileSlice<'a, B>>,
    length: u64,
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl<'a, B: BitmapSlice> Buffers<'a, B> {
    /// Finds the segments in memory. An error if a part of them is not there.
    pub fn gather<M>(mem: &'a M, segments: &[Segment], access: Permissions) -> io::Result<Self>
    where
        M: GuestMemory,
        M::Bitmap: vm_memory::bitmap::WithBitmapSlice<'a, S = B>,
    {
        let mut slices: Vec<VolatileSlice<'a, BS<'a, M::Bitmap>>> = Vec::with_capacity(segments.len());
        for segment in segments {
            let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a buffer lies outside guest memory");
            let parts = mem.get_slices(segment.address, segment.length as usize, access).map_err(|_| outside())?;
            for part in parts {
                slices.push(part.map_err(|_| outside())?);
            }
        }
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        Ok(Self { slices, length })
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether every piece starts and ends on a multiple of `alignment`, as O_DIRECT demands of memory.
    pub fn aligned(&self, alignment: usize) -> bool {
        let aligned = |slice: &VolatileSlice<'a, B>| {
            (slice.ptr_guard().as_ptr() as usize | slice.len()).is_multiple_of(alignment)
        };
        self.slices.iter().all(aligned)
    }

    /// Fills the memory from a file. Fails if the file ends before the memory does.
    pub fn read_from(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        let result = self.transfer(file.as_fd(), offset, Direction::Read);
        self.slices.iter().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
        result
    }

    /// Stores the memory in a file.
    pub fn write_to(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.transfer(file.as_fd(), offset, Direction::Write)
    }

    /// Copies `bytes` into the memory, `at` bytes from its start. What does not fit is left out.
    pub fn copy_in(&self, at: u64, bytes: &[u8]) {
        let mut left = bytes;
        for slice in self.from(at) {
            let (now, later) = left.split_at(left.len().min(slice.len()));
            slice.copy_from(now);
            left = later;
        }
    }

    /// Copies the memory from `at` bytes after its start into `bytes`. What is not there is left as it was.
    pub fn copy_out(&self, at: u64, bytes: &mut [u8]) {
        let mut left = bytes;
        for slice in self.from(at) {
            let (now, later) = left.split_at_mut(left.len().min(slice.len()));
            slice.copy_to(now);
            left = later;
        }
    }

    /// The pieces from `at` bytes after the start.
    fn from(&self, at: u64) -> impl Iterator<Item = VolatileSlice<'a, B>> + '_ {
        let mut skip = at;
        self.slices.iter().filter_map(move |slice| {
            let cut = skip.min(slice.len() as u64);
            skip -= cut;
            slice.offset(cut as usize).ok().filter(|rest| !rest.is_empty())
        })
    }

    fn transfer(&self, file: BorrowedFd<'_>, offset: u64, direction: Direction) -> io::Result<()> {
        let mut done = 0;
        while done < self.length {
            let position = offset.checked_add(done).and_then(|at| i64::try_from(at).ok());
            let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            done += match self.transfer_once(file, done, position, direction) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// One system call on the pieces from `done` on; the bytes that it moved.
    fn transfer_once(
        &self,
        file: BorrowedFd<'_>,
        done: u64,
        position: libc::off_t,
        direction: Direction,
    ) -> io::Result<u64> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTORS];
        let mut count = 0;
        for (vector, slice) in vectors.iter_mut().zip(self.from(done)) {
            *vector = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
            count += 1;
        }
        // SAFETY: each vector is memory of a mapping that `self` borrows for 'a, with its true length; it is shared
        // memory, to which no Rust reference exists. The descriptor is open for the borrow's length.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, position),
                Direction::Write => libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, position),
            }
        };
        u64::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}
