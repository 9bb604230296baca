//! A contender's seat: the host itself, or a guest that sits at its shell's prompt between measurements.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use crate::debian::Debian;
use crate::monitor::{Guest, Monitor, Running};
use crate::script::Native;

const SILENCE: Duration = Duration::from_secs(900);
const PROMPT: &str = "bulkhead# ";

/// Where a work is run.
pub enum Seat {
    /// The host's own kernel.
    Native(Native),
    /// A guest at its prompt.
    Guest(Box<Running>),
}

impl Seat {
    /// The host.
    pub fn native(debian: &Debian) -> io::Result<Self> {
        Ok(Self::Native(Native::new(debian)?))
    }

    /// Boots a guest; the time from starting the monitor to the guest's first line of user code.
    pub fn boot(monitor: &Monitor, guest: &Guest) -> io::Result<(Self, Duration)> {
        let mut running = monitor.start(guest)?;
        running.console.wait_for("init reached after", SILENCE).map_err(io::Error::other)?;
        let booted = running.started.elapsed();
        running.console.wait_for(PROMPT, SILENCE).map_err(io::Error::other)?;
        Ok((Self::Guest(Box::new(running)), booted))
    }

    /// Runs one line of `bench.sh`; what it printed.
    pub fn run(&mut self, arguments: &str) -> io::Result<String> {
        match self {
            Self::Native(native) => native.run(&format!("sh \"$SUITE_DIR/bench.sh\" {arguments}")),
            Self::Guest(running) => {
                // The echo of this line must not look like its answer.
                running.console.send(&format!("SUITE_DIR=/suite sh /suite/bench.sh {arguments}; echo d''one"))?;
                let text = running.console.wait_for("done\r\n", SILENCE).map_err(io::Error::other)?;
                running.console.wait_for(PROMPT, SILENCE).map_err(io::Error::other)?;
                Ok(text.replace('\r', ""))
            }
        }
    }

    /// Nanoseconds that one program took.
    pub fn program(&mut self, name: &str) -> io::Result<u64> {
        let text = self.run(name)?;
        let line = text.lines().find_map(|line| line.strip_prefix("ns "));
        match line.and_then(|line| line.split_once(" status ")) {
            Some((time, "0")) => time.parse().map_err(io::Error::other),
            _ => Err(io::Error::other(format!("{name} gave no time:\n{text}"))),
        }
    }

    /// Nanoseconds of every system operation, by name.
    pub fn operations(&mut self, milliseconds: u32) -> io::Result<Vec<(String, u64)>> {
        let text = self.run(&format!("system {milliseconds}"))?;
        if let Some(line) = text.lines().find(|line| line.contains(" failed")) {
            return Err(io::Error::other(format!("sysbench: {line}")));
        }
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.filter_map(|(name, time)| Some((name.to_owned(), time.trim().parse().ok()?))).collect())
    }

    /// Memory of the monitor's processes that is not guest RAM, in bytes. None for the host.
    pub fn own_memory(&self) -> Option<u64> {
        match self {
            Self::Native(_) => None,
            Self::Guest(running) => Some(processes(running.pid()).into_iter().map(own_memory).sum()),
        }
    }

    /// How much processor time the monitor used while the guest sat at its prompt for `wait`, as a fraction.
    pub fn idle_load(&self, wait: Duration) -> Option<f64> {
        let Self::Guest(running) = self else { return None };
        let ticks = || processes(running.pid()).into_iter().map(cpu_ticks).sum::<u64>();
        let (before, started) = (ticks(), Instant::now());
        std::thread::sleep(wait);
        // USER_HZ is 100 on every Linux this runs on.
        Some((ticks() - before) as f64 / 100.0 / started.elapsed().as_secs_f64())
    }

    /// Powers a guest off; what the monitor then printed on standard error.
    pub fn power_off(self) -> io::Result<String> {
        match self {
            Self::Native(_) => Ok(String::new()),
            Self::Guest(mut running) => {
                running.console.send("poweroff -f")?;
                running.wait(SILENCE)?;
                Ok(running.stderr())
            }
        }
    }
}

/// A process and its descendants.
fn processes(root: u32) -> Vec<u32> {
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
fn own_memory(pid: u32) -> u64 {
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
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    fields.split(' ').skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum()
}
