//! The board's time: nanoseconds of CLOCK_MONOTONIC, and how they relate to the host's time-stamp counter.
//!
//! Chips take `now` from here and never ask the host themselves. The frequency is measured once, in at most 5 ms, and
//! CPUID's own figure is preferred where it agrees. Conversions are made relative to the present, so that an error of
//! the measurement grows with the length of a timeout and not with the host's uptime.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

const NS_PER_S: u128 = 1_000_000_000;

#[derive(Clone)]
enum Source {
    Host,
    Manual(Arc<AtomicU64>),
}

/// A source of time.
#[derive(Clone)]
pub struct Clock {
    source: Source,
    tsc_hz: u64,
}

impl Clock {
    /// The host's clock. Takes up to 5 ms to measure the TSC.
    pub fn host() -> Self {
        let quick = measure(500_000);
        let tsc_hz = match cpuid_tsc_hz() {
            Some(hz) if hz.abs_diff(quick) < quick / 500 => hz,
            _ => measure(4_000_000),
        };
        Self { source: Source::Host, tsc_hz }
    }

    /// A clock that shows what `ns` holds, with a TSC of 1 GHz: time under the control of a test.
    pub fn manual(ns: Arc<AtomicU64>) -> Self {
        Self { source: Source::Manual(ns), tsc_hz: 1_000_000_000 }
    }

    /// Nanoseconds since an arbitrary start; for the host's clock, CLOCK_MONOTONIC.
    #[inline]
    pub fn now(&self) -> u64 {
        match &self.source {
            Source::Host => monotonic_ns(),
            Source::Manual(ns) => ns.load(Ordering::Relaxed),
        }
    }

    /// The host's time-stamp counter.
    #[inline]
    pub fn tsc(&self) -> u64 {
        match &self.source {
            Source::Host => rdtsc(),
            Source::Manual(ns) => ns.load(Ordering::Relaxed),
        }
    }

    /// Frequency of the time-stamp counter, in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// When the host's TSC will read `tsc`, in nanoseconds of this clock, rounded up. `now` if that has passed.
    pub fn ns_at_tsc(&self, tsc: u64) -> u64 {
        let (now, current) = (self.now(), self.tsc());
        let ticks = u128::from(tsc.saturating_sub(current));
        let ns = (ticks * NS_PER_S).div_ceil(u128::from(self.tsc_hz));
        now.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

fn monotonic_ns() -> u64 {
    // CLOCK_MONOTONIC always exists; the fallback only keeps this path free of panics.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| (t.tv_sec() as u64).wrapping_mul(NS_PER_S as u64).wrapping_add(t.tv_nsec() as u64))
}

#[inline]
fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no operands and is enabled in every Linux process but one that asked otherwise.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A TSC reading and the time it was taken at, from the tightest of a few attempts.
fn sample() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = rdtsc();
        let ns = monotonic_ns();
        let width = rdtsc().wrapping_sub(before);
        if width < best.0 {
            best = (width, before.wrapping_add(width / 2), ns);
        }
    }
    (best.1, best.2)
}

/// Frequency of the TSC over `ns` nanoseconds.
fn measure(ns: u64) -> u64 {
    let (tsc0, t0) = sample();
    while monotonic_ns().wrapping_sub(t0) < ns {
        std::hint::spin_loop();
    }
    let (tsc1, t1) = sample();
    let ticks = u128::from(tsc1.wrapping_sub(tsc0));
    let hz = ticks * NS_PER_S / u128::from(t1.wrapping_sub(t0).max(1));
    u64::try_from(hz).unwrap_or(0).max(1_000_000)
}

/// What CPUID leaf 15h says (SDM vol. 2, CPUID): crystal frequency × numerator / denominator.
fn cpuid_tsc_hz() -> Option<u64> {
    let max = std::arch::x86_64::__cpuid(0).eax;
    if max < 0x15 {
        return None;
    }
    let leaf = std::arch::x86_64::__cpuid(0x15);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_clock_runs_and_converts() {
        let clock = Clock::host();
        let (t0, c0) = (clock.now(), clock.tsc());
        assert!(clock.tsc_hz() > 100_000_000, "{} Hz", clock.tsc_hz());
        let at = clock.ns_at_tsc(c0 + clock.tsc_hz());
        assert!(at.abs_diff(t0 + 1_000_000_000) < 50_000_000, "a second of ticks is a second");
        assert!(clock.ns_at_tsc(0) >= t0, "the past is now");
        assert!(clock.ns_at_tsc(u64::MAX) > t0);
    }

    #[test]
    fn manual_clock_obeys() {
        let ns = Arc::new(AtomicU64::new(5));
        let clock = Clock::manual(ns.clone());
        ns.store(70, Ordering::Relaxed);
        assert_eq!((clock.now(), clock.ns_at_tsc(100)), (70, 100));
    }
}
