//! How a machine comes to its end: by the operator's wish, in order first and then by force, or because its vmm does not end
//! when there is nothing left for it to do.

use std::time::{Duration, Instant};

use ipc::control::ToVmm;

use super::Supervisor;
use crate::heart::Pulse;

/// How long a guest may take to shut down after the power button.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long the vmm may take to end after it was told to.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long it may take to end by itself.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// How far the operator's wish to end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    No,
    /// The power button was pressed; at this time the machine is stopped.
    Asked(Instant),
    /// The vmm was told to stop; at this time it is killed.
    Stopping(Instant),
    Killed,
}

impl Ending {
    /// When more is to be done about it.
    pub fn due(self) -> Option<Instant> {
        match self {
            Self::Asked(until) | Self::Stopping(until) => Some(until),
            Self::No | Self::Killed => None,
        }
    }
}

impl Supervisor {
    /// A stop signal: the first presses the power button, the next one stops, one more kills.
    pub(super) fn asked_to_end(&mut self) {
        self.notifier.tell("STOPPING=1\nSTATUS=stopping");
        match self.ending {
            Ending::No => {
                tracing::info!("pressing the power button; again to stop the machine");
                self.request(&ToVmm::PowerButton);
                self.ending = Ending::Asked(Instant::now() + SHUTDOWN_GRACE);
            }
            Ending::Asked(_) => self.stop(),
            Ending::Stopping(_) | Ending::Killed => self.kill(),
        }
    }

    pub(super) fn stop(&mut self) {
        if !matches!(self.ending, Ending::Stopping(_) | Ending::Killed) {
            self.request(&ToVmm::Stop);
            self.ending = Ending::Stopping(Instant::now() + STOP_GRACE);
        }
    }

    /// Also gives up on output that nobody reads.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            self.vmm.process.kill();
        }
        self.ending = Ending::Killed;
    }

    /// There is nothing left for the vmm but to end.
    pub(super) fn leaving(&mut self) {
        self.leave_by.get_or_insert(Instant::now() + LEAVE_GRACE);
    }

    pub(super) fn check_patience(&mut self) {
        let now = Instant::now();
        match self.heart.turn(now) {
            Pulse::Ask(number) => self.request(&ToVmm::Beat(number)),
            Pulse::Silent(long) => tracing::warn!("the vmm has not answered for {} s", long.as_secs()),
            Pulse::Calm => {}
        }
        if self.leave_by.take_if(|until| *until <= now).is_some() && self.status.is_none() {
            tracing::warn!("the vmm is at its end and has not ended in {} s: killing it", LEAVE_GRACE.as_secs());
            self.vmm.process.kill();
        }
        match self.ending {
            Ending::Asked(until) if now >= until => {
                tracing::warn!("the guest has not powered off in {} s: stopping it", SHUTDOWN_GRACE.as_secs());
                self.stop();
            }
            Ending::Stopping(until) if now >= until => {
                if self.status.is_none() {
                    tracing::warn!("the vmm has not ended in {} s: killing it", STOP_GRACE.as_secs());
                }
                self.kill();
            }
            _ => {}
        }
        self.notifier.turn(now, !self.heart.is_silent());
    }
}
