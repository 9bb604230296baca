//! The processes of a running machine, by what /proc says of them: the tests' own eyes, which ask nobody.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The children of `parent` that run the program called `name`, of which the kernel keeps 15 bytes.
pub fn children(parent: u32, name: &str) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let all = list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
    all.filter(|pid| called(*pid) == name[..name.len().min(15)] && alive(*pid)).collect()
}

/// Waits until `parent` has a child of this name that is not among `known`, and returns the first.
pub fn await_child(parent: u32, name: &str, known: &[Pid], limit: Duration) -> io::Result<Pid> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(pid) = children(parent, name).into_iter().find(|pid| !known.contains(pid)) {
            return Ok(pid);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("process {parent} has no (new) child {name} after {limit:.0?}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal; a process that has ended meanwhile is no error.
pub fn send(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

/// True unless it has ended. A process that has ended may wait long for whoever inherited it.
pub fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()).is_some_and(|state| state != 'Z')
}

fn called(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}
