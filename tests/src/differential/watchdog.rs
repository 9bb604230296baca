//! The thread beside a pair: it gets a translator back that does not end, and raises interrupts where they are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::board::Wires;

/// How long the translator may take for what the interpreter did in a few hundred steps.
const PATIENCE: Duration = Duration::from_secs(15);
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
        wires.lines.set_thread(nix::unistd::gettid().as_raw());
        std::thread::spawn(move || {
            let mut last = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(if storm { INTERRUPTED_EVERY } else { Duration::from_millis(50) });
                let now = epoch.load(Ordering::Relaxed);
                if now != last.0 {
                    last = (now, Instant::now());
                } else if now & 1 != 0 && last.1.elapsed() > PATIENCE {
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

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
