//! What an operator may ask of a running machine, over its control socket: one request a connection, a line of JSON; the
//! answer is a line too, or many, or a descriptor. Only the user who runs the machine, and root, is heard. A client that
//! does not finish its line in time, sends too much, or does not read is dropped; none of them makes the machine wait.

mod client;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::runtime::Socket;
use client::Client;

/// Longest request in bytes.
const MAX_REQUEST: usize = 1024;
/// Most clients at a time that come and go, and most that stay.
const MAX_CLIENTS: usize = 8;
/// How long one may take to say what it wants, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the machine's end waits for those who follow its log.
const LAST: Duration = Duration::from_millis(500);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// All that can be seen of the machine's processes.
    Inspect,
    /// Another process for this device.
    Restart {
        /// Its name.
        device: String,
    },
    /// The image of this device has another size: measure it again, and tell the guest.
    Resize {
        /// Its name.
        device: String,
    },
    /// Power off, in order first.
    Stop,
    /// Press the power button, and nothing more.
    PowerButton,
    /// Recent events.
    Logs {
        /// And those that come.
        follow: bool,
    },
    /// The serial console.
    Console,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Answer {
    /// This line.
    Done(Value),
    /// The log's events, a line each.
    Events {
        /// And those that come, as long as the client stays.
        follow: bool,
    },
    /// A line with the console's descriptor, then what was printed before. The console is the client's as long as it stays.
    Console {
        /// The console.
        console: OwnedFd,
        /// Printed when nobody was there.
        backlog: Vec<u8>,
    },
}

impl Answer {
    /// Refused, for this reason.
    pub fn error(problem: impl Into<String>) -> Self {
        Self::Done(json!({ "error": problem.into() }))
    }

    /// Taken.
    pub fn done() -> Self {
        Self::Done(json!({ "done": true }))
    }
}

/// The socket and its clients.
#[derive(Debug)]
pub struct Api {
    socket: Socket,
    clients: Vec<Client>,
}

impl Api {
    /// Listens at `socket`.
    pub fn new(socket: Socket) -> Self {
        Self { socket, clients: Vec::new() }
    }

    /// What is to be waited for: the socket, and each client.
    pub fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|client| (client.as_fd(), client.interest()));
        [(self.socket.listener.as_fd(), PollFlags::POLLIN)].into_iter().chain(clients).collect()
    }

    /// When to call [`Self::serve`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        self.clients.iter().filter_map(Client::until).min()
    }

    /// The process that has the console.
    pub fn console_holder(&self) -> Option<i32> {
        self.clients.iter().find(|client| client.has_console()).map(Client::pid)
    }

    /// Takes new clients, and answers those that have said what they want by `answer`.
    pub fn serve(&mut self, mut answer: impl FnMut(Request) -> Answer) {
        while let Ok((stream, _)) = self.socket.listener.accept() {
            let passing = self.clients.iter().filter(|client| !client.stays()).count();
            self.clients.extend(Client::new(stream, geteuid()).filter(|_| passing < MAX_CLIENTS));
        }
        for index in 0..self.clients.len() {
            match self.clients[index].read() {
                None => {}
                Some(Err(problem)) => self.clients[index].answer(Answer::error(problem)),
                Some(Ok(request)) => {
                    let answer = self.refused(&request).unwrap_or_else(|| answer(request));
                    self.clients[index].answer(answer);
                }
            }
        }
        self.clients.retain_mut(Client::turn);
    }

    /// Why a request is not even looked at.
    fn refused(&self, request: &Request) -> Option<Answer> {
        let staying = self.clients.iter().filter(|client| client.stays()).count();
        match (request, self.console_holder()) {
            (Request::Console, Some(pid)) => Some(Answer::error(format!(
                "process {pid} has the console: detach there with Ctrl-A x, or end that process"
            ))),
            (Request::Console | Request::Logs { follow: true }, _) if staying >= MAX_CLIENTS => {
                Some(Answer::error(format!("{staying} others follow the log already: end one of them")))
            }
            _ => None,
        }
    }

    /// The machine is at its end: who follows its log sees the last of it, if he reads at once.
    pub fn finish(mut self) {
        let until = Instant::now() + LAST;
        self.clients.iter_mut().for_each(Client::conclude);
        loop {
            self.clients.retain_mut(Client::turn);
            let left = until.saturating_duration_since(Instant::now());
            let mut fds: Vec<PollFd<'_>> = self.clients.iter().map(|c| PollFd::new(c.as_fd(), c.interest())).collect();
            if fds.is_empty() || left.is_zero() {
                return;
            }
            // An error ends the wait as time does.
            if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)).is_err() {
                return;
            }
        }
    }
}

/// The client's side: sends the request. What comes then is the caller's to read; it takes no longer than the answer of a
/// machine that is there.
pub fn request(mut stream: &UnixStream, request: &Request) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
}

/// Asks, and waits for the answer.
pub fn ask(mut stream: UnixStream, what: &Request) -> std::io::Result<Value> {
    request(&stream, what)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

#[cfg(test)]
mod tests;
