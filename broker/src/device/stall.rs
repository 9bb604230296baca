//! Requests that do not come back, though the process that has them answers: does it hang?
//!
//! The vmm says for how long it has had requests and completed none. That alone convicts nobody: a medium may take long,
//! the host may be busy, somebody may have stopped the process. What convicts a process of ours is the processor time that
//! it has used meanwhile, much more than any one request takes: one of its threads runs in circles. Time in the kernel does
//! not count, since file systems may compute for long, and so a process that waits is never convicted, be it for a medium
//! or for a lock that nobody releases.
//!
//! Into somebody else's process we cannot look: it has its time, and then another connection is tried.

use std::time::Duration;

use super::table::Event;
use super::{Context, Device, Source};

/// Processor time without a completion that convicts.
const SPENT: Duration = Duration::from_secs(5);

/// What is known of a stall.
#[derive(Debug, Default)]
pub struct Stall {
    seconds: u32,
    /// Processor time that the process had used when it was first told.
    before: Duration,
}

impl Stall {
    /// The process has completed nothing for `seconds`, and has used `user` processor time in its life: how much of that since
    /// the stall was told first.
    fn spent(&mut self, seconds: u32, user: Duration) -> Duration {
        if seconds <= self.seconds || self.seconds == 0 {
            self.before = user;
        }
        self.seconds = seconds;
        user.saturating_sub(self.before)
    }
}

impl Device {
    /// The vmm says that its process has completed nothing for `seconds`.
    pub(super) fn stalled(&mut self, seconds: u32, context: &mut Context<'_>) {
        let why = match (&self.source, &self.back_end) {
            (Source::Foreign(disk), _) if seconds >= disk.timeout => {
                self.patience.served_nothing();
                format!("its back end has completed no request for {seconds} s")
            }
            (Source::Own(_) | Source::Nic(_), Some(back_end)) => {
                match self.stall.spent(seconds, back_end.process.user_time()) {
                    spent if spent >= SPENT => {
                        let spent = spent.as_secs();
                        format!(
                            "it has completed no request for {seconds} s, and used {spent} s of processor time for that"
                        )
                    }
                    _ => return tracing::debug!("{}: it has completed no request for {seconds} s", self.name),
                }
            }
            _ => return,
        };
        self.cause = Some((why, true));
        self.happened(Event::Silent, context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_used_during_the_stall_counts() {
        let (mut stall, second) = (Stall::default(), Duration::from_secs(1));
        assert_eq!(stall.spent(5, 100 * second), Duration::ZERO);
        assert_eq!(stall.spent(10, 103 * second), 3 * second);
        assert_eq!(stall.spent(5, 200 * second), Duration::ZERO, "another one");
        assert_eq!(stall.spent(10, 201 * second), second);
    }
}
