//! What a guest's network card leads to in tests: a web server and a resolver on this machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Between two lines of what has no end.
const TRICKLE: Duration = Duration::from_millis(20);
/// Longest body that is taken.
const LONGEST: u64 = 1 << 30;

/// A web server on the loopback. `/file` is what it was given, `/endless` has no end, and what is posted is answered with
/// its SHA-256.
pub struct Web {
    /// Where it listens.
    pub port: u16,
    endless: Arc<AtomicU32>,
}

impl Web {
    /// Serves `file` as long as the test runs.
    pub fn start(file: Vec<u8>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (port, endless, file) = (listener.local_addr()?.port(), Arc::new(AtomicU32::new(0)), Arc::new(file));
        let count = endless.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (file, count) = (file.clone(), count.clone());
                // A client that leaves early is its own affair.
                std::thread::spawn(move || drop(serve(&stream, &file, &count)));
            }
        });
        Ok(Self { port, endless })
    }

    /// How many have begun to get what has no end.
    pub fn endless(&self) -> u32 {
        self.endless.load(Ordering::Acquire)
    }
}

fn serve(mut stream: &TcpStream, file: &[u8], endless: &AtomicU32) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let head = |length: usize| format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    match request.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/file"] => {
            stream.write_all(head(file.len()).as_bytes())?;
            stream.write_all(file)
        }
        ["GET", "/endless"] => {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nbegun\n")?;
            endless.fetch_add(1, Ordering::AcqRel);
            loop {
                stream.write_all(b"more\n")?;
                std::thread::sleep(TRICKLE);
            }
        }
        ["POST", _] => {
            let mut hash = Sha256::new();
            io::copy(&mut reader.take(length.min(LONGEST)), &mut hash)?;
            let text = hex(hash);
            stream.write_all((head(text.len()) + &text).as_bytes())
        }
        _ => stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n"),
    }
}

/// The SHA-256 of `bytes`, as sha256sum prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers every question for an address with `address` (RFC 1035), on the loopback, and returns its port.
pub fn resolver(address: Ipv4Addr) -> io::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let Some(answer) = answer(&question[..length], address) else { continue };
            // Who does not take it asks again.
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(port)
}

/// One question, whose name ends with a zero; type 1 is an address, of others there are none.
fn answer(question: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let asked = question.get(12..end)?;
    let known = asked.ends_with(&[0, 1, 0, 1]);
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, known.into(), 0, 0, 0, 0]);
    answer.extend(asked);
    if known {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
