//! The lead: starts members one after the other, as a broker would, and tells what became of each.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use policy::launch::{Launch, Launched};
use policy::verify::Verified;
use policy::{Layer, Layers, Role};

use super::{ATTEMPTS, Finding, Strength};

/// Makes every attempt, or every bare system call of `calls`, as `role`, and prints a finding for each.
pub fn lead(role: Role, strength: Strength, calls: &[usize]) -> io::Result<()> {
    let tcp = TcpListener::bind(("127.0.0.1", 0))?;
    let port = tcp.local_addr()?.port();
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(port.to_string())?)?;
    let bare = calls.iter().map(|number| format!("syscall {number}"));
    let named = ATTEMPTS.iter().filter(|_| calls.is_empty()).map(|a| a.name.to_string());
    for attempt in bare.chain(named) {
        let finding = Seat { role, strength, port, attempt }.play()?;
        println!("{}", serde_json::to_string(&finding)?);
    }
    Ok(())
}

/// One attempt.
struct Seat {
    role: Role,
    strength: Strength,
    port: u16,
    attempt: String,
}

impl Seat {
    fn play(self) -> io::Result<Finding> {
        let (mut control, theirs) = UnixStream::pair()?;
        let (mut words, their_words) = io::pipe()?;
        let launched = self.start(&theirs, &their_words)?;
        drop((theirs, their_words));
        let mut ready = [0; 1];
        let said = control.read(&mut ready)?;
        let lacks = if said == 1 { self.verify(&launched)? } else { vec!["it never said Ready".into()] };
        let _ = control.write_all(b"g");
        let mut answer = Vec::new();
        // Reset is what a member leaves that dies with our byte unread.
        let _ = control.read_to_end(&mut answer);
        let status = waitid(Id::PIDFd(launched.pidfd.as_fd()), WaitPidFlag::WEXITED)?;
        let mut text = String::new();
        words.read_to_string(&mut text)?;
        Ok(Finding {
            attempt: self.attempt,
            lacks,
            landlock_proved: ready == *b"L",
            survived: answer.try_into().ok().map(i32::from_le_bytes),
            exit: if let WaitStatus::Exited(_, code) = status { Some(code) } else { None },
            signal: if let WaitStatus::Signaled(_, signal, _) = status { Some(signal as i32) } else { None },
            words: text,
        })
    }

    fn start(&self, control: &UnixStream, words: &io::PipeWriter) -> io::Result<Launched> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let pid = std::process::id().to_string();
        let arguments = ["member", self.role.name(), self.strength.word(), &self.attempt, &pid, &self.port.to_string()]
            .map(|a| CString::new(a).unwrap_or_default());
        let launch = Launch {
            program: PathBuf::from("/proc/self/exe"),
            arguments: [c"red-team".into()].into_iter().chain(arguments).collect(),
            environment: Vec::new(),
            descriptors: vec![null.as_fd(), null.as_fd(), words.as_fd(), control.as_fd()],
            tolerate: &Layers::new(),
            cgroup: None,
        };
        launch.start().map_err(io::Error::other)
    }

    fn verify(&self, launched: &Launched) -> io::Result<Vec<String>> {
        let seen = Verified::of(launched.pid).map_err(io::Error::other)?;
        let mut lacks: Vec<String> = seen
            .findings()
            .into_iter()
            .filter(|(layer, _)| self.strength == Strength::Full || *layer != Layer::Seccomp)
            .map(|(layer, what)| format!("{layer}: {what}"))
            .collect();
        if seen.threads.len() != 1 || seen.guest_ram != 0 {
            lacks.push(format!("{} threads, {} bytes of guest RAM", seen.threads.len(), seen.guest_ram));
        }
        if !seen.descriptors.keys().eq([0, 1, 2, 3].iter()) {
            lacks.push(format!("descriptors {:?}", seen.descriptors));
        }
        Ok(lacks)
    }
}
