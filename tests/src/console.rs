//! The guest's serial line from the harness's side: what was printed so far, and when.
//!
//! A wait ends when its marker appears. It fails when the guest panics, the monitor ends, or *nothing at all* is printed
//! for a long time: a slow machine is never an error, a stuck guest is.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More than any guest here prints.
const MAX_BYTES: usize = 16 << 20;

/// Why a wait ended without its marker. Holds the end of what was printed.
#[derive(Debug)]
pub struct Failure {
    reason: String,
    tail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; the console's last lines:\n{}", self.reason, self.tail)
    }
}

impl std::error::Error for Failure {}

#[derive(Default)]
struct Shared {
    bytes: Vec<u8>,
    ended: bool,
    last: Option<Instant>,
}

type Output = Arc<(Mutex<Shared>, Condvar)>;

/// Both directions of the serial line.
pub struct Console {
    output: Output,
    input: Box<dyn Write + Send>,
    /// Bytes before this one were already returned by a wait.
    seen: usize,
}

fn lock(output: &Output) -> MutexGuard<'_, Shared> {
    output.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Starts collecting what the monitor prints.
    pub fn new(input: impl Write + Send + 'static, stdout: impl Read + Send + 'static) -> Self {
        let output = Output::default();
        let shared = Arc::clone(&output);
        std::thread::spawn(move || collect(stdout, &shared));
        Self { output, input: Box::new(input), seen: 0 }
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.type_keys(&format!("{line}\n"))
    }

    /// Types these keys and no others.
    pub fn type_keys(&mut self, keys: &str) -> std::io::Result<()> {
        self.input.write_all(keys.as_bytes())?;
        self.input.flush()
    }

    /// Waits until `marker` is printed; the text since the last wait, up to and with the marker.
    pub fn wait_for(&mut self, marker: &str, silence: Duration) -> Result<String, Failure> {
        let mut shared = lock(&self.output);
        let started = Instant::now();
        let mut searched = self.seen;
        loop {
            if let Some(at) = find(&shared.bytes, searched, marker.as_bytes()) {
                let text = String::from_utf8_lossy(&shared.bytes[self.seen..at]).into_owned();
                self.seen = at;
                return Ok(text);
            }
            if find(&shared.bytes, searched, b"Kernel panic - not syncing").is_some() {
                return Err(failure(&shared, "the guest's kernel panicked".into()));
            }
            if shared.ended {
                return Err(failure(&shared, format!("the monitor ended before {marker:?} was printed")));
            }
            if shared.bytes.len() > MAX_BYTES {
                return Err(failure(&shared, format!("the guest prints without end, but never {marker:?}")));
            }
            let idle = shared.last.map_or(started, |last| last.max(started)).elapsed();
            if idle > silence {
                return Err(failure(&shared, format!("nothing printed for {idle:.0?} while waiting for {marker:?}")));
            }
            searched = shared.bytes.len().saturating_sub(marker.len().max(32)).max(self.seen);
            let waited = self.output.1.wait_timeout(shared, Duration::from_secs(1));
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All that was printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output).bytes).into_owned()
    }
}

fn collect(mut stdout: impl Read, output: &Output) {
    let mut buffer = [0; 4096];
    loop {
        let count = stdout.read(&mut buffer).unwrap_or(0);
        let mut shared = lock(output);
        shared.bytes.extend_from_slice(&buffer[..count]);
        shared.last = Some(Instant::now());
        shared.ended = count == 0;
        output.1.notify_all();
        if count == 0 {
            return;
        }
    }
}

/// The index just past the first `needle` at or after `from`.
fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    let at = bytes.get(from..)?.windows(needle.len()).position(|window| window == needle)?;
    Some(from + at + needle.len())
}

fn failure(shared: &Shared, reason: String) -> Failure {
    let tail = &shared.bytes[shared.bytes.len().saturating_sub(3000)..];
    Failure { reason, tail: String::from_utf8_lossy(tail).replace('\r', "") }
}
