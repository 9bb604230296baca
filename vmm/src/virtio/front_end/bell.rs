//! The thread that listens for a device process: to its calls, to its hanging up, and to the clock.
//!
//! It never waits for the device. A call is passed on by asking the processor for attention; the call eventfds are
//! watched edge-triggered and never read, since a read can be made to block by who shares the descriptor. When the
//! watchdog runs out, the connection's sockets are shut down, which wakes whoever is blocked on them with an error.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};

use super::storm::Storm;
use super::{Command, Event, Port};

/// What a descriptor in the epoll set is: one of these, or a call.
const WAKE: u64 = 0;
const SOCKET: u64 = 1;
const REQUESTS: u64 = 2;
const CALL: u64 = 3;

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
    deadlines: Mutex<[Option<Instant>; 2]>,
    guarded: Mutex<Option<Guarded>>,
    /// Completions so far, counted by the device.
    pub progress: AtomicU64,
    ended: AtomicBool,
}

/// The connection that is being listened to.
struct Guarded {
    serial: u64,
    sockets: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
}

impl Bell {
    /// Listens to nobody yet.
    pub fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        Ok(Self {
            epoll,
            wake,
            deadlines: Mutex::new([None; 2]),
            guarded: Mutex::new(None),
            progress: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// From now on `socket` must not hang up. Descriptors are duplicated: numbers cannot be reused under us.
    pub fn guard(&self, serial: u64, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        let socket = socket.try_clone_to_owned()?;
        let hang_up = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLET;
        self.release();
        self.epoll.add(&socket, EpollEvent::new(hang_up, SOCKET))?;
        *lock(&self.guarded) = Some(Guarded { serial, sockets: vec![socket], calls: Vec::new() });
        Ok(())
    }

    /// Listens to `calls` and the device's own requests, too.
    pub fn listen<'a>(
        &self,
        calls: impl Iterator<Item = BorrowedFd<'a>>,
        requests: Option<BorrowedFd<'a>>,
    ) -> std::io::Result<()> {
        let mut guarded = lock(&self.guarded);
        let Some(guarded) = guarded.as_mut() else { return Ok(()) };
        for (index, call) in (0..).zip(calls) {
            let call = call.try_clone_to_owned()?;
            self.epoll.add(&call, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, CALL + index))?;
            guarded.calls.push(call);
        }
        if let Some(requests) = requests {
            let requests = requests.try_clone_to_owned()?;
            self.epoll.add(&requests, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, REQUESTS))?;
            guarded.sockets.push(requests);
        }
        Ok(())
    }

    /// Ends the connection: shuts its sockets down and listens to it no more.
    pub fn release(&self) {
        let Some(guarded) = lock(&self.guarded).take() else { return };
        for fd in guarded.sockets.iter().chain(&guarded.calls) {
            // Closing does not leave the epoll set while the device holds the same file.
            let _ = self.epoll.delete(fd);
        }
        for socket in &guarded.sockets {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        *lock(&self.deadlines) = [None; 2];
    }

    /// Gives the device `time` for something.
    pub fn arm(&self, watch: Watch, time: Duration) {
        lock(&self.deadlines)[watch as usize] = Some(Instant::now() + time);
        let _ = self.wake.write(1);
    }

    /// It did it.
    pub fn disarm(&self, watch: Watch) {
        lock(&self.deadlines)[watch as usize] = None;
    }

    fn earliest(&self) -> Option<Instant> {
        lock(&self.deadlines).iter().flatten().min().copied()
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.wake.write(1);
    }

    /// The thread.
    pub fn run(&self, port: &Port, control: &Sender<Command>) {
        let mut storm = Storm::default();
        let mut events = [EpollEvent::empty(); 16];
        while !self.ended.load(Ordering::Acquire) {
            // An error is EINTR: the loop looks again.
            let count = self.epoll.wait(&mut events, self.timeout()).unwrap_or(0);
            let mut called = false;
            for event in &events[..count] {
                match event.data() {
                    WAKE => drop(self.wake.read()),
                    SOCKET => self.lost(port, "it hung up"),
                    REQUESTS => drop(control.send(Command::Listen)),
                    _ => called = true,
                }
            }
            if self.earliest().is_some_and(|at| at <= Instant::now()) {
                self.lost(port, "it did not answer in time");
            }
            if called {
                port.ring();
                if let Some(pause) = storm.call(self.progress.load(Ordering::Relaxed)) {
                    std::thread::sleep(pause);
                }
            }
        }
    }

    /// Time to the deadline, rounded up so that waking means that it is over.
    fn timeout(&self) -> EpollTimeout {
        let Some(at) = self.earliest() else { return EpollTimeout::NONE };
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::NONE)
    }

    fn lost(&self, port: &Port, reason: &str) {
        let serial = lock(&self.guarded).as_ref().map(|guarded| guarded.serial);
        self.release();
        if let Some(serial) = serial {
            port.post(Event::Lost { serial, reason: reason.into() });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
