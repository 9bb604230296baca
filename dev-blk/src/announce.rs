//! Telling the front end that the configuration space has changed: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
//!
//! A front end that wants to be told sends one end of a socket (SET_BACKEND_REQ_FD). The vhost library keeps it in a
//! value that can send other messages, but not this one, and does not show the descriptor. So it is looked for: of all
//! sockets that came with this connection, the connection's own is open twice and the channel's once. Where that does not
//! single one out, nothing is announced.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{MsgFlags, SockType, UnixAddr, getsockname, getsockopt, send, sockopt};
use nix::sys::stat::fstat;
use vhost::vhost_user::Backend;

/// Descriptors from this on are not looked at; a device with 16 queues has about 120.
const HIGHEST: RawFd = 256;
/// Request 2, protocol version 1, no payload.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// A stream socket, by its inode.
type Inode = u64;

/// The way to the front end of one connection.
#[derive(Default)]
pub struct Announcer {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Sockets that were there before the connection.
    earlier: Vec<Inode>,
    channel: Option<Channel>,
}

/// A descriptor that stays open as long as its owner lives.
struct Channel {
    _owner: Backend,
    fd: RawFd,
}

impl Announcer {
    /// Forgets the last connection. To be called before the next one is accepted.
    pub fn expect_connection(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.channel = None;
        state.earlier = streams().into_keys().collect();
    }

    /// The front end has sent its channel, which `owner` holds.
    pub fn connected(&self, owner: Backend) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.channel = None;
        let new = streams().into_iter().filter(|(inode, _)| !state.earlier.contains(inode));
        let mut single = new.filter_map(|(_, found)| <[RawFd; 1]>::try_from(found).ok());
        match (single.next(), single.next()) {
            (Some([fd]), None) => state.channel = Some(Channel { _owner: owner, fd }),
            _ => tracing::info!("the front end's channel was not found: a resize will not be announced"),
        }
    }

    /// Tells the front end to read the configuration space again. False if it has not asked to be told.
    pub fn config_changed(&self) -> io::Result<bool> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = &state.channel else { return Ok(false) };
        // A front end that does not read must not stop us.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(channel.fd, &CONFIG_CHANGE, flags) {
            Ok(sent) if sent == CONFIG_CHANGE.len() => Ok(true),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// This process's connected unix stream sockets: for each its descriptors.
fn streams() -> BTreeMap<Inode, Vec<RawFd>> {
    let mut found = BTreeMap::<Inode, Vec<RawFd>>::new();
    for number in 3..HIGHEST {
        // SAFETY: the borrow ends with this turn of the loop, and it is only asked what it is. A number that is not open,
        // or is closed meanwhile by another thread, makes these calls fail and nothing else.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let stream = getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream)
            && getsockopt(&fd, sockopt::AcceptConn) == Ok(false)
            && getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
        if !stream {
            continue;
        }
        if let Ok(status) = fstat(fd) {
            found.entry(status.st_ino).or_default().push(number);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_channel_is_told_apart_and_gets_the_message() {
        let announcer = Announcer::default();
        let _other = UnixStream::pair().unwrap();
        announcer.expect_connection();
        assert!(!announcer.config_changed().unwrap());
        // The connection is open twice, as the library has it; our ends of both sockets are not this process's concern,
        // but in a test they are: they are doubled too, so that one descriptor is single.
        let (front, connection) = UnixStream::pair().unwrap();
        let _doubles = (front.try_clone().unwrap(), connection.try_clone().unwrap());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let _double = ours.try_clone().unwrap();
        announcer.connected(Backend::from_stream(theirs));
        assert!(announcer.config_changed().unwrap());
        let mut message = [0; 12];
        ours.read_exact(&mut message).unwrap();
        assert_eq!(message, CONFIG_CHANGE);
        announcer.expect_connection();
        assert_eq!(ours.read(&mut message).unwrap(), 0, "the channel is closed with the connection");
    }
}
