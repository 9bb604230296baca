//! Carries the serial port's bytes between the operator's standard input, output (or a file) and the vmm's console socket.
//!
//! Neither direction blocks this process: output is written only when the reader is ready for it, at most [`SAFE`]
//! bytes at a time, and while it is not, the socket fills and the guest's serial port waits. No byte is lost.
//!
//! The broker does this for the console that its machine was started with, and `bulkhead console` for one that it is lent.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use crate::escape::{ATTACHED_HELP, Action, Escape, HELP};

/// What a pipe or terminal that polls writable takes without blocking (PIPE_BUF).
const SAFE: usize = 4096;
/// Bytes read at a time.
const CHUNK: usize = 4096;

/// Both directions, with what waits in each.
#[derive(Debug)]
pub struct Relay {
    /// Keys are told from bytes: standard input is a raw terminal.
    escape: Option<Escape>,
    to_guest: Vec<u8>,
    to_operator: Vec<u8>,
    input_open: bool,
    output: Option<OwnedFd>,
    console_open: bool,
    /// What [`Action::Help`] shows.
    help: &'static str,
}

impl Relay {
    /// `raw` says that standard input is a terminal in raw mode, `input` that it is the guest's at all. Without `output`
    /// what the guest prints is discarded.
    pub fn new(raw: bool, input: bool, output: Option<OwnedFd>) -> Self {
        Self {
            escape: raw.then(Escape::default),
            to_guest: Vec::new(),
            to_operator: Vec::new(),
            input_open: input,
            output,
            console_open: true,
            help: HELP,
        }
    }

    /// The same for a console that was lent, of which `before` was printed already. Its keys are others.
    pub fn attached(raw: bool, output: OwnedFd, before: Vec<u8>) -> Self {
        Self { to_operator: before, help: ATTACHED_HELP, ..Self::new(raw, true, Some(output)) }
    }

    /// True if standard input is to be polled for input.
    pub fn wants_input(&self) -> bool {
        self.input_open && self.to_guest.is_empty()
    }
    /// Where output goes, if it is to be polled for room.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().filter(|_| !self.to_operator.is_empty()).map(AsFd::as_fd)
    }
    /// What the console socket is to be polled for.
    pub fn console_flags(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.console_open && self.to_operator.is_empty());
        flags.set(PollFlags::POLLOUT, self.console_open && !self.to_guest.is_empty());
        flags
    }
    /// True when the vmm has closed its end and everything has been shown.
    pub fn finished(&self) -> bool {
        !self.console_open && self.output().is_none()
    }

    /// Standard input is readable, or at its end. Returns what the operator's keys ask for.
    pub fn read_input(&mut self) -> Vec<Action> {
        let mut buffer = [0; CHUNK];
        let length = match nix::unistd::read(io::stdin().as_fd(), &mut buffer) {
            Ok(length) => length,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => return Vec::new(),
            // A terminal that went away; SIGHUP says the rest.
            Err(_) => 0,
        };
        if length == 0 {
            // The end of input is no reason to end the guest.
            self.input_open = false;
        }
        let Some(escape) = &mut self.escape else {
            self.to_guest.extend_from_slice(&buffer[..length]);
            return Vec::new();
        };
        let actions = escape.filter(&buffer[..length], &mut self.to_guest);
        if actions.contains(&Action::Help) {
            self.to_operator.extend_from_slice(self.help.as_bytes());
        }
        actions
    }

    /// The vmm has ended. What it wrote is still shown, and nothing after that: somebody else may hold its end too, and never
    /// close it.
    pub fn end_of_vmm(&mut self, console: &UnixStream) {
        self.to_guest.clear();
        // Takes nothing more; what is there can be read, and then the end (shutdown(2), unix(7)).
        if console.shutdown(Shutdown::Read).is_err() {
            self.console_open = false;
        }
    }

    /// The console socket is readable, or at its end.
    pub fn read_console(&mut self, console: &mut UnixStream) {
        let mut buffer = [0; CHUNK];
        match console.read(&mut buffer) {
            Ok(0) => self.console_open = false,
            Ok(length) if self.output.is_some() => self.to_operator.extend_from_slice(&buffer[..length]),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.console_open = false,
        }
    }

    /// The console socket has room.
    pub fn write_console(&mut self, console: &mut UnixStream) {
        match console.write(&self.to_guest) {
            Ok(length) => drop(self.to_guest.drain(..length)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The vmm is gone: its pidfd says the rest.
            Err(_) => self.to_guest.clear(),
        }
    }

    /// The output has room, or its reader is gone.
    pub fn write_output(&mut self) {
        let Some(output) = &self.output else { return };
        let part = self.to_operator.len().min(SAFE);
        match nix::unistd::write(output, &self.to_operator[..part]) {
            Ok(length) => drop(self.to_operator.drain(..length)),
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(error) => {
                tracing::warn!("the console's output cannot be written ({error}) and is discarded from here on");
                self.output = None;
                self.to_operator.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_ends_with_the_vmm_whoever_else_holds_it() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut relay = Relay::new(false, false, Some(file.try_clone().unwrap().into()));
        let text = vec![b'x'; 3 * CHUNK];
        theirs.write_all(&text).unwrap();
        relay.end_of_vmm(&ours);
        // `theirs` stays open.
        assert!(theirs.write(b"more").is_err());
        for _ in 0..10 {
            relay.read_console(&mut ours);
            relay.write_output();
        }
        assert!(relay.finished());
        assert_eq!(file.metadata().unwrap().len(), text.len() as u64);
    }
}
