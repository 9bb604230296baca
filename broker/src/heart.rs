//! Whether a process still answers. It is asked now and then; silence is reported once, and once more when it ends. Time is
//! the caller's.

use std::time::{Duration, Instant};

/// A turn that comes this much later than it was to come means that the broker itself was stopped, or the host slept.
const LATE: Duration = Duration::from_secs(5);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing.
    Calm,
    /// Ask, with this number.
    Ask(u32),
    /// It has not answered for so long.
    Silent(Duration),
}

/// The state of the questions.
#[derive(Debug)]
pub struct Heart {
    /// Between two questions.
    every: Duration,
    /// Silence that is worth a word.
    silence: Duration,
    number: u32,
    /// When to look again.
    next: Instant,
    heard: Instant,
    told: bool,
}

impl Heart {
    /// It was heard now. It is asked every so often, and that much silence is worth a word.
    pub fn new(now: Instant, every: Duration, silence: Duration) -> Self {
        Self { every, silence, number: 0, next: now + every, heard: now, told: false }
    }

    /// When to call [`Self::turn`] at the latest.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Silence was reported, and lasts.
    pub fn is_silent(&self) -> bool {
        self.told
    }

    /// What is to be done.
    pub fn turn(&mut self, now: Instant) -> Pulse {
        if now < self.next {
            return Pulse::Calm;
        }
        if now > self.next + LATE {
            // Nobody could answer while we did not ask.
            self.heard = now;
        }
        self.next = now + self.every;
        let silence = now.saturating_duration_since(self.heard);
        if silence >= self.silence && !self.told {
            self.told = true;
            return Pulse::Silent(silence);
        }
        self.number = self.number.wrapping_add(1);
        Pulse::Ask(self.number)
    }

    /// An answer came. True if silence was reported before.
    pub fn answered(&mut self, number: u32, now: Instant) -> bool {
        if number != self.number {
            return false;
        }
        self.heard = now;
        std::mem::take(&mut self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heart(now: Instant) -> Heart {
        Heart::new(now, Duration::from_secs(10), Duration::from_secs(30))
    }

    #[test]
    fn silence_is_told_once_and_ends_with_an_answer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut heart = heart(start);
        assert_eq!(heart.turn(at(9)), Pulse::Calm);
        assert_eq!((heart.turn(at(10)), heart.turn(at(10))), (Pulse::Ask(1), Pulse::Calm));
        assert!(!heart.answered(1, at(11)));
        assert_eq!(
            (heart.turn(at(20)), heart.turn(at(30)), heart.turn(at(40))),
            (Pulse::Ask(2), Pulse::Ask(3), Pulse::Ask(4))
        );
        assert_eq!(heart.turn(at(50)), Pulse::Silent(Duration::from_secs(39)));
        assert_eq!(heart.turn(at(60)), Pulse::Ask(5));
        assert!(!heart.answered(4, at(61)), "an old answer says nothing");
        assert!(heart.answered(5, at(61)) && !heart.answered(5, at(62)));
    }

    #[test]
    fn sleep_of_the_broker_itself_is_no_silence() {
        let start = Instant::now();
        let mut heart = heart(start);
        assert_eq!(heart.turn(start + Duration::from_secs(3600)), Pulse::Ask(1));
        assert_eq!(heart.turn(start + Duration::from_secs(3610)), Pulse::Ask(2));
    }
}
