//! Closes every descriptor that is not to be kept.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Step, missing};
use crate::layer::Layer;

/// Closes all but 0, 1, 2 and `keep`. Whoever else in the process holds a descriptor loses it.
pub fn close_others(keep: &[BorrowedFd<'_>]) -> Step {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).chain([0, 1, 2]).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 0;
    for number in kept {
        if first < number {
            close(first, number - 1)?;
        }
        first = number + 1;
    }
    close(first, u32::MAX)
}

fn close(first: u32, last: u32) -> Step {
    // SAFETY: integers only. Rust objects that own a closed descriptor are forgotten by their makers: the process calls
    // this before it has made any that it does not keep.
    let closed = Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) });
    closed.map(drop).map_err(|source| missing(Layer::Descriptors, "close_range(2)", source))
}
