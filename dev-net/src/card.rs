//! The card: moves packets between its two queues and its link, on one thread.

use std::os::fd::AsFd;
use std::time::Duration;

use back_end::vring::{Memory, Vring};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerFd, TimerSetTimeFlags};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use crate::queue::{self, Broken, FRAME};
use crate::user::User;

/// Number of the queue by which the driver receives.
pub const RECEIVE: usize = 0;
/// Number of the queue by which it sends.
pub const SEND: usize = 1;
/// Packets that are taken at one go, before the link has a turn.
const BATCH: usize = 64;
/// Turns at one go: who stops a queue waits for no longer, whatever comes.
const TURNS: u32 = 64;

/// See the module.
pub struct Card {
    link: User,
    timer: TimerFd,
    frame: Box<[u8; FRAME]>,
    /// By queue: nothing is taken until the front end stops and starts it.
    broken: [bool; 2],
}

impl Card {
    /// A card at this link, whose clock is `timer`.
    pub fn new(link: User, timer: TimerFd) -> Self {
        Self { link, timer, frame: Box::new([0; FRAME]), broken: [false; 2] }
    }

    /// What wakes the card, beside its queues: flows, and the clock.
    pub fn wakers(&self) -> [std::os::fd::BorrowedFd<'_>; 2] {
        [self.link.as_fd(), self.timer.as_fd()]
    }

    /// The clock went off.
    pub fn tick(&mut self) {
        // Not to be waited for: it is readable, or its time was set anew.
        let _ = self.timer.wait();
    }

    /// A queue starts anew.
    pub fn mend(&mut self, queue: usize) {
        if let Some(broken) = self.broken.get_mut(queue) {
            *broken = false;
        }
    }

    /// Works until there is nothing to do and whoever has something next knows that it must say so, or for so long that others
    /// must have a turn. An error is of one queue, its number first; the other goes on.
    pub fn work(&mut self, vrings: &[Vring], memory: &Memory) -> Result<(), (usize, Broken)> {
        let [receive, send] = vrings else { return Ok(()) };
        let mut result = Ok(());
        let mut guard = |queue: usize, broken: &mut bool, done: Result<bool, Broken>| {
            done.unwrap_or_else(|error| {
                *broken = true;
                result = Err((queue, error));
                false
            })
        };
        let mut busy = true;
        for _ in 0..TURNS {
            let taken = if self.broken[SEND] { Ok(false) } else { self.take(send, memory) };
            let more = guard(SEND, &mut self.broken[SEND], taken);
            self.link.turn();
            let put = if self.broken[RECEIVE] { self.discard() } else { self.put(receive, memory) };
            let room = guard(RECEIVE, &mut self.broken[RECEIVE], put);
            if more || room && self.link.held_back() {
                continue;
            }
            let slept = if self.broken[SEND] { Ok(false) } else { may_have_more(send) };
            if !guard(SEND, &mut self.broken[SEND], slept) {
                busy = false;
                break;
            }
        }
        self.set_timer(busy);
        result
    }

    /// Takes what the driver sends. True if there may be more.
    fn take(&mut self, vring: &Vring, memory: &Memory) -> Result<bool, Broken> {
        let mut state = vring.get_mut();
        if !state.get_queue().ready() || !state.is_enabled() {
            return Ok(false);
        }
        let memory = memory.memory();
        state.disable_notification()?;
        let mut taken = 0;
        while taken < BATCH
            && let Some(length) = queue::take(state.get_queue_mut(), &*memory, &mut self.frame)?
        {
            taken += 1;
            self.link.send(&self.frame[..length]);
        }
        if taken > 0 && state.needs_notification()? {
            // A front end that cannot be told still finds its used ring filled.
            let _ = state.signal_used_queue();
        }
        Ok(taken == BATCH)
    }

    /// Gives the driver what has come for it. True if all of it has found a buffer; else a new buffer is a reason to wake.
    fn put(&mut self, vring: &Vring, memory: &Memory) -> Result<bool, Broken> {
        let mut state = vring.get_mut();
        if !state.get_queue().ready() || !state.is_enabled() {
            return self.discard();
        }
        self.link.guest_listens();
        let memory = memory.memory();
        state.disable_notification()?;
        let mut given = 0;
        let all = loop {
            let Some(frame) = self.link.next_frame() else { break true };
            if queue::put(state.get_queue_mut(), &*memory, frame)? {
                self.link.frame_done();
                given += 1;
            } else if !state.enable_notification()? {
                break false;
            }
        };
        if given > 0 && state.needs_notification()? {
            let _ = state.signal_used_queue();
        }
        Ok(all)
    }

    /// There is no driver: what comes for it is lost.
    fn discard(&mut self) -> Result<bool, Broken> {
        while self.link.next_frame().is_some() {
            self.link.frame_done();
        }
        Ok(true)
    }

    /// Has the clock go off when the link is due: at once, if it is busy.
    fn set_timer(&mut self, busy: bool) {
        let due = if busy { Some(Duration::ZERO) } else { self.link.due() };
        let set = match due {
            // No time at all would turn it off.
            Some(left) => {
                let left = TimeSpec::from_duration(left.max(Duration::from_micros(1)));
                self.timer.set(Expiration::OneShot(left), TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        if let Err(error) = set {
            tracing::error!("setting the clock: {error}");
        }
    }
}

/// Asks the driver to notify; true if it has added something meanwhile.
fn may_have_more(vring: &Vring) -> Result<bool, Broken> {
    let mut state = vring.get_mut();
    if !state.get_queue().ready() || !state.is_enabled() {
        return Ok(false);
    }
    Ok(state.enable_notification()?)
}
