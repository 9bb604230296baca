//! A disk's process may die at any moment: the guest sees a pause and no error, and its data is what it wrote.

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
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
use tests::operator::wait_until;
use tests::processes::{alive, await_child, send};
use tests::vhost::disk::Disk;
use tests::vhost::session::serve;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);
/// No process for so long means that there will be none.
const BACK: Duration = Duration::from_secs(120);
const SIZE: u64 = 16 << 20;
const DISK: &str = "bulkhead-dev-blk";

/// A guest with disks as `options` say, and with fio if it is to have that.
fn guest(dir: &Path, options: &[String], fio: bool) -> Result<Guest, Box<dyn Error>> {
    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), fio, ..Contents::default() }, dir)?;
    let memory = if fio { 512 } else { 256 };
    let mut guest = Guest { memory, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.options.extend_from_slice(options);
    Ok(guest)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a test does to whoever serves a disk.
#[derive(Clone, Copy, Debug)]
struct Disturbance {
    /// How often it is killed, at random moments.
    kills: u64,
    /// How often it is stopped, between kills; its broker must notice that.
    stops: u64,
    seed: u64,
}

impl Disturbance {
    /// As often as these, unless BULKHEAD_KILLS and BULKHEAD_STOPS say otherwise, in the order of BULKHEAD_SEED.
    fn new(kills: u64, stops: u64) -> Self {
        let seed = number("BULKHEAD_SEED", u64::from(std::process::id()));
        let chosen = Self { kills: number("BULKHEAD_KILLS", kills), stops: number("BULKHEAD_STOPS", stops), seed };
        println!("{chosen:?}");
        chosen
    }

    fn signals(self) -> Vec<Signal> {
        let mut signals = vec![Signal::SIGKILL; self.kills as usize];
        for stop in 0..self.stops {
            signals.insert((self.kills * stop / self.stops + stop) as usize, Signal::SIGSTOP);
        }
        signals
    }

    fn befall(self, running: &Running) -> Outcome {
        let (mut random, mut known) = (SmallRng::seed_from_u64(self.seed), Vec::<Pid>::new());
        for signal in self.signals() {
            let pid = await_child(running.pid(), DISK, &known, BACK)?;
            // Sometimes while it is still being started, sometimes under load.
            std::thread::sleep(Duration::from_micros(random.random_range(0..200_000)));
            send(pid, signal);
            known.push(pid);
        }
        await_child(running.pid(), DISK, &known, BACK)?;
        Ok(())
    }

    /// Each is told, nobody is blamed for any, and the disk is served again.
    fn check(self, said: &str) {
        let count = |what: &str| said.lines().filter(|line| line.contains(what)).count() as u64;
        assert!(
            count("(signal SIGKILL); another is tried") >= self.kills + self.stops,
            "every restart is told: {said}"
        );
        assert_eq!(count("somebody stopped it"), self.stops, "{said}");
        assert!(count("is confined and serves") > self.stops && !said.contains("again and again"), "{said}");
        let pauses = pauses(said);
        assert!(!pauses.is_empty(), "{said}");
        println!("pauses: median {} ms, longest {} ms", pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    }
}

/// Milliseconds of the pauses that the broker reported.
fn pauses(stderr: &str) -> Vec<u64> {
    let after = stderr.lines().filter_map(|line| line.split("served again, after ").nth(1));
    let mut pauses: Vec<u64> = after.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    pauses.sort_unstable();
    pauses
}

/// fio in a guest writes its disk and verifies it while that is disturbed; then everything must be as it was written, for the
/// host, too.
fn survives(image: &Path, format: &str, more: &str, disturbance: Disturbance) -> Outcome {
    let dir = tempfile::tempdir()?;
    let options = ["--disk".to_owned(), format!("path={},format={format}{more}", image.display())];
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &options, true)?, SILENCE)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.send("sh /suite/verify.sh vda &")?;
        running.console.wait_for("vda: round 1", SILENCE)?;
        disturbance.befall(&running)?;
        // The whole of a round more.
        running.console.wait_for("vda: round ", SILENCE)?;
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
    if let Some(content) = content(image, format)? {
        assert!(said.ends_with(&hash(&content)), "the image is not what the guest wrote: {said}");
    }
    disturbance.check(&running.stderr());
    Ok(())
}

/// What is on the disk that an image holds. None, with a note, if nobody here can tell.
fn content(image: &Path, format: &str) -> Result<Option<Vec<u8>>, Box<dyn Error>> {
    if format == "raw" {
        return Ok(Some(fs::read(image)?));
    }
    let raw = image.with_extension("raw");
    match Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).args([image, &raw]).status() {
        Ok(status) if status.success() => Ok(Some(fs::read(raw)?)),
        Ok(status) => Err(format!("qemu-img cannot read the image: {status}").into()),
        Err(_) => {
            eprintln!("note: qemu-img is not installed; what the image holds is not compared");
            Ok(None)
        }
    }
}

fn raw_image(dir: &Path) -> std::io::Result<PathBuf> {
    let image = dir.join("disk");
    fs::File::create(&image)?.set_len(SIZE)?;
    Ok(image)
}

#[test]
fn a_guest_does_not_notice_that_its_disk_is_killed_and_stopped() -> Outcome {
    let dir = tempfile::tempdir()?;
    survives(&raw_image(dir.path())?, "raw", "", Disturbance::new(50, 5))
}

/// Nor if that process maps its memory, and there are several queues.
#[test]
fn a_guest_does_not_notice_that_a_disk_with_its_memory_is_killed() -> Outcome {
    let dir = tempfile::tempdir()?;
    survives(&raw_image(dir.path())?, "raw", ",dma=shared,queues=2", Disturbance::new(20, 1))
}

/// qcow2 keeps its structure, too.
#[test]
fn a_qcow2_image_survives_that_its_disk_is_killed_and_stopped() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk");
    create_qcow2(&image)?;
    survives(&image, "qcow2", "", Disturbance::new(50, 5))?;
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
    let image = raw_image(dir.path())?;
    let options = ["--disk".to_owned(), format!("path={},format=raw", image.display())];
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &options, false)?, SILENCE)?;
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
    let image = raw_image(dir.path())?;
    let options = ["--disk".to_owned(), format!("path={},format=raw", image.display())];
    let mut first = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &options, false)?, SILENCE)?;
    let mut second = Monitor::bulkhead("translate").start(&guest(dir.path(), &options, false)?)?;
    let status = second.wait(SILENCE)?;
    assert_eq!(status.code(), Some(4), "{}", second.stderr());
    assert!(second.stderr().contains("is in use: another process"), "{}", second.stderr());
    first.console.send("poweroff -f")?;
    assert!(first.wait(SILENCE)?.success(), "{}", first.stderr());
    Ok(())
}

/// Somebody else's back end that answers, and then lets requests lie: another connection gets them; and when that does not
/// help either, the guest gets errors, and powers off.
#[test]
fn a_back_end_that_lets_requests_lie_is_not_waited_for_for_ever() -> Outcome {
    let (dir, disk) = (tempfile::tempdir()?, Disk::new(SIZE));
    let path = dir.path().join("lying.sock");
    let (listener, behind) = (UnixListener::bind(&path)?, disk.clone());
    std::thread::spawn(move || {
        // Each connection ends when the vmm ends it.
        while let Ok((stream, _)) = listener.accept() {
            let _ = serve(stream, &mut behind.clone());
        }
    });
    let options = ["--vhost-user-blk".to_owned(), format!("socket={},timeout=5", path.display())];
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &options, false)?, SILENCE)?;
    let write = "dd if=/dev/zero of=/dev/vda bs=4k count=100 conv=fsync";
    disk.switch(|switches| switches.hold = true);
    running.console.send(&format!("{write} && echo it was \"written\""))?;
    wait_until(SILENCE, || running.stderr().contains("has completed no request for"))?;
    disk.switch(|switches| switches.hold = false);
    running.console.wait_for("it was written", SILENCE)?;
    disk.switch(|switches| switches.hold = true);
    running.console.send(&format!("{write} || echo it was \"lost\"; poweroff -f"))?;
    running.console.wait_for("it was lost", SILENCE)?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    assert!(running.stderr().contains("given up"), "{}", running.stderr());
    Ok(())
}

/// Somebody else's back end dies and never comes back: the guest gets errors in the end, and powers off.
#[test]
fn a_guest_powers_off_though_its_disk_is_gone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = raw_image(dir.path())?;
    let daemon = Daemon::start(&image, &[])?;
    let options = ["--vhost-user-blk".to_owned(), format!("socket={}", daemon.socket.display())];
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &options, false)?, SILENCE)?;
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
