//! What O_DIRECT demands of an open file: asked of the kernel by statx (Linux 6.1), else the safe assumption of a page.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use super::raw::Alignment;

/// A multiple of every block size that Linux's own file systems have.
const ASSUMED: Alignment = Alignment { memory: 4096, offset: 4096 };
/// The scratch buffer is no more aligned than this.
const LARGEST: u32 = 4096;

/// Alignment demanded for O_DIRECT on `file`.
pub fn of(file: &File) -> io::Result<Alignment> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which with AT_EMPTY_PATH means the open descriptor itself; the kernel
    // fills the structure, which is as large as it expects.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, found.as_mut_ptr())
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid value of this structure of integers, and the kernel wrote more of them.
    let found = unsafe { found.assume_init() };
    if found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(ASSUMED);
    }
    let alignment = Alignment { memory: found.stx_dio_mem_align, offset: found.stx_dio_offset_align };
    let usable = |value: u32| value.is_power_of_two() && value <= LARGEST;
    if usable(alignment.memory) && usable(alignment.offset) {
        return Ok(alignment);
    }
    Err(io::Error::other("no O_DIRECT here, or with larger blocks than 4096 bytes; use another cache mode"))
}
