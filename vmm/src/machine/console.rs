//! The serial port's bytes on their way to and from the console descriptor.
//!
//! Output waits in the chip until the last piece taken from it is written, and the chip's own buffer is bounded: a
//! reader that stops reading makes the guest's transmitter busy, and nothing else. Input is read only while the chip
//! takes it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use crate::chipset::Board;

const CHUNK: usize = 1024;

/// The console descriptor with what waits to be written and to be received.
#[derive(Debug)]
pub struct Console {
    stream: Option<File>,
    output: Vec<u8>,
    /// What is left of `output` starts here.
    written: usize,
    input: Vec<u8>,
    at_end: bool,
}

impl Console {
    /// Takes the descriptor, a stream socket that the broker made non-blocking: this process may not change the flags of
    /// what it holds. None discards output.
    pub fn new(stream: Option<OwnedFd>) -> Self {
        Self { stream: stream.map(File::from), output: Vec::new(), written: 0, input: Vec::new(), at_end: false }
    }

    /// The descriptor and what to poll it for; None while there is nothing to wait for.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.input.is_empty() && !self.at_end);
        flags.set(PollFlags::POLLOUT, self.pending());
        self.stream.as_ref().filter(|_| !flags.is_empty()).map(|s| (s.as_fd(), flags))
    }

    /// True while output that left the chip is not written.
    pub fn pending(&self) -> bool {
        self.written < self.output.len()
    }

    /// Moves what can be moved both ways. `readable` is what poll said.
    pub fn pump(&mut self, board: &Board, readable: bool) {
        if readable && self.input.is_empty() && !self.at_end {
            self.read();
        }
        if !self.input.is_empty() {
            let taken = board.serial_input(&self.input);
            self.input.drain(..taken.min(self.input.len()));
        }
        self.write();
        while !self.pending() {
            self.output.clear();
            self.written = 0;
            let lost = board.take_serial_output(&mut self.output);
            if lost != 0 {
                tracing::warn!("console: its reader stopped, and the guest did not wait: {lost} bytes are lost");
            }
            if self.output.is_empty() {
                return;
            }
            self.write();
        }
    }

    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut buffer = [0; CHUNK];
        match stream.read(&mut buffer) {
            Ok(0) => self.at_end = true,
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.at_end = true,
        }
    }

    fn write(&mut self) {
        while self.pending() {
            let Some(stream) = &mut self.stream else {
                self.written = self.output.len();
                return;
            };
            match stream.write(&self.output[self.written..]) {
                Ok(length) => self.written += length,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // The reader is gone for good: from now on the port's output goes nowhere.
                Err(_) => self.stream = None,
            }
        }
    }
}
