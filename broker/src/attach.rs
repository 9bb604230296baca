//! `bulkhead console VM`: this terminal becomes the serial terminal of a running machine, until Ctrl-A x.
//!
//! The broker lends the socket that leads to the guest's serial port, and has no part in what goes over it. The loan ends
//! with this process's connection to the control socket, however that comes about.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ipc::{outcome, scm};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::commands;
use crate::control_api::{self, Request};
use crate::escape::Action;
use crate::relay::Relay;
use crate::runtime::{self, RuntimeError};
use crate::signals::StopSignals;
use crate::terminal::RawTerminal;

/// Longest first line of an answer.
const MAX_LINE: usize = 4096;
/// Longest backlog that is believed.
const MAX_BACKLOG: u64 = 16 << 20;

/// What the broker lent.
struct Loan {
    /// The serial port's socket.
    console: UnixStream,
    /// Printed before.
    backlog: Vec<u8>,
    /// The loan lasts as long as this is open.
    _hold: UnixStream,
}

/// Attaches, until the operator detaches or the machine ends; the exit code.
pub fn run(vm: &str) -> Result<u8, RuntimeError> {
    let failed = |source| RuntimeError::Talk { name: vm.into(), source };
    let loan = match borrow(runtime::connect(vm)?).map_err(failed)? {
        Ok(loan) => loan,
        Err(answer) => return Ok(commands::refusal(&answer)),
    };
    let signals = StopSignals::new().map_err(|error| failed(error.into()))?;
    let terminal = RawTerminal::enter(io::stdin()).map_err(failed)?;
    let raw = terminal.is_some();
    if raw {
        eprintln!("attached to {vm}: Ctrl-A x detaches, Ctrl-A h helps");
    }
    let ended = carry(vm, loan, signals, raw).map_err(failed)?;
    drop(terminal);
    if raw {
        eprintln!("\n{}", if ended { "the machine has ended" } else { "detached: the machine runs on" });
    }
    Ok(outcome::POWER_OFF)
}

/// Asks for the console. The inner error is the answer of a machine that refuses.
fn borrow(stream: UnixStream) -> io::Result<Result<Loan, Value>> {
    control_api::request(&stream, &Request::Console)?;
    let mut buffer = vec![0; MAX_LINE];
    let received = scm::receive(stream.as_fd(), &mut buffer, true)?;
    buffer.truncate(received.length);
    let (line, rest) = loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(end + 1);
            break (serde_json::from_slice::<Value>(&buffer)?, rest);
        }
        let mut more = [0; MAX_LINE];
        match (&stream).read(&mut more)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if buffer.len() > MAX_LINE => return Err(io::ErrorKind::InvalidData.into()),
            length => buffer.extend_from_slice(&more[..length]),
        }
    };
    let Some(console) = received.descriptors.into_iter().next() else { return Ok(Err(line)) };
    let length = line["backlog"].as_u64().filter(|length| *length <= MAX_BACKLOG).unwrap_or(0);
    let mut backlog = rest;
    (&stream).take(length.saturating_sub(backlog.len() as u64)).read_to_end(&mut backlog)?;
    let console = UnixStream::from(console);
    // Whoever had it before may have changed this.
    console.set_nonblocking(true)?;
    Ok(Ok(Loan { console, backlog, _hold: stream }))
}

/// Carries bytes until one side has enough. True if that is the machine.
fn carry(vm: &str, mut loan: Loan, mut signals: StopSignals, raw: bool) -> io::Result<bool> {
    let output: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
    let mut relay = Relay::attached(raw, output, std::mem::take(&mut loan.backlog));
    let stdin = io::stdin();
    while !relay.finished() {
        let ready = wait(&signals, stdin.as_fd(), &relay, &loan.console)?;
        if ready.signal && signals.take().is_some() {
            return Ok(false);
        }
        if ready.console.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            relay.read_console(&mut loan.console);
        }
        if ready.console.contains(PollFlags::POLLOUT) {
            relay.write_console(&mut loan.console);
        }
        if ready.output {
            relay.write_output();
        }
        if ready.input {
            for action in relay.read_input() {
                match action {
                    Action::Quit => {
                        // What was typed before, if the guest takes it.
                        relay.write_console(&mut loan.console);
                        return Ok(false);
                    }
                    Action::PowerButton => press(vm),
                    Action::Help => {}
                }
            }
        }
    }
    Ok(true)
}

/// On a connection of its own. A machine that does not hear it is about to end.
fn press(vm: &str) {
    let _ = runtime::connect(vm).map(|stream| control_api::ask(stream, &Request::PowerButton));
}

/// What can be done now.
struct Ready {
    signal: bool,
    input: bool,
    output: bool,
    console: PollFlags,
}

fn wait(signals: &StopSignals, stdin: BorrowedFd<'_>, relay: &Relay, console: &UnixStream) -> io::Result<Ready> {
    let flags = relay.console_flags();
    let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let mut add = |wanted: bool, fd, flags| {
        wanted.then(|| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        })
    };
    let input = add(relay.wants_input(), stdin, PollFlags::POLLIN);
    let at = add(!flags.is_empty(), console.as_fd(), flags);
    let output = relay.output().and_then(|fd| add(true, fd, PollFlags::POLLOUT));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let flags_of = |at: Option<usize>| at.and_then(|at| fds[at].revents()).unwrap_or(PollFlags::empty());
    let any = |at| !flags_of(at).is_empty();
    Ok(Ready { signal: any(Some(0)), input: any(input), output: any(output), console: flags_of(at) })
}
