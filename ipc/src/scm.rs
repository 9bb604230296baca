//! sendmsg and recvmsg with descriptors. Apart from nix's, since a hostile peer may send more descriptors than there is
//! room for, and those that did arrive must be owned, and so closed, before anything is judged.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Most descriptors in a packet. The kernel closes what a peer sends beyond it.
pub const MAX_DESCRIPTORS: usize = 24;
const ROOM: usize = MAX_DESCRIPTORS * size_of::<RawFd>();

/// Room for one control message, aligned as its header is.
#[repr(C, align(8))]
struct Ancillary([MaybeUninit<u8>; 128 + ROOM]);

/// A packet, as it came.
pub struct Received {
    /// Bytes written to the buffer.
    pub length: usize,
    /// What came along.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors did not fit.
    pub truncated: bool,
}

/// Sends one packet without blocking.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::E2BIG);
    }
    let mut room = Ancillary([MaybeUninit::zeroed(); 128 + ROOM]);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the header points to buffers that live until the call returns; the one control message is written inside
    // its room, whose size is that of the largest, and its length is computed by the kernel's own macros.
    unsafe {
        let mut header: libc::msghdr = zeroed();
        (header.msg_iov, header.msg_iovlen) = (&mut vector, 1);
        if !descriptors.is_empty() {
            let size = size_of_val(descriptors) / size_of::<BorrowedFd<'_>>() * size_of::<RawFd>();
            header.msg_control = room.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size as u32) as usize;
            let message = libc::CMSG_FIRSTHDR(&header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size as u32) as usize;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (place, descriptor) in descriptors.iter().enumerate() {
                data.add(place).write_unaligned(descriptor.as_raw_fd());
            }
        }
        let sent = libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        Errno::result(sent).map(drop)
    }
}

/// Receives one packet; waits for it unless `wait` is false. Descriptors arrive close-on-exec.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> nix::Result<Received> {
    let mut room = Ancillary([MaybeUninit::zeroed(); 128 + ROOM]);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: as in `send`; the kernel writes no more control data than msg_controllen says, and the macros walk it.
    // Each descriptor was just made by the kernel for us and gets its only owner here.
    unsafe {
        let mut header: libc::msghdr = zeroed();
        (header.msg_iov, header.msg_iovlen) = (&mut vector, 1);
        header.msg_control = room.0.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(ROOM as u32) as usize;
        let length = Errno::result(libc::recvmsg(socket.as_raw_fd(), &mut header, flags))? as usize;
        let mut descriptors = Vec::new();
        let mut message = libc::CMSG_FIRSTHDR(&header);
        while !message.is_null() {
            if ((*message).cmsg_level, (*message).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let bytes = ((*message).cmsg_len).saturating_sub(libc::CMSG_LEN(0) as usize);
                for place in 0..bytes / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(place).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&header, message);
        }
        let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        Ok(Received { length, descriptors, truncated })
    }
}
