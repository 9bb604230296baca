//! Writes to standard error on a thread of its own. A reader that stops reading (a pipe that is full, a terminal that was
//! stopped) stops that thread and nobody else: what does not fit into the queue is dropped, and counted.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};

/// Bytes that may wait.
const ROOM: usize = 256 << 10;

/// The queue's end for those who have something to say.
#[derive(Clone, Debug)]
pub struct Drain(Arc<(Mutex<Queue>, Condvar)>);

#[derive(Debug, Default)]
struct Queue {
    text: String,
    /// The thread has taken text that it has not written yet.
    writing: bool,
    /// Pieces that found no room.
    dropped: u64,
}

impl Drain {
    /// Starts the thread. Without one, which takes a host at its limits, nothing is written.
    /// `notice` makes the line that tells how many were dropped.
    pub fn start(output: impl Write + AsFd + Send + 'static, notice: impl Fn(u64) -> String + Send + 'static) -> Self {
        let drain = Self(Arc::default());
        let own = drain.clone();
        // Signals are for the main thread, which takes them from a descriptor: none may be delivered here.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let _ = std::thread::Builder::new().name("log".into()).spawn(move || own.run(output, notice));
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
        drain
    }

    /// Has `text` written, or counts it as dropped.
    pub fn push(&self, text: &str) {
        let mut queue = self.queue();
        if queue.text.len() + text.len() > ROOM {
            queue.dropped += 1;
            return;
        }
        queue.text.push_str(text);
        self.0.1.notify_all();
    }

    /// Waits until all is written, for so long at most.
    pub fn flush(&self, limit: Duration) {
        let waiting = |queue: &mut Queue| queue.writing || !queue.text.is_empty();
        drop(self.0.1.wait_timeout_while(self.queue(), limit, waiting));
    }

    fn run(&self, mut output: impl Write + AsFd, notice: impl Fn(u64) -> String) {
        let mut queue = self.queue();
        loop {
            if queue.text.is_empty() {
                queue = self.0.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let text = std::mem::take(&mut queue.text);
            queue.writing = true;
            drop(queue);
            write(&mut output, text.as_bytes());
            queue = self.queue();
            queue.writing = false;
            // The queue was full when they came, so they would have been behind it.
            if let dropped @ 1.. = std::mem::take(&mut queue.dropped) {
                queue.text.push_str(&notice(dropped));
            }
            self.0.1.notify_all();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all of it, however long that takes, unless it cannot be written at all: then nobody is left to read.
fn write(output: &mut (impl Write + AsFd), mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return,
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who has it too made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn who_logs_never_waits_and_what_is_dropped_is_told() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let drain = Drain::start(writer, |dropped| format!("WARN {dropped} were dropped\n"));
        let line = format!("{}\n", "x".repeat(999));
        // Far more than pipe and queue hold.
        (0..2000).for_each(|_| drain.push(&line));
        drain.flush(Duration::from_millis(1));
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains("were dropped") {
            let length = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        let written = text.matches(&line).count() as u64;
        let told: u64 = text.split("WARN ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).unwrap();
        assert!(written < 2000 && written + told <= 2000, "{written} {told}");
        drain.push("after\n");
        let mut rest = String::new();
        while !rest.contains("after\n") {
            let length = reader.read(&mut buffer).unwrap();
            rest.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        // A reader that is gone stops nobody.
        drop(reader);
        drain.push("nobody\n");
        drain.flush(Duration::from_secs(60));
    }
}
