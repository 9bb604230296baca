//! What an operator may ask of a running machine, over its control socket: one request a connection, a line of JSON each
//! way. Only the user who runs the machine, and root, is heard. A client that does not finish its line in time, or sends
//! too much, is dropped; none of them makes the machine wait.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::runtime::Socket;

/// Longest request in bytes.
const MAX_REQUEST: usize = 1024;
/// Most clients at a time.
const MAX_CLIENTS: usize = 8;
/// How long one may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// Power off, in order first.
    Stop,
}

/// The socket and its clients.
#[derive(Debug)]
pub struct Api {
    socket: Socket,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

impl Api {
    /// Listens at `socket`.
    pub fn new(socket: Socket) -> Self {
        Self { socket, clients: Vec::new() }
    }

    /// What is to be waited for, all for input: the socket, and each client.
    pub fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        [self.socket.listener.as_fd()].into_iter().chain(clients).collect()
    }

    /// When to call [`Self::serve`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).min()
    }

    /// Takes new clients, and answers those that have said what they want by `answer`.
    pub fn serve(&mut self, mut answer: impl FnMut(Request) -> Value) {
        while let Ok((stream, _)) = self.socket.listener.accept() {
            if self.clients.len() < MAX_CLIENTS && trusted(&stream) && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, line: Vec::new(), until: Instant::now() + PATIENCE });
            }
        }
        self.clients.retain_mut(|client| match client.read() {
            Some(Ok(request)) => client.answer(&answer(request)),
            Some(Err(problem)) => client.answer(&json!({ "error": problem })),
            None => Instant::now() < client.until,
        });
    }
}

impl Client {
    /// What it wants, once all of that is there.
    fn read(&mut self) -> Option<Result<Request, String>> {
        let mut buffer = [0; MAX_REQUEST];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Some(Err("no request".into())),
            Ok(length) => self.line.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Some(Err(error.to_string())),
        }
        let end = self.line.iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => Some(serde_json::from_slice(&self.line[..end]).map_err(|error| error.to_string())),
            None if self.line.len() > MAX_REQUEST => Some(Err("the request is too long".into())),
            None => None,
        }
    }

    /// One attempt: an answer fits into an empty socket. The client is done with either way.
    fn answer(&mut self, answer: &Value) -> bool {
        let _ = self.stream.write(format!("{answer}\n").as_bytes());
        false
    }
}

/// The socket's mode says the same; this holds whatever becomes of the mode.
fn trusted(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0)
}

/// The client's side: asks, and waits for the answer.
pub fn ask(mut stream: UnixStream, request: &Request) -> std::io::Result<Value> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(dir: &tempfile::TempDir) -> (Api, std::path::PathBuf) {
        let path = dir.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        (Api::new(Socket::of(listener, "x", path.clone())), path)
    }

    #[test]
    fn a_request_is_a_line_and_gets_one_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (mut api, path) = api(&dir);
        let mut client = UnixStream::connect(&path).unwrap();
        let mut seen = Vec::new();
        for part in ["{\"request\":\"rest", "art\",\"device\":\"disk0\"}\n"] {
            client.write_all(part.as_bytes()).unwrap();
            api.serve(|request| {
                seen.push(request);
                json!({ "done": true })
            });
        }
        assert_eq!(seen, [Request::Restart { device: "disk0".into() }]);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "{\"done\":true}\n");
    }

    #[test]
    fn noise_is_answered_with_an_error_and_silence_makes_nobody_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (mut api, path) = api(&dir);
        let silent: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        api.serve(|_| unreachable!());
        assert_eq!(api.clients.len(), MAX_CLIENTS);
        drop(silent);
        api.serve(|_| unreachable!());
        assert!(api.clients.is_empty());
        for noise in [&b"\n"[..], b"{\"request\":\"explode\"}\n", &[b'x'; 1100]] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(noise).unwrap();
            for _ in 0..3 {
                api.serve(|_| unreachable!());
            }
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            assert!(answer.is_empty() || answer.contains("error"), "{answer}");
            assert!(api.clients.is_empty());
        }
    }
}
