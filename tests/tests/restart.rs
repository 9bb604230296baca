//! A disk's process may die at any moment: the guest sees a pause and no error, and its data is what it wrote.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::debian::{Debian, Flavour};
use tests::disks::{Daemon, create_qcow2, hash};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::processes::{alive, await_child, send};

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);
/// No process for so long means that there will be none.
const BACK: Duration = Duration::from_secs(120);
const SIZE: u64 = 16 << 20;
const DISK: &str = "bulkhead-dev-blk";

fn guest(dir: &Path, options: &[String]) -> Result<Guest, Box<dyn Error>> {
    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir)?;
    let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.options.extend_from_slice(options);
    Ok(guest)
}

fn booted(dir: &Path, options: &[String]) -> Result<Running, Box<dyn Error>> {
    let mut running = Monitor::bulkhead("translate").start(&guest(dir, options)?)?;
    let shell = running.console.wait_for("bulkhead# ", SILENCE);
    shell.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    Ok(running)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Does `signal` to whoever serves the disk, `times` times at random moments. A stopped process is left to its broker.
fn disturb(running: &Running, times: u64, signal: Signal, seed: u64) -> Outcome {
    let (mut random, mut known) = (SmallRng::seed_from_u64(seed), Vec::<Pid>::new());
    for _ in 0..times {
        let pid = await_child(running.pid(), DISK, &known, BACK)?;
        // Sometimes while it is still being started, sometimes under load.
        std::thread::sleep(Duration::from_micros(random.random_range(0..200_000)));
        send(pid, signal);
        known.push(pid);
    }
    await_child(running.pid(), DISK, &known, BACK)?;
    Ok(())
}

/// Milliseconds of the pauses that the broker reported.
fn pauses(stderr: &str) -> Vec<u64> {
    let after = stderr.lines().filter_map(|line| line.split("served again, after ").nth(1));
    let mut pauses: Vec<u64> = after.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    pauses.sort_unstable();
    pauses
}

/// A guest writes and reads its disk while `disturbed`; then everything must be as it was written. Returns what the broker
/// said.
fn survives(image: &Path, format: &str, disturbed: impl Fn(&Running) -> Outcome) -> Result<String, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let options = ["--disk".to_owned(), format!("path={},format={format}", image.display())];
    let mut running = booted(dir.path(), &options)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.send("sh /suite/churn.sh vda &")?;
        running.console.wait_for("vda: round 10", SILENCE)?;
        disturbed(&running)?;
        running.console.send("touch /tmp/stop")?;
        running.console.wait_for("errors in the kernel's log: ", SILENCE)?;
        let end = running.console.wait_for("hash ", SILENCE)?;
        let hash = running.console.wait_for("\n", SILENCE)?;
        running.console.send("poweroff -f")?;
        Ok(format!("{end}{}", hash.trim_end()))
    })();
    let said = ran.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    let text = running.console.text();
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    assert!(said.contains("vda: bad 0, "), "{said}\n{text}\n{}", running.stderr());
    assert!(text.contains("errors in the kernel's log: 0"), "{text}");
    assert!(!text.contains("vda: reader"), "{text}");
    if format == "raw" {
        assert!(said.ends_with(&hash(&fs::read(image)?)), "the image is not what the guest wrote: {said}");
    }
    Ok(running.stderr())
}

/// As many kills as BULKHEAD_KILLS says, in the order of BULKHEAD_SEED.
#[test]
fn a_guest_does_not_notice_that_its_disk_is_killed() -> Outcome {
    let (dir, kills) = (tempfile::tempdir()?, number("BULKHEAD_KILLS", 50));
    let seed = number("BULKHEAD_SEED", u64::from(std::process::id()));
    println!("seed {seed}, {kills} kills");
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    let said = survives(&image, "raw", |running| disturb(running, kills, Signal::SIGKILL, seed))?;
    let ended = said.lines().filter(|line| line.contains("SIGKILL") && line.contains("another is tried")).count();
    assert!(ended as u64 >= kills, "every kill is told: {ended}\n{said}");
    // Kills from outside are nobody's fault, whatever the process was doing: no pause is longer for there being many.
    assert!(!said.contains("again and again"), "{said}");
    let pauses = pauses(&said);
    assert!(!pauses.is_empty(), "{said}");
    println!("pauses: median {} ms, longest {} ms", pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    Ok(())
}

/// A process that does not answer is replaced, whoever stopped it.
#[test]
fn a_disk_that_hangs_is_replaced() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    let said = survives(&image, "raw", |running| disturb(running, 2, Signal::SIGSTOP, 1))?;
    assert_eq!(said.lines().filter(|line| line.contains("somebody stopped it")).count(), 2, "{said}");
    Ok(())
}

/// qcow2 keeps its structure, too.
#[test]
fn a_qcow2_image_survives_kills() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (image, seed) = (dir.path().join("disk"), number("BULKHEAD_SEED", u64::from(std::process::id())));
    println!("seed {seed}");
    create_qcow2(&image)?;
    survives(&image, "qcow2", |running| disturb(running, 20, Signal::SIGKILL, seed))?;
    let Ok(check) = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&image).output() else {
        eprintln!("note: qemu-img is not installed; the image's structure is not checked");
        return Ok(());
    };
    // 3 means leaked clusters and nothing worse (qemu-img(1)).
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    Ok(())
}

/// Whichever process dies, nothing of the machine is left, and the exit code says what happened.
#[test]
fn the_death_of_the_vmm_ends_the_machine() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    let options = ["--disk".to_owned(), format!("path={},format=raw", image.display())];
    let mut running = booted(dir.path(), &options)?;
    let disk = await_child(running.pid(), DISK, &[], BACK)?;
    let vmm = await_child(running.pid(), "bulkhead-vmm", &[], BACK)?;
    send(vmm, Signal::SIGKILL);
    assert_eq!(running.wait(SILENCE)?.code(), Some(12), "{}", running.stderr());
    assert!(running.stderr().contains("SIGKILL") && !alive(disk), "{}", running.stderr());
    Ok(())
}

/// Two machines never write one image.
#[test]
fn a_second_machine_on_the_same_image_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    let options = ["--disk".to_owned(), format!("path={},format=raw", image.display())];
    let mut first = booted(dir.path(), &options)?;
    let mut second = Monitor::bulkhead("translate").start(&guest(dir.path(), &options)?)?;
    let status = second.wait(SILENCE)?;
    assert_eq!(status.code(), Some(4), "{}", second.stderr());
    assert!(second.stderr().contains("is in use: another process"), "{}", second.stderr());
    first.console.send("poweroff -f")?;
    assert!(first.wait(SILENCE)?.success(), "{}", first.stderr());
    Ok(())
}

/// Somebody else's back end dies and never comes back: the guest gets errors in the end, and powers off.
#[test]
fn a_guest_powers_off_though_its_disk_is_gone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    let daemon = Daemon::start(&image, &[])?;
    let options = ["--vhost-user-blk".to_owned(), format!("socket={}", daemon.socket.display())];
    let mut running = booted(dir.path(), &options)?;
    running.console.send("dd if=/dev/zero of=/dev/vda bs=4k count=100 && echo first is \"written\"")?;
    running.console.wait_for("first is written", SILENCE)?;
    drop(daemon);
    // Its sync waits for the disk.
    running.console.send("dd if=/dev/zero of=/dev/vda bs=4k count=100 conv=fsync; poweroff -f")?;
    let started = Instant::now();
    let status = running.wait(SILENCE)?;
    assert!(status.success(), "after {:?}: {}", started.elapsed(), running.stderr());
    assert!(running.stderr().contains("given up"), "{}", running.stderr());
    Ok(())
}
