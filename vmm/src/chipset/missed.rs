//! Ticks of a periodic timer that passed while nobody looked.
//!
//! Guests count ticks: a kernel that waits 50 ms of TSC time for five of them calls the timer broken if it sees two. On a
//! real board none is lost to a processor that takes interrupts, but here the processor's thread may be kept from
//! running for many periods. When it runs again, one interrupt is raised at once, and the periods beyond it are kept
//! here: the board raises them one by one, each when the last was acknowledged, as KVM's PIT and QEMU's RTC do.
//!
//! What a guest misses by its own doing stays missed. Ticks of a masked line are not kept, and a processor that runs with
//! interrupts off is looked at once a tick, which finds nothing left over.

/// Ticks kept at most: a second at 250 Hz. A process that was stopped for an hour does not make good for it.
const LIMIT: u64 = 256;

/// The number of ticks to make good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed(u64);

impl Missed {
    /// Keeps `ticks` more.
    pub fn add(&mut self, ticks: u64) {
        self.0 = self.0.saturating_add(ticks).min(LIMIT);
    }

    /// The timer was programmed anew, or nobody listens.
    pub fn forget(&mut self) {
        self.0 = 0;
    }

    /// True while there are any.
    pub fn any(&self) -> bool {
        self.0 != 0
    }

    /// Takes one.
    pub fn take(&mut self) -> bool {
        let any = self.any();
        self.0 = self.0.saturating_sub(1);
        any
    }
}
