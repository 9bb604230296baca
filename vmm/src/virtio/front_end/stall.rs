//! Whether requests come back. A device process may take as long as its medium does, so nothing is decided here: it is only
//! told that requests are out of which none came back for a while, and the broker, who sees the process, judges.

use std::time::{Duration, Instant};

/// Between two looks.
pub const LOOK: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Stall {
    next: Option<Instant>,
    /// Connection, and completions so far, at the last look.
    seen: (u64, u64),
    since: Option<Instant>,
}

impl Stall {
    /// When to look next.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Looks, if it is time to. `out` says that requests are out on the connection `seen.0`, and `seen.1` counts completions.
    /// For how long none has come back, if that is worth a word.
    pub fn look(&mut self, now: Instant, out: bool, seen: (u64, u64)) -> Option<Duration> {
        let due = *self.next.get_or_insert(now + LOOK);
        if now < due {
            return None;
        }
        self.next = Some(now + LOOK);
        // Who was kept from looking was perhaps kept from completing, too.
        let late = now > due + LOOK;
        if !out || late || seen != self.seen {
            self.since = out.then_some(now);
            self.seen = seen;
            return None;
        }
        self.since.map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_stay_out_while_none_comes_back_are_told() {
        let (start, mut stall) = (Instant::now(), Stall::default());
        let at = |looks: u32| start + LOOK * looks;
        let seconds = |told: Option<Duration>| told.map(|long| long.as_secs());
        assert_eq!((stall.look(at(0), true, (0, 7)), stall.next()), (None, Some(at(1))));
        assert_eq!(stall.look(at(1), true, (0, 7)), None, "they may have been sent just now");
        assert_eq!(stall.look(at(2) - Duration::from_millis(1), true, (0, 7)), None, "not yet");
        assert_eq!(seconds(stall.look(at(2), true, (0, 7))), Some(5));
        assert_eq!(seconds(stall.look(at(3), true, (0, 7))), Some(10));
        assert_eq!(stall.look(at(4), true, (0, 8)), None, "one came back");
        assert_eq!(seconds(stall.look(at(5), true, (0, 8))), Some(5));
        assert_eq!(stall.look(at(6), true, (1, 8)), None, "another connection");
        assert_eq!(stall.look(at(7), false, (1, 8)), None);
        assert_eq!(stall.look(at(8), true, (1, 8)), None, "idle until now");
        assert_eq!(stall.look(at(99), true, (1, 8)), None, "the vmm itself was stopped");
        assert_eq!(seconds(stall.look(at(100), true, (1, 8))), Some(5));
    }
}
