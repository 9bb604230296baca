//! Telling the operator what went wrong, without letting a guest fill the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// At most one message in this time; what comes between is counted.
const QUIET: Duration = Duration::from_secs(5);

/// Limits messages of one kind.
#[derive(Debug, Default)]
pub struct Complaints {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Complaints {
    /// Whether to speak now: the number of messages left out since the last one, or none to keep silent.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_one_message_with_a_count() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert_eq!(complaints.admit_at(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(complaints.admit_at(start + QUIET / 2), None);
        }
        assert_eq!(complaints.admit_at(start + QUIET), Some(1000));
        assert_eq!(complaints.admit_at(start + QUIET * 2), Some(0));
    }
}
