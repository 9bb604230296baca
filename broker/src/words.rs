//! What a confined process writes to standard error: its last words. Untrusted text: cut, stripped and limited.

use std::io::{ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use ipc::telemetry::Intake;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Longest line; what is longer is shown in pieces.
const MAX_LINE: usize = 1024;

/// The reading end of a process's standard error.
#[derive(Debug)]
pub struct Words {
    pipe: PipeReader,
    name: String,
    line: Vec<u8>,
    intake: Intake,
    open: bool,
}

impl Words {
    /// Takes the reading end, of the process that messages call `name`.
    pub fn new(pipe: PipeReader, name: &str) -> nix::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, name: name.into(), line: Vec::new(), intake: Intake::new(Instant::now()), open: true })
    }

    /// True while more may come.
    pub fn open(&self) -> bool {
        self.open
    }

    /// Logs what has come, line by line.
    pub fn read(&mut self) {
        let mut buffer = [0; MAX_LINE];
        match self.pipe.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(length) => self.take(&buffer[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.open = false,
        }
        if !self.open {
            self.show();
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.show(),
                other => self.line.push(*other),
            }
            if self.line.len() == MAX_LINE {
                self.show();
            }
        }
    }

    fn show(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        if let Some((text, _)) = self.intake.admit(&String::from_utf8_lossy(&line), Instant::now()) {
            tracing::error!("{} says: {text}", self.name);
        }
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
