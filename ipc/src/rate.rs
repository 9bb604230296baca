//! A limit on how often something may happen: a bucket of tokens that fills with time.

use std::time::Instant;

/// The bucket. The caller tells the time, so that it can be tested without any passing.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Most tokens it holds.
    burst: u32,
    /// Tokens a second.
    rate: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(burst: u32, rate: u32, now: Instant) -> Self {
        Self { burst, rate, tokens: f64::from(burst), filled: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(self.rate)).min(f64::from(self.burst));
        self.filled = now;
        let taken = self.tokens >= 1.0;
        self.tokens -= if taken { 1.0 } else { 0.0 };
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 2, start);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        let later = start + Duration::from_millis(1000);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(1000);
        assert_eq!((0..9).filter(|_| bucket.take(much_later)).count(), 3);
        assert!(!bucket.take(start), "time that goes backwards fills nothing");
    }
}
