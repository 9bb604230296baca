//! One end of a conversation over a SEQPACKET socket: one message a packet, descriptors along with it.
//!
//! Several threads may send on one end. A channel that returned an error other than [`ChannelError::Full`] is of no use
//! any more: its peer is dropped.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use serde::{Serialize, de::DeserializeOwned};

use crate::frame::{self, FrameError, MAX_PACKET};
use crate::scm;

/// A message that may come with descriptors.
pub trait Message: Serialize + DeserializeOwned {
    /// How many descriptors come with it. What a peer says here and what comes must agree.
    fn descriptors(&self) -> usize;
    /// Checks what decoding cannot: lengths, ranges, names. The error says what is wrong.
    fn validate(&self) -> Result<(), String>;
}

/// A message with its descriptors, whose number has been checked.
pub type Delivery<M> = (M, Vec<OwnedFd>);

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ChannelError {
    #[error("making a control channel")]
    Make(#[source] nix::Error),
    #[error("receiving on the control channel")]
    Receive(#[source] nix::Error),
    #[error("sending on the control channel")]
    Send(#[source] nix::Error),
    #[error("the control channel is full: the other side does not read")]
    Full,
    #[error("the other side closed the control channel")]
    Closed,
    #[error("the other side sent")]
    Frame(#[from] FrameError),
    #[error("a message with {found} descriptors that says it has {expected}")]
    Descriptors { expected: usize, found: usize },
    #[error("a message that makes no sense: {0}")]
    Invalid(String),
    #[error("{message} is not permitted while {state}")]
    OutOfState { message: &'static str, state: &'static str },
}

/// Our end: sends `Out`, receives `In`.
#[derive(Debug)]
pub struct Channel<Out, In> {
    socket: OwnedFd,
    /// Number of the next packet out; held while it is sent, so that packets leave in order.
    sent: Mutex<u32>,
    received: Mutex<u32>,
    kinds: PhantomData<fn(Out) -> In>,
}

impl<Out: Message, In: Message> Channel<Out, In> {
    /// Takes over a SEQPACKET socket on which nothing has been exchanged yet.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, sent: Mutex::new(0), received: Mutex::new(0), kinds: PhantomData }
    }

    /// A new channel: our end, and the socket of the other.
    pub fn pair() -> Result<(Self, OwnedFd), ChannelError> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.map_err(ChannelError::Make)?;
        Ok((Self::new(ours), theirs))
    }

    /// Sends without blocking.
    pub fn send(&self, message: &Out, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if message.descriptors() != descriptors.len() {
            return Err(ChannelError::Descriptors { expected: message.descriptors(), found: descriptors.len() });
        }
        let mut sequence = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let packet = frame::encode(message, *sequence)?;
        match scm::send(self.socket.as_fd(), &packet, descriptors) {
            Ok(()) => {
                *sequence = sequence.wrapping_add(1);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Err(ChannelError::Full),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(ChannelError::Closed),
            Err(source) => Err(ChannelError::Send(source)),
        }
    }

    /// Takes no more packets. Those that have come can still be received; after them the channel is closed.
    pub fn close(&self) {
        // A socket that is not connected any more takes nothing either.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
    }

    /// Waits for a message.
    pub fn receive(&self) -> Result<Delivery<In>, ChannelError> {
        loop {
            if let Some(delivery) = self.take(true)? {
                return Ok(delivery);
            }
        }
    }

    /// Takes a message if one is there.
    pub fn try_receive(&self) -> Result<Option<Delivery<In>>, ChannelError> {
        self.take(false)
    }

    fn take(&self, wait: bool) -> Result<Option<Delivery<In>>, ChannelError> {
        let mut sequence = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        // One byte more than allowed: a packet that fills it was too long.
        let mut buffer = vec![0; MAX_PACKET + 1];
        let received = match scm::receive(self.socket.as_fd(), &mut buffer, wait) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
            Err(source) => return Err(ChannelError::Receive(source)),
        };
        if received.length == 0 && !received.truncated && received.descriptors.is_empty() {
            return Err(ChannelError::Closed);
        }
        let message: In = frame::decode(&buffer[..received.length], *sequence)?;
        let (expected, found) = (message.descriptors(), received.descriptors.len());
        if received.truncated || expected != found {
            return Err(ChannelError::Descriptors { expected, found });
        }
        message.validate().map_err(ChannelError::Invalid)?;
        *sequence = sequence.wrapping_add(1);
        Ok(Some((message, received.descriptors)))
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
