//! How long to pause before the next process, and when to give up. Only faults of the process itself count: not a kill by
//! an operator, a test, or the kernel's out-of-memory killer. Time is the caller's.

use std::time::{Duration, Instant};

/// Serving for so long makes up for all faults before.
const GOOD: Duration = Duration::from_secs(10);
/// Faults in a row after which nothing is tried any more.
const MOST: u32 = 8;
/// The pause after the second fault; each further one doubles it.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// The least time between two starts: who kills a process as soon as it is there does not keep us busy.
const SPACING: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Default)]
pub struct Patience {
    faults: u32,
    launched: Option<Instant>,
    serving: Option<Instant>,
}

impl Patience {
    /// A process was started.
    pub fn launched(&mut self, now: Instant) {
        (self.launched, self.serving) = (Some(now), None);
    }

    /// It serves.
    pub fn serving(&mut self, now: Instant) {
        self.serving = Some(now);
    }

    /// An operator wants another try, whatever happened before.
    pub fn renew(&mut self) {
        self.faults = 0;
    }

    /// It has ended, by its own `fault` or not: when to start the next; None for never.
    pub fn ended(&mut self, fault: bool, now: Instant) -> Option<Instant> {
        if self.serving.is_some_and(|since| now.saturating_duration_since(since) >= GOOD) {
            self.faults = 0;
        }
        let spaced = self.launched.map_or(now, |at| now.max(at + SPACING));
        if !fault {
            return Some(spaced);
        }
        self.faults += 1;
        let pause = match self.faults {
            ..=1 => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - 2).min(16)).min(LONGEST),
        };
        (self.faults <= MOST).then(|| spaced.max(now + pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_a_row_are_answered_more_and_more_slowly_and_then_not_at_all() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        let mut pauses = Vec::new();
        while let Some(next) = patience.ended(true, start) {
            pauses.push(next.saturating_duration_since(start).as_millis());
        }
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000]);
        patience.renew();
        assert_eq!(patience.ended(true, start), Some(start));
    }

    #[test]
    fn good_service_makes_up_for_faults_and_foreign_kills_never_count() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        for round in 0..100 {
            let at = start + GOOD * round;
            patience.launched(at);
            patience.serving(at);
            assert_eq!(patience.ended(true, at + GOOD), Some(at + GOOD), "round {round}");
        }
        for _ in 0..100 {
            patience.launched(start);
            assert_eq!(patience.ended(false, start), Some(start + SPACING));
        }
    }
}
