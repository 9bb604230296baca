//! A limit for call storms: a device may signal as often as it likes, but only signals that lead to something are
//! served at once.

use std::time::Duration;

/// Calls in a row that may lead to nothing: a fast guest and a fast device produce a few.
const PATIENCE: u32 = 64;
/// How long further ones are left alone.
const PAUSE: Duration = Duration::from_millis(1);

/// Counts calls that led to nothing.
#[derive(Debug, Default)]
pub struct Storm {
    idle: u32,
    progress: u64,
}

impl Storm {
    /// A call came; `progress` counts completions so far. How long to wait before the next is looked at.
    pub fn call(&mut self, progress: u64) -> Option<Duration> {
        self.idle = if progress == self.progress { self.idle.saturating_add(1) } else { 0 };
        self.progress = progress;
        (self.idle > PATIENCE).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_without_progress_are_slowed() {
        let mut storm = Storm::default();
        assert!((1..1000).all(|progress| storm.call(progress).is_none()));
        assert_eq!((0..64).filter_map(|_| storm.call(999)).count(), 0);
        assert_eq!((0..100).filter_map(|_| storm.call(999)).count(), 100);
        assert_eq!(storm.call(1000), None, "work that is done ends it");
    }
}
