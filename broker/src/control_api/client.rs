//! One connection to the control socket, from its request to the last of its answer.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ipc::scm;
use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use serde_json::json;

use super::{Answer, MAX_REQUEST, PATIENCE, Request};
use crate::logging::{self, Entry};

/// Bytes of the log that wait for a client to read them. The rest waits in the ring.
const PIECE: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    pid: i32,
    state: State,
    /// When it is dropped. None: it may stay.
    until: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Saying what it wants: so far, this.
    Asking(Vec<u8>),
    /// This is on its way to it, and then more.
    Answered(Vec<u8>, More),
    /// It is done with.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Nothing,
    /// Events from this one on: to the last that there is, or for ever.
    Events {
        cursor: u64,
        follow: bool,
    },
    /// It has the console, as long as it stays.
    Console,
}

impl Client {
    /// A new connection, if it comes from `owner` or root. The socket's mode says the same; this holds whatever becomes of
    /// the mode.
    pub fn new(stream: UnixStream, owner: Uid) -> Option<Self> {
        let peer = getsockopt(&stream, PeerCredentials).ok()?;
        let trusted = peer.uid() == owner.as_raw() || peer.uid() == 0;
        stream.set_nonblocking(true).ok().filter(|()| trusted)?;
        let until = Some(Instant::now() + PATIENCE);
        Some(Self { stream, pid: peer.pid(), state: State::Asking(Vec::new()), until })
    }

    /// The process at the other end.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When to call [`Self::turn`] at the latest.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// It was not dropped for taking long.
    pub fn stays(&self) -> bool {
        self.until.is_none()
    }

    /// The console is its.
    pub fn has_console(&self) -> bool {
        matches!(self.state, State::Answered(_, More::Console))
    }

    /// What to poll it for.
    pub fn interest(&self) -> PollFlags {
        match &self.state {
            State::Asking(_) => PollFlags::POLLIN,
            State::Answered(waiting, more) => {
                let due = matches!(more, More::Events { cursor, .. } if *cursor < logging::ring().end());
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::POLLOUT, due || !waiting.is_empty());
                // Its end, which is all that may come.
                flags.set(PollFlags::POLLIN, self.stays());
                flags
            }
            State::Gone => PollFlags::empty(),
        }
    }

    /// What it wants, once all of that is there.
    pub fn read(&mut self) -> Option<Result<Request, String>> {
        let State::Asking(line) = &mut self.state else { return None };
        let mut buffer = [0; MAX_REQUEST];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Some(Err("no request".into())),
            Ok(length) => line.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Some(Err(error.to_string())),
        }
        let end = line.iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => Some(serde_json::from_slice(&line[..end]).map_err(|error| error.to_string())),
            None if line.len() > MAX_REQUEST => Some(Err("the request is too long".into())),
            None => None,
        }
    }

    /// Begins to answer.
    pub fn answer(&mut self, answer: Answer) {
        self.until = Some(Instant::now() + PATIENCE);
        self.state = match answer {
            Answer::Done(line) => State::Answered(format!("{line}\n").into_bytes(), More::Nothing),
            Answer::Events { follow } => {
                self.until = self.until.filter(|_| !follow);
                State::Answered(Vec::new(), More::Events { cursor: 0, follow })
            }
            Answer::Console { console, backlog } => {
                self.until = None;
                let line = format!("{}\n", json!({ "backlog": backlog.len() }));
                // The first bytes on an empty socket: all of it, or nothing.
                match scm::send(self.stream.as_fd(), line.as_bytes(), &[console.as_fd()]) {
                    Ok(()) => State::Answered(backlog, More::Console),
                    Err(_) => State::Gone,
                }
            }
        };
    }

    /// The machine is at its end: nothing more will come.
    pub fn conclude(&mut self) {
        match &mut self.state {
            State::Answered(_, More::Events { follow, .. }) => *follow = false,
            State::Answered(_, more) => *more = More::Nothing,
            State::Asking(_) | State::Gone => self.state = State::Gone,
        }
    }

    /// Writes what can be written. False when it is done with.
    pub fn turn(&mut self) -> bool {
        if self.until.is_some_and(|until| until <= Instant::now()) || self.stays() && self.hung_up() {
            return false;
        }
        let State::Answered(waiting, more) = &mut self.state else { return matches!(self.state, State::Asking(_)) };
        if let More::Events { cursor, .. } = more {
            fill(waiting, cursor);
        }
        match self.stream.write(waiting) {
            Ok(length) => drop(waiting.drain(..length)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return true,
            Err(_) => return false,
        }
        match *more {
            More::Nothing => !waiting.is_empty(),
            More::Events { cursor, follow } => follow || !waiting.is_empty() || cursor < logging::ring().end(),
            More::Console => true,
        }
    }

    /// One that stays has nothing more to say.
    fn hung_up(&mut self) -> bool {
        let unread = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted);
        !self.stream.read(&mut [0]).is_err_and(|error| unread(error.kind()))
    }
}

/// Takes events from the log, as many as may wait.
fn fill(waiting: &mut Vec<u8>, cursor: &mut u64) {
    let ring = logging::ring();
    while waiting.len() < PIECE
        && let Some((entry, missed)) = ring.next(cursor)
    {
        if missed > 0 {
            let text = format!("{missed} events are forgotten that came before this");
            waiting.extend(Entry::now("WARN", logging::BROKER, text).json().bytes());
        }
        waiting.extend(entry.json().bytes());
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
