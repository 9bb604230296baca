//! How long to pause before the next process, and when to give up. Only faults of the process itself count: not a kill by
//! an operator, a test, or the kernel's out-of-memory killer. Time is the caller's.

use std::time::{Duration, Instant};

/// Serving for so long makes up for all faults before.
const GOOD: Duration = Duration::from_secs(10);
/// Faults in a row after which nothing is tried any more.
const MOST: u32 = 8;
/// Faults in a row that are answered at once: so many does it cost to find a request that crashes its process.
const HUNT: u32 = 3;
/// For how many faults it counts that one answered and then did nothing until its time was over: each costs that time.
const NOTHING: u32 = 3;
/// How often faults are forgotten because such a request was found. A guest may have any number of them.
const PARDONS: u32 = 16;
/// The pause after the first fault beyond those; each further one doubles it.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// The least time between two starts: who kills a process as soon as it is there does not keep us busy.
const SPACING: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Default)]
pub struct Patience {
    faults: u32,
    pardons: u32,
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

    /// It does not serve, whatever it says: how long it did is no credit to it.
    pub fn served_nothing(&mut self) {
        self.serving = None;
        self.faults += NOTHING - 1;
    }

    /// An operator wants another try, whatever happened before.
    pub fn renew(&mut self) {
        (self.faults, self.pardons) = (0, 0);
    }

    /// What it died of will not come again.
    pub fn cause_is_gone(&mut self) {
        if self.pardons < PARDONS {
            (self.faults, self.pardons) = (0, self.pardons + 1);
        }
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
            ..=HUNT => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - HUNT - 1).min(16)).min(LONGEST),
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
        assert_eq!(pauses, [0, 0, 0, 100, 200, 400, 800, 1600]);
        patience.renew();
        assert_eq!(patience.ended(true, start), Some(start));
    }

    #[test]
    fn requests_that_are_found_make_up_for_the_faults_they_cost_but_not_for_ever() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        let mut found = 0;
        while let Some(due) = patience.ended(true, start)
            && let Some(_) = patience.ended(true, start)
        {
            assert!(due == start || found > PARDONS, "found at once: {found}");
            patience.cause_is_gone();
            found += 1;
        }
        assert_eq!(found, PARDONS + MOST / 2);
    }

    #[test]
    fn what_answers_and_does_nothing_is_tried_three_times() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        let tries = (1..).take_while(|round| {
            let at = start + GOOD * *round;
            patience.launched(at);
            patience.serving(at);
            patience.served_nothing();
            patience.ended(true, at + GOOD).is_some()
        });
        assert_eq!(tries.count(), 2);
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
