//! The thread beside a pair: it gets a translator back that does not end, and raises interrupts where they are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::board::Wires;

/// How long the translator may compute for what the interpreter did in a few hundred steps. Where it only waits, for a
/// busy host or because the host's kernel punishes a locked access across cache lines, that says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often cases are interrupted.
const INTERRUPTED_EVERY: Duration = Duration::from_micros(10);

/// Gets a translator back that does not end, and interrupts it where that is wanted.
pub(super) struct Watchdog {
    /// Odd while a case runs.
    epoch: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Interrupts raised so far.
    pub interrupts: Arc<AtomicU64>,
}

impl Watchdog {
    /// Watches the board of these wires, whose processor runs on this thread.
    pub fn new(wires: Arc<Wires>, storm: bool) -> Self {
        let new = || Arc::new(AtomicU64::new(0));
        let all = Self { epoch: new(), stop: Arc::default(), interrupts: new() };
        let (epoch, stop, interrupts) = (all.epoch.clone(), all.stop.clone(), all.interrupts.clone());
        let thread = nix::unistd::gettid().as_raw();
        wires.lines.set_thread(thread);
        std::thread::spawn(move || {
            let mut last = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(if storm { INTERRUPTED_EVERY } else { Duration::from_millis(50) });
                let now = epoch.load(Ordering::Relaxed);
                if now != last.0 {
                    last = (now, computed(thread));
                } else if now & 1 != 0 && computed(thread).saturating_sub(last.1) > PATIENCE {
                    wires.lines.request();
                }
                if storm && now & 1 != 0 && !wires.lines.intr() {
                    wires.pending.store(1, Ordering::Relaxed);
                    wires.lines.set_intr(true);
                    interrupts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        all
    }
    /// A case begins.
    pub fn begin(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
    /// It has ended.
    pub fn end(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

/// Processor time that `thread` of this process has used (proc(5), schedstat).
fn computed(thread: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
