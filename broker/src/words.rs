//! What a confined process writes to standard error: its last words. Untrusted text: cut, stripped and limited.

use std::io::{ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use ipc::telemetry::Intake;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Longest line; what is longer is shown in pieces.
const MAX_LINE: usize = 1024;
/// What a pipe holds unless it is asked for more (pipe(7)), which no profile allows.
const PIPE: usize = 64 << 10;

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

    /// Logs what is left when its writer has ended: no more than a pipe holds, since the pipe may be in other hands too.
    pub fn read_last(&mut self) {
        for _ in 0..PIPE / MAX_LINE {
            if !self.read() {
                break;
            }
        }
        self.show();
    }

    /// Logs what has come, line by line, as much as a line is long at most. False if nothing has.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; MAX_LINE];
        match self.pipe.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(length) => {
                self.take(&buffer[..length]);
                return true;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.open = false,
        }
        if !self.open {
            self.show();
        }
        false
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
            tracing::error!(who = %self.name, "{text}");
        }
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A log that is kept.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(read: impl FnOnce()) -> String {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, read);
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn the_last_of_many_words_is_shown_though_the_pipe_stays_open() {
        let (pipe, mut writer) = std::io::pipe().unwrap();
        let mut words = Words::new(pipe, "vmm").unwrap();
        for number in 0..50 {
            writeln!(writer, "line {number} {}", "x".repeat(200)).unwrap();
        }
        write!(writer, "the very last").unwrap();
        let text = logged(|| words.read_last());
        assert!(text.contains("line 0 ") && text.contains("line 49 ") && text.contains("the very last"), "{text}");
        assert!(words.open(), "the writer is still there, and nobody waited for it");
    }
}
