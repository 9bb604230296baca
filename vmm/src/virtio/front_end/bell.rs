//! The thread that listens for a device process: to its calls, to its hanging up, and to the clock.
//!
//! It never waits for the device. A call is passed on by asking the processor for attention; the call eventfds are
//! watched edge-triggered and never read, since a read can be made to block by who shares the descriptor. When the
//! watchdog runs out, the connection's sockets are shut down, which wakes whoever is blocked on them with an error.
//!
//! What is heard carries the number of the connection that it was heard from: by the time it is looked at, another may be
//! there, which has nothing to do with it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};

use super::stall::Stall;
use super::storm::Storm;
use super::{Command, Event, Port};

/// What a descriptor in the epoll set is, in the lowest bits of its data; above them is its connection's number.
const WAKE: u64 = 0;
const SOCKET: u64 = 1;
const REQUESTS: u64 = 2;
const CALL: u64 = 3;
const KIND_BITS: u32 = 2;

/// What the device is being waited for.
#[derive(Clone, Copy, Debug)]
pub enum Watch {
    /// A message to be answered.
    Answer,
    /// Outstanding requests to come back after a reset by the guest.
    Drain,
}

/// What listens, and what it guards.
pub struct Bell {
    epoll: Epoll,
    /// Ours alone: wakes the thread to look at deadline and end.
    wake: EventFd,
    state: Mutex<State>,
    /// Completions so far, counted by the device.
    pub progress: AtomicU64,
    /// Requests are out, the device says.
    pub out: AtomicBool,
}

#[derive(Default)]
struct State {
    deadlines: [Option<Instant>; 2],
    guarded: Option<Guarded>,
    /// Nobody is guarded any more.
    ended: bool,
}

/// The connection that is being listened to.
struct Guarded {
    serial: u64,
    sockets: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
}

impl State {
    /// Ends the connection: shuts its sockets down and listens to it no more. Its number.
    fn release(&mut self, epoll: &Epoll) -> Option<u64> {
        // Also where the connection is over already: a deadline set since, by a reset that did not know of that yet, would
        // be held against the next one.
        self.deadlines = [None; 2];
        let guarded = self.guarded.take()?;
        for fd in guarded.sockets.iter().chain(&guarded.calls) {
            // Closing does not leave the epoll set while the device holds the same file.
            let _ = epoll.delete(fd);
        }
        for socket in &guarded.sockets {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        Some(guarded.serial)
    }

    fn earliest(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }
}

impl Bell {
    /// Listens to nobody yet.
    pub fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        Ok(Self { epoll, wake, state: Mutex::default(), progress: AtomicU64::new(0), out: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of `fd` that is watched: numbers cannot be reused under us.
    fn watch(&self, fd: BorrowedFd<'_>, flags: EpollFlags, serial: u64, kind: u64) -> std::io::Result<OwnedFd> {
        let copy = fd.try_clone_to_owned()?;
        self.epoll.add(&copy, EpollEvent::new(flags | EpollFlags::EPOLLET, serial << KIND_BITS | kind))?;
        Ok(copy)
    }

    /// From now on `socket` must not hang up. An error after [`Self::end`], since nobody would notice.
    pub fn guard(&self, serial: u64, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut state = self.state();
        state.release(&self.epoll);
        if state.ended {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let socket = self.watch(socket, EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP, serial, SOCKET)?;
        state.guarded = Some(Guarded { serial, sockets: vec![socket], calls: Vec::new() });
        Ok(())
    }

    /// Listens to `calls` and the device's own requests, too. An error if the connection is over already.
    pub fn listen<'a>(
        &self,
        calls: impl Iterator<Item = BorrowedFd<'a>>,
        requests: Option<BorrowedFd<'a>>,
    ) -> std::io::Result<()> {
        let mut state = self.state();
        let guarded = state.guarded.as_mut().ok_or(std::io::ErrorKind::NotConnected)?;
        for call in calls {
            guarded.calls.push(self.watch(call, EpollFlags::EPOLLIN, guarded.serial, CALL)?);
        }
        if let Some(requests) = requests {
            guarded.sockets.push(self.watch(requests, EpollFlags::EPOLLIN, guarded.serial, REQUESTS)?);
        }
        Ok(())
    }

    /// Ends the connection.
    pub fn release(&self) {
        self.state().release(&self.epoll);
    }

    /// Gives the device `time` for something.
    pub fn arm(&self, watch: Watch, time: Duration) {
        self.state().deadlines[watch as usize] = Some(Instant::now() + time);
        let _ = self.wake.write(1);
    }

    /// It did it.
    pub fn disarm(&self, watch: Watch) {
        self.state().deadlines[watch as usize] = None;
    }

    /// Ends the connection and the thread. There will be no other.
    pub fn end(&self) {
        let mut state = self.state();
        state.release(&self.epoll);
        state.ended = true;
        let _ = self.wake.write(1);
    }

    /// The thread.
    pub fn run(&self, port: &Port, control: &Sender<Command>) {
        let (mut storm, mut stall) = (Storm::default(), Stall::default());
        let mut events = [EpollEvent::empty(); 16];
        while let Some(timeout) = self.timeout(stall.next()) {
            // An error is EINTR: the loop looks again.
            let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
            let mut called = false;
            for event in &events[..count] {
                let (serial, kind) = (event.data() >> KIND_BITS, event.data() & ((1 << KIND_BITS) - 1));
                match kind {
                    WAKE => drop(self.wake.read()),
                    SOCKET => self.hung_up(serial, port),
                    REQUESTS => drop(control.send(Command::Listen)),
                    _ => called = true,
                }
            }
            self.look_at_clock(port);
            self.look_for_stall(&mut stall, port);
            if called {
                port.ring();
                if let Some(pause) = storm.call(self.progress.load(Ordering::Relaxed)) {
                    std::thread::sleep(pause);
                }
            }
        }
    }

    /// Time to the deadline or to `look`, rounded up so that waking means that it is over. None at the end.
    fn timeout(&self, look: Option<Instant>) -> Option<EpollTimeout> {
        let state = self.state();
        let Some(at) = state.earliest().into_iter().chain(look).min() else {
            return (!state.ended).then_some(EpollTimeout::NONE);
        };
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        (!state.ended).then(|| EpollTimeout::try_from(left).unwrap_or(EpollTimeout::NONE))
    }

    /// Connection `serial` hung up. If another is there since, its end was noticed before.
    fn hung_up(&self, serial: u64, port: &Port) {
        let mut state = self.state();
        if state.guarded.as_ref().is_some_and(|guarded| guarded.serial == serial) {
            state.release(&self.epoll);
            drop(state);
            port.post(Event::Lost { serial, reason: "it hung up".into() });
        }
    }

    fn look_for_stall(&self, stall: &mut Stall, port: &Port) {
        let serial = self.state().guarded.as_ref().map(|guarded| guarded.serial);
        let out = serial.is_some() && self.out.load(Ordering::Relaxed);
        let seen = (serial.unwrap_or(0), self.progress.load(Ordering::Relaxed));
        if let Some(long) = stall.look(Instant::now(), out, seen) {
            port.post(Event::Stalled { serial: seen.0, long });
        }
    }

    fn look_at_clock(&self, port: &Port) {
        let mut state = self.state();
        if state.earliest().is_some_and(|at| at <= Instant::now())
            && let Some(serial) = state.release(&self.epoll)
        {
            drop(state);
            port.post(Event::Lost { serial, reason: "it did not answer in time".into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A bell that guards connection `serial`, and the connection's two ends.
    fn guarding(bell: &Bell, serial: u64) -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        bell.guard(serial, ours.as_fd()).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn is_open(theirs: &mut UnixStream) -> bool {
        theirs.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// What the thread heard of one connection may reach it after the next one has come.
    #[test]
    fn news_of_an_earlier_connection_does_not_end_the_next() {
        let (bell, port) = (Bell::new().unwrap(), Port::new(Box::new(|| ())));
        let (_ours, mut first) = guarding(&bell, 7);
        bell.arm(Watch::Drain, Duration::ZERO);
        let (_ours, mut second) = guarding(&bell, 8);
        assert!(!is_open(&mut first) && is_open(&mut second));
        bell.hung_up(7, &port);
        bell.look_at_clock(&port);
        assert!(is_open(&mut second) && port.take().is_none());
        bell.hung_up(8, &port);
        assert!(!is_open(&mut second));
        assert!(matches!(port.take(), Some(Event::Lost { serial: 8, .. })));
        bell.hung_up(8, &port);
        assert!(port.take().is_none(), "once");
        assert!(bell.listen(std::iter::empty(), None).is_err(), "there is nobody to listen to");
    }

    #[test]
    fn nobody_is_guarded_after_the_end() {
        let bell = Bell::new().unwrap();
        let (ours, mut theirs) = guarding(&bell, 0);
        bell.end();
        assert!(!is_open(&mut theirs));
        assert!(bell.guard(1, ours.as_fd()).is_err());
        bell.run(&Port::new(Box::new(|| ())), &std::sync::mpsc::channel().0);
    }
}
