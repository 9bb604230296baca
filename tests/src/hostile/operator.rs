//! The thread beside the processor: it raises interrupts at random and, when a case has had its time, asks for the
//! processor as an operator's stop does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmm::chipset::Board;
use vmm::cpu::Lines;

use super::run::memory_is_bounded;

/// How often it looks.
const TICK: Duration = Duration::from_millis(1);

/// What runs now.
struct Watch {
    lines: Arc<Lines>,
    /// Whose interrupt lines are pulled at random; None for a quiet case.
    board: Option<Arc<Board>>,
    until: Instant,
}

/// The thread's shared part.
#[derive(Default)]
pub struct Operator {
    watch: Mutex<Option<Watch>>,
    /// What [`memory_is_bounded`] said while a machine ran.
    grown: Mutex<Option<String>>,
    /// This process's CPU time when it first asked, in nanoseconds; 0 if it has not.
    asked: AtomicU64,
    ended: AtomicBool,
}

impl Operator {
    /// Starts the thread.
    pub fn start() -> Arc<Self> {
        let operator = Arc::new(Self::default());
        let shared = operator.clone();
        thread::spawn(move || {
            let mut count = 0;
            while !shared.ended.load(Ordering::Relaxed) {
                thread::sleep(TICK);
                count += 1;
                shared.tick(count);
            }
        });
        operator
    }

    /// Watches a processor from now for `time`.
    pub fn watch(&self, lines: Arc<Lines>, board: Option<Arc<Board>>, time: Duration) {
        self.asked.store(0, Ordering::Release);
        let watch = Watch { lines, board, until: Instant::now() + time };
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
    }

    /// Stops watching.
    pub fn leave(&self) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True once the processor has been asked for.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) != 0
    }

    /// CPU time that went by since the processor was asked for.
    pub fn waited(&self) -> Duration {
        match self.asked.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            asked => Duration::from_nanos(cpu_time().saturating_sub(asked)),
        }
    }

    /// The first complaint about this process's memory.
    pub fn grown(&self) -> Option<String> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn tick(&self, count: u64) {
        if count.is_multiple_of(16)
            && let Err(why) = memory_is_bounded()
        {
            self.grown.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        }
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watch) = &*watch else { return };
        if let Some(board) = &watch.board {
            match count % 7 {
                0 => watch.lines.raise_nmi(),
                1 | 3 => watch.lines.set_intr(true),
                5 => watch.lines.set_intr(false),
                _ => {
                    board.set_irq((count % 24) as u8, count & 32 != 0);
                    board.advance();
                }
            }
        }
        if Instant::now() >= watch.until {
            let _ = self.asked.compare_exchange(0, cpu_time().max(1), Ordering::AcqRel, Ordering::Relaxed);
            watch.lines.request();
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// CPU time of this process in nanoseconds: a busy host does not make a guest slow to stop.
fn cpu_time() -> u64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0, |t| (t.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec() as u64))
}
