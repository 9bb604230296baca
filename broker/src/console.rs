//! The serial port's place in the broker: relayed to standard input and output or a file, or kept for whoever attaches.
//!
//! A console that is kept is not the broker's to see while somebody is attached: `bulkhead console` gets the very socket
//! that leads to the vmm, and reads and writes it itself. When it goes, by whatever end, the broker reads again, so that the
//! guest never waits for nobody, and keeps the last of what was printed for the next who comes.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::relay::Relay;

/// Bytes that are kept of what is printed while nobody is attached.
const BACKLOG: usize = 64 << 10;
/// Bytes read at a time.
const CHUNK: usize = 4096;

/// Who has the serial port.
#[derive(Debug)]
pub enum Console {
    /// We carry its bytes.
    Relayed(Relay),
    /// Whoever attaches.
    Kept(Kept),
}

/// What was printed while nobody was attached.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: VecDeque<u8>,
    /// The vmm has closed its end.
    ended: bool,
}

impl Console {
    /// The carrier, if it is us.
    pub fn relay(&mut self) -> Option<&mut Relay> {
        match self {
            Self::Relayed(relay) => Some(relay),
            Self::Kept(_) => None,
        }
    }

    /// The vmm has ended. What it wrote can still be read, by whoever has the console, and nothing after that: somebody else
    /// may hold its end too, and never close it.
    pub fn end_of_vmm(&mut self, console: &UnixStream) {
        match self {
            Self::Relayed(relay) => relay.end_of_vmm(console),
            // Takes nothing more (shutdown(2), unix(7)). Nobody else will attach: what is left is not looked at.
            Self::Kept(kept) => {
                let _ = console.shutdown(Shutdown::Read);
                kept.ended = true;
            }
        }
    }

    /// Everything has been shown that there will be.
    pub fn finished(&self) -> bool {
        match self {
            Self::Relayed(relay) => relay.finished(),
            Self::Kept(kept) => kept.ended,
        }
    }
}

impl Kept {
    /// True while something may come.
    pub fn open(&self) -> bool {
        !self.ended
    }

    /// The console socket is readable, or at its end, and nobody is attached.
    pub fn read(&mut self, console: &UnixStream) {
        let mut buffer = [0; CHUNK];
        // Whoever had it before may have made it blocking, or may have it still.
        match recv(console.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.ended = true,
            Ok(length) => self.keep(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.ended = true,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(BACKLOG);
        self.bytes.drain(..over);
    }

    /// All of it, for one who attaches: afterwards nothing is kept.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_of_what_was_printed_is_kept_and_shown_once() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut kept = Kept::default();
        kept.read(&ours);
        assert!(kept.open());
        for letter in [b'a', b'b', b'c'] {
            for _ in 0..BACKLOG / CHUNK {
                theirs.write_all(&[letter; CHUNK]).unwrap();
                kept.read(&ours);
            }
        }
        theirs.write_all(b"the last").unwrap();
        kept.read(&ours);
        let shown = kept.take();
        assert!(shown.len() == BACKLOG && shown.ends_with(b"ccthe last") && shown.starts_with(b"c"));
        assert!(kept.take().is_empty());
        drop(theirs);
        kept.read(&ours);
        assert!(!kept.open());
    }
}
