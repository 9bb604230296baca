//! What time demands of a device's process: that it answers, and that it comes to serve and to its end in time.

use std::time::{Duration, Instant};

use ipc::control::ToDevice;

use super::table::{Event, State};
use super::{BEAT, Context, Device};
use crate::heart::{Heart, Pulse};

/// When what found the vmm's channel full is said again.
const AGAIN: Duration = Duration::from_millis(100);
/// Why a process that somebody stopped was ended. The vmm's patience with it may end before ours: both say the same.
const STOPPED: &str = "somebody stopped it";

impl Device {
    /// Does what time demands.
    pub fn turn(&mut self, now: Instant, context: &mut Context<'_>) {
        self.look_for_stop(now);
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            match self.state {
                State::Pausing => self.happened(Event::Due, context),
                _ => {
                    let stopped = self.back_end.as_ref().is_some_and(|back_end| back_end.process.stopped());
                    let doubt = self.doubt.take().unwrap_or("it took too long".into());
                    self.cause.get_or_insert(if stopped { (STOPPED.into(), false) } else { (doubt, true) });
                    self.happened(Event::Late, context);
                }
            }
        }
        self.settle(context);
        if self.state == State::Serving && self.back_end.is_some() {
            self.beat(now, context);
        }
    }

    /// One that somebody stopped while it was being started has no more time than one that serves.
    fn look_for_stop(&mut self, now: Instant) {
        let stopped = self.is_starting() && self.back_end.as_ref().is_some_and(|back_end| back_end.process.stopped());
        self.stopped = stopped.then(|| self.stopped.unwrap_or(now));
        if self.stopped.is_some_and(|since| now.saturating_duration_since(since) >= BEAT.1) {
            self.until = Some(now);
        }
    }

    fn is_starting(&self) -> bool {
        matches!(self.state, State::Confining | State::Opening)
    }

    fn beat(&mut self, now: Instant, context: &mut Context<'_>) {
        let Some(back_end) = &mut self.back_end else { return };
        match self.heart.turn(now) {
            Pulse::Calm => {}
            // A channel that is full means that it does not read: silence tells.
            Pulse::Ask(number) => drop(back_end.link.say(&ToDevice::Beat(number), &[])),
            Pulse::Silent(long) => match back_end.process.stuck() {
                true => {
                    tracing::warn!("{}: its process is stuck in the kernel: is the medium dead?", self.name);
                    // SIGKILL would not end it either: it is asked again.
                    self.heart = Heart::new(now, BEAT.0, BEAT.1);
                }
                false => {
                    let stopped = back_end.process.stopped();
                    let silent = || format!("it has not answered for {} s", long.as_secs());
                    self.cause = Some((if stopped { STOPPED.into() } else { silent() }, !stopped));
                    self.happened(Event::Silent, context);
                }
            },
        }
    }

    /// When to call [`Self::turn`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        let beat = (self.state == State::Serving && self.back_end.is_some()).then(|| self.heart.next());
        let owed = self.owed.then(|| Instant::now() + AGAIN);
        let start = self.is_starting().then(|| Instant::now() + BEAT.0);
        [self.until, beat, owed, start].into_iter().flatten().min()
    }
}
