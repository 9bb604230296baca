//! A short wait for the next request before sleeping.
//!
//! Waking a thread on another processor costs some 20 µs, several times the work of a small request. So a worker that
//! has just been busy looks at the ring for a while before it asks for a notification. How long follows what happened
//! last: a request that came while waiting, or soon after falling asleep, makes the next wait as long as allowed; each
//! wait in vain halves it, so that an idle disk costs nothing.

use std::time::{Duration, Instant};

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 16;

/// The waiting of one worker.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    window: Duration,
    slept: Option<Instant>,
}

impl Spin {
    /// Waits at most `limit`; zero never waits.
    pub fn new(limit: Duration) -> Self {
        Self { limit, window: limit, slept: None }
    }

    /// A notification came: waking soon after falling asleep means that waiting would have been better.
    pub fn woke(&mut self) {
        if self.slept.take().is_some_and(|since| since.elapsed() <= self.limit) {
            self.window = self.limit;
        }
    }

    /// Waits until `ready`, for as long as the window says. Returns what `ready` said last.
    pub fn wait(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if self.window.is_zero() {
            self.slept = Some(Instant::now());
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.window = self.limit;
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now.saturating_duration_since(start) >= self.window {
                // Below a microsecond a wait is only its own overhead.
                self.window = Some(self.window / 2).filter(|half| half.as_micros() > 0).unwrap_or_default();
                self.slept = Some(now);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_in_vain_stops_and_success_starts_it_again() {
        let limit = Duration::from_micros(64);
        let mut spin = Spin::new(limit);
        for _ in 0..16 {
            assert!(!spin.wait(|| false));
        }
        assert!(spin.window.is_zero(), "{:?}", spin.window);
        spin.slept = Some(Instant::now() + limit);
        spin.woke();
        assert_eq!(spin.window, limit);
        let mut looks = 0;
        assert!(spin.wait(|| {
            looks += 1;
            looks == 3
        }));
        assert_eq!(spin.window, limit);
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        assert!(!Spin::new(Duration::ZERO).wait(|| panic!("looked")));
    }
}
