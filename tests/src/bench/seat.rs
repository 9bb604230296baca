//! A contender's seat: the host itself, or a guest that sits at its shell's prompt between measurements.

use std::io;
use std::time::{Duration, Instant};

use crate::debian::Debian;
use crate::monitor::{Guest, Monitor, Running};
use crate::processes;
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
        Self::take(monitor.start(guest)?)
    }

    /// As [`Self::boot`], for a guest that was just started.
    pub fn take(mut running: Running) -> io::Result<(Self, Duration)> {
        let reached = running.console.wait_for("init reached after", SILENCE);
        reached.map_err(|error| io::Error::other(format!("{error}\nstandard error:\n{}", running.stderr())))?;
        let booted = running.started.elapsed();
        running.console.wait_for(PROMPT, SILENCE).map_err(io::Error::other)?;
        Ok((Self::Guest(Box::new(running)), booted))
    }

    /// Runs one line of `bench.sh`; what it printed.
    pub fn run(&mut self, arguments: &str) -> io::Result<String> {
        self.shell(&format!("sh \"$SUITE_DIR/bench.sh\" {arguments}"))
    }

    /// Runs a line of shell; what it printed.
    pub fn shell(&mut self, line: &str) -> io::Result<String> {
        match self {
            Self::Native(native) => native.run(line),
            Self::Guest(running) => {
                // The echo of this line must not look like its answer.
                running.console.send(&format!("export SUITE_DIR=/suite; {line}; echo d''one"))?;
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
            Self::Guest(running) => Some(processes::own_memory(running.pid())),
        }
    }

    /// Bytes of its page tables. None for the host.
    pub fn page_tables(&self) -> Option<u64> {
        match self {
            Self::Native(_) => None,
            Self::Guest(running) => Some(processes::page_tables(running.pid())),
        }
    }

    /// How much processor time the monitor used while the guest sat at its prompt for `wait`, as a fraction.
    pub fn idle_load(&self, wait: Duration) -> Option<f64> {
        let Self::Guest(running) = self else { return None };
        let (before, started) = (processes::cpu_ticks(running.pid()), Instant::now());
        std::thread::sleep(wait);
        // USER_HZ is 100 on every Linux this runs on.
        Some((processes::cpu_ticks(running.pid()) - before) as f64 / 100.0 / started.elapsed().as_secs_f64())
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
