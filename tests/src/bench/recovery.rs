//! What a guest sees of the death of its disk's process: how long it waits for the request that was out, or for the next.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::debian::{Debian, Flavour};
use crate::image::{self, Contents};
use crate::monitor::{Guest, Monitor, Running};
use crate::processes::{await_child, send};

const SILENCE: Duration = Duration::from_secs(900);
const DISK: &str = "bulkhead-dev-blk";
/// Shorter pauses are the host's own. No process is replaced in so short a time.
const LEAST: Duration = Duration::from_millis(4);
/// How long after its end a pause may need to be told.
const TOLD: Duration = Duration::from_millis(100);

/// Kills the process `times` times while the guest reads; for each the longest pause between two reads, in milliseconds.
pub fn measure(times: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let (dir, debian) = (tempfile::tempdir()?, Debian::open()?);
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 16 << 20])?;
    let contents = Contents { suite: true, disk: Some(Flavour::I686), ..Contents::default() };
    let initrd = image::build(&debian, contents, dir.path())?;
    let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.options.extend(["--disk".into(), format!("path={},format=raw", disk.display())]);
    let mut running = Monitor::Bulkhead { engine: None }.start(&guest)?;
    running.console.wait_for("bulkhead# ", SILENCE)?;
    running.console.send(&format!("gaps /dev/vda {} &", LEAST.as_micros()))?;
    running.console.wait_for("bulkhead# ", SILENCE)?;
    let mut random = SmallRng::seed_from_u64(1);
    (0..times).map(|_| pause(&running, &mut random)).collect()
}

/// One kill.
fn pause(running: &Running, random: &mut SmallRng) -> Result<f64, Box<dyn Error>> {
    let victim = await_child(running.pid(), DISK, &[], SILENCE)?;
    std::thread::sleep(Duration::from_micros(random.random_range(20_000..120_000)));
    let (before, served) = (gaps(running).len(), restorations(running));
    let started = Instant::now();
    send(victim, Signal::SIGKILL);
    loop {
        std::thread::sleep(TOLD);
        let new = gaps(running).split_off(before);
        // The pause that the kill made is the longest: others are the host's, and far shorter.
        if let Some(longest) = new.into_iter().max().filter(|_| restorations(running) > served) {
            return Ok(longest as f64 / 1000.0);
        }
        if running.console.text().contains("gaps: ") || started.elapsed() > SILENCE {
            return Err(format!("the guest's reads ended:\n{}", running.stderr()).into());
        }
    }
}

/// Microseconds of every pause that the guest told so far.
fn gaps(running: &Running) -> Vec<u64> {
    let text = running.console.text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.trim().strip_prefix("gap ")?.parse().ok()).collect()
}

fn restorations(running: &Running) -> usize {
    running.stderr().matches("served again, after").count()
}

/// Median and longest, as text.
pub fn summary(pauses: &[f64]) -> String {
    let mut sorted = pauses.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(median), Some(longest)) = (sorted.get(sorted.len() / 2), sorted.last()) else { return String::new() };
    format!(
        "kill of a disk's process to the guest's next completed read, {} kills: median {median:.1} ms, longest \
         {longest:.1} ms (goal: 50, 250)\n",
        sorted.len()
    )
}
