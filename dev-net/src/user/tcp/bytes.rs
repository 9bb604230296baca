//! The bytes of one connection, between a socket of the stack, which is the guest's end, and a socket of the host's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;

use smoltcp::socket::tcp::{Socket, State};

use crate::user::exit::Ready;

/// See the module.
#[derive(Debug)]
pub struct Bytes {
    host: TcpStream,
    ready: Ready,
    /// The host has no more for the guest.
    ended: bool,
    /// The guest has no more for the host, and it was told.
    told: bool,
}

impl Bytes {
    /// For a socket that is connected and does not block.
    pub fn new(host: OwnedFd) -> Self {
        let ready = Ready { readable: true, writable: true };
        Self { host: TcpStream::from(host), ready, ended: false, told: false }
    }

    /// Something may be done with the host's socket again.
    pub fn ready(&mut self, what: Ready) {
        self.ready.readable |= what.readable;
        self.ready.writable |= what.writable;
    }

    /// Moves what can be moved. True if that was anything.
    pub fn move_on(&mut self, guest: &mut Socket<'_>) -> bool {
        // Both, whatever the first did.
        self.out(guest) | self.back(guest)
    }

    /// From the guest to the host.
    fn out(&mut self, guest: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while self.ready.writable && guest.can_recv() {
            let host = &mut self.host;
            let wrote = guest.recv(|bytes| match host.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match settle(wrote.unwrap_or(Ok(0))) {
                Step::Moved(_) => moved = true,
                Step::Wait => self.ready.writable = false,
                Step::Broken => return self.break_off(guest),
            }
        }
        let ended = matches!(guest.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if ended && !self.told && !guest.can_recv() {
            self.told = true;
            // It may be gone itself.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        moved
    }

    /// From the host to the guest.
    fn back(&mut self, guest: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while self.ready.readable && !self.ended && guest.can_send() {
            let host = &mut self.host;
            let read = guest.send(|room| match host.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match settle(read.unwrap_or(Err(ErrorKind::WouldBlock.into()))) {
                Step::Moved(0) => {
                    self.ended = true;
                    guest.close();
                    return true;
                }
                Step::Moved(_) => moved = true,
                Step::Wait => self.ready.readable = false,
                Step::Broken => return self.break_off(guest),
            }
        }
        moved
    }

    /// The host's connection is broken: so is the guest's.
    fn break_off(&mut self, guest: &mut Socket<'_>) -> bool {
        (self.ready, self.ended, self.told) = (Ready::default(), true, true);
        guest.abort();
        true
    }
}

enum Step {
    Moved(usize),
    Wait,
    Broken,
}

fn settle(result: io::Result<usize>) -> Step {
    match result {
        Ok(count) => Step::Moved(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Wait,
        Err(error) if error.kind() == ErrorKind::Interrupted => Step::Wait,
        Err(_) => Step::Broken,
    }
}
