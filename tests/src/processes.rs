//! The processes of a running machine, by what /proc says of them: the tests' own eyes, which ask nobody. Which there are,
//! and what they cost.

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

/// Bytes of a process and its descendants that are not guest RAM.
pub fn own_memory(root: u32) -> u64 {
    family(root).into_iter().map(own_memory_of).sum()
}

/// Bytes of the page tables of a process and its descendants: what the kernel keeps to map all that they map.
pub fn page_tables(root: u32) -> u64 {
    let of = |pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("VmPTE:"))?.split_whitespace().next()?.parse().ok()
    };
    family(root).into_iter().filter_map(|pid| kilobytes(of(pid))).sum::<u64>() * 1024
}

/// User and system time of a process and its descendants, in ticks.
pub fn cpu_ticks(root: u32) -> u64 {
    family(root).into_iter().map(cpu_ticks_of).sum()
}

/// A process and its descendants.
fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// The proportional set size of every mapping but guest RAM: Bulkhead's memfd of that name, or QEMU's, which is its
/// largest anonymous mapping.
fn own_memory_of(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut total, mut largest, mut is_ram, mut size) = (0, (0, 0), false, 0);
    for line in smaps.lines() {
        let kilobytes =
            |line: &str| line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = kilobytes(line);
        } else if line.starts_with("Pss:") {
            let pss = if is_ram { 0 } else { kilobytes(line) * 1024 };
            total += pss;
            largest = largest.max((size, pss));
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            is_ram = line.contains("/memfd:guest");
        }
    }
    let qemu = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"));
    if qemu { total - largest.1 } else { total }
}

/// User and system time in ticks: fields 14 and 15 of /proc/PID/stat.
fn cpu_ticks_of(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    fields.split(' ').skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum()
}
