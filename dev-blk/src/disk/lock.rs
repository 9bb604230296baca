//! Who may use an image: one writer, or any number of readers.
//!
//! Open file description locks over the whole file: they belong to the descriptor's open, not to a process, so they are
//! inherited and released as the descriptor is, and QEMU's own image locks conflict with them. Where the broker opened
//! the image it holds the lock on an open of its own, and the device takes none.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Takes the lock, or fails at once: EAGAIN says that somebody else has it.
pub fn lock(file: &File, exclusive: bool) -> Result<(), Errno> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    // A length of 0 reaches to the end of the file, however long it grows.
    let whole = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Err(Errno::EACCES) => Err(Errno::EAGAIN),
        other => other.map(drop),
    }
}
