//! Requests that really crash the process of a disk: each is found among many, fails alone, and is kept for the fuzzer. The
//! process is a test build of ours, which certain sectors crash, each in another way; broker, vmm and guest are what they are
//! everywhere.

use std::error::Error;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::processes::{await_child, send};
use tests::workspace;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);
const DISK: &str = "bulkhead-dev-blk";
const SIZE: u64 = 16 << 20;
/// How often 32 requests are made, of which the guest's kernel may now and then hand over a part first.
const TRIES: u64 = 10;
/// What the test build cannot stand (`dev-blk/src/faulty.rs`): reads from these sectors, a write to the last.
const STRAY_WRITE: u64 = 2048;
const ABORT: u64 = 4096;
const VIOLATION: u64 = 6144;
const PANIC: u64 = 8192;
/// Reads that crash a process only if it carries out both.
const TOGETHER: [u64; 2] = [10240, 12288];
/// A read that never ends.
const SPIN: u64 = 14336;

/// A machine whose disk's process is the test build.
struct Machine {
    running: Running,
    dir: tempfile::TempDir,
    program: PathBuf,
}

/// What the guest's program printed.
struct Answers {
    text: String,
    milliseconds: u64,
}

impl Answers {
    /// The requests that failed, as they were given; all others were good.
    fn failed(&self) -> Vec<String> {
        let lines: Vec<(&str, &str)> = self.text.lines().filter_map(|line| line.trim_end().split_once(": ")).collect();
        let bad: Vec<_> = lines.iter().filter(|(_, what)| *what != "good").collect();
        assert!(bad.iter().all(|(_, what)| *what == "error 5"), "EIO, and nothing else: {}", self.text);
        bad.iter().map(|(request, _)| (*request).to_owned()).collect()
    }
}

impl Machine {
    fn boot() -> Result<Self, Box<dyn Error>> {
        let (debian, dir) = (Debian::open()?, tempfile::tempdir()?);
        let programs = dir.path().join("programs");
        fs::create_dir(&programs)?;
        let program = workspace::with_faulty_disk(&programs)?;
        let contents = Contents { disk: Some(Flavour::I686), suite: true, ..Contents::default() };
        let initrd = image::build(&debian, contents, dir.path())?;
        let image = fs::File::create(dir.path().join("disk"))?;
        image.set_len(SIZE)?;
        // Each 4 KiB begin with their sector's number.
        for sector in (0..SIZE / 512).step_by(8) {
            image.write_all_at(&(sector as u32).to_le_bytes(), sector * 512)?;
        }
        let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
        let disk = format!("path={},format=raw", dir.path().join("disk").display());
        let corpus = dir.path().join("corpus").display().to_string();
        guest.options = ["--name", "poison", "--disk", &disk, "--quarantine", &corpus].map(Into::into).to_vec();
        let monitor = Monitor::bulkhead("translate");
        let mut command = Command::new(&program);
        command.args(monitor.command(&guest)?.get_args()).env("XDG_RUNTIME_DIR", dir.path());
        let mut running = monitor.launch(command)?;
        let shell = running.console.wait_for("bulkhead# ", SILENCE);
        shell.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
        Ok(Self { running, dir, program })
    }

    /// Has the guest ask for all of `requests` at once.
    fn ask(&mut self, requests: &[String]) -> Result<Answers, Box<dyn Error>> {
        self.running.console.send(&format!("depth /dev/vda {}", requests.join(" ")))?;
        // The line is echoed first.
        let asked = self.running.console.wait_for("\n", SILENCE);
        let answered = asked.and_then(|_| self.running.console.wait_for("all came back after ", SILENCE));
        let text = answered.map_err(|error| format!("{error}\nstandard error:\n{}", self.running.stderr()))?;
        let took = self.running.console.wait_for(" ms", SILENCE)?;
        let milliseconds = took.trim_end_matches(" ms").trim().parse()?;
        assert_eq!(text.matches(": ").count(), requests.len(), "each came back: {text}");
        Ok(Answers { text, milliseconds })
    }

    /// What `bulkhead inspect` says of the disk.
    fn inspect(&self) -> Result<Value, Box<dyn Error>> {
        let mut command = Command::new(&self.program);
        let output = command.args(["inspect", "poison", "--json"]).env("XDG_RUNTIME_DIR", self.dir.path()).output()?;
        let mut seen: Value = serde_json::from_slice(&output.stdout)?;
        Ok(seen["devices"][0].take())
    }

    fn corpus(&self) -> std::io::Result<Vec<PathBuf>> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("corpus")) else { return Ok(Vec::new()) };
        entries.map(|entry| Ok(entry?.path())).collect()
    }

    fn told(&self, text: &str) -> bool {
        self.running.stderr().contains(text)
    }

    fn power_off(mut self) -> Outcome {
        self.running.console.send("poweroff -f")?;
        assert!(self.running.wait(SILENCE)?.success(), "{}", self.running.stderr());
        Ok(())
    }
}

/// `count` sectors that crash nothing and do not touch each other, with `special` at given places among them.
fn among(count: usize, special: &[(usize, String)]) -> Vec<String> {
    let mut requests: Vec<String> = (0..count as u64).map(|i| (16 + 64 * i).to_string()).collect();
    special.iter().for_each(|(at, request)| requests[*at].clone_from(request));
    requests
}

/// Type, sector and data of the request in a corpus file, as the fuzzer lays a guest's memory out.
fn read_back(path: &Path) -> std::io::Result<(u32, u64, Vec<u8>)> {
    let input = fs::read(path)?;
    let number = |at: usize, length: usize| input[at..at + length].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    assert_eq!(fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
    let header = 1 + number(1, 8) as usize;
    Ok((number(header, 4) as u32, number(header + 8, 8), input.get(1 + 0x600..).unwrap_or_default().to_vec()))
}

#[test]
fn a_request_that_crashes_its_disk_is_found_among_32_and_fails_alone() -> Outcome {
    let mut machine = Machine::boot()?;
    // First of all, so that all 32 are out when it strikes, unless the guest's kernel does something else in between.
    let said =
        format!("a read of 4096 bytes at sector {STRAY_WRITE} crashes its process: it was found among 32 requests");
    let mut convicted = 0;
    while !machine.told(&said) {
        assert!(convicted < TRIES, "{}", machine.running.stderr());
        let answers = machine.ask(&among(32, &[(0, STRAY_WRITE.to_string())]))?;
        assert_eq!(answers.failed(), [STRAY_WRITE.to_string()]);
        println!("one among 32: all came back after {} ms", answers.milliseconds);
        convicted += 1;
    }
    let corpus = machine.corpus()?;
    assert_eq!(corpus.len(), 1);
    assert_eq!(read_back(&corpus[0])?, (0, STRAY_WRITE, vec![]));
    assert_eq!(machine.inspect()?["quarantined"], convicted);

    // Others, each with another end of the process, two of them at once, and one that writes.
    let special = [(9, ABORT.to_string()), (20, VIOLATION.to_string()), (31, format!("w{PANIC}"))];
    let answers = machine.ask(&among(32, &special))?;
    assert_eq!(answers.failed(), special.clone().map(|(_, request)| request));
    println!("three among 32: all came back after {} ms", answers.milliseconds);
    let mut kept = machine.corpus()?.iter().map(|path| read_back(path)).collect::<Result<Vec<_>, _>>()?;
    kept.sort_by_key(|(_, sector, _)| *sector);
    let sectors: Vec<(u32, u64)> = kept.iter().map(|(kind, sector, _)| (*kind, *sector)).collect();
    assert_eq!(sectors, [(0, STRAY_WRITE), (0, ABORT), (0, VIOLATION), (1, PANIC)]);
    assert_eq!((kept[3].2.len(), &kept[3].2[..4]), (4096, &(PANIC as u32).to_le_bytes()[..]), "a write with its data");

    // The same one again: found again, and kept once.
    assert_eq!(machine.ask(&among(8, &[(3, ABORT.to_string())]))?.failed(), [ABORT.to_string()]);
    convicted += special.len() as u64 + 1;
    assert_eq!((machine.corpus()?.len(), &machine.inspect()?["quarantined"]), (4, &convicted.into()));
    machine.running.console.send("dmesg | grep -c 'I/O error' | sed 's/^/errors: /'")?;
    machine.running.console.wait_for(&format!("errors: {convicted}\r\n"), SILENCE)?;
    machine.power_off()
}

/// Its process answers all the time, and does nothing but compute: that is noticed, and the request is found as any other.
#[test]
fn a_request_that_keeps_its_disk_busy_for_ever_fails_alone() -> Outcome {
    let mut machine = Machine::boot()?;
    let answers = machine.ask(&among(8, &[(3, SPIN.to_string())]))?;
    println!("one that never ends, among 8: all came back after {} ms", answers.milliseconds);
    assert_eq!(answers.failed(), [SPIN.to_string()]);
    assert!(machine.told("of processor time for that"), "{}", machine.running.stderr());
    assert_eq!(machine.inspect()?["quarantined"], 1);
    machine.power_off()
}

#[test]
fn nothing_fails_that_is_not_alone_to_blame() -> Outcome {
    let mut machine = Machine::boot()?;
    // Which crash their process only together: one after the other, and each by a process of its own if need be.
    let together = [(4, TOGETHER[0].to_string()), (15, TOGETHER[1].to_string())];
    let mut tries = 0;
    while !machine.told("SIGSEGV, by its own account") {
        assert!(tries < TRIES, "it never crashes: {}", machine.running.stderr());
        let answers = machine.ask(&among(32, &together))?;
        assert_eq!(answers.failed(), [""; 0]);
        println!("two that crash together, among 32: all came back after {} ms", answers.milliseconds);
        tries += 1;
    }
    // Signals from outside count for nothing, not even those that a fault raises, and not even again and again.
    let mut known = Vec::new();
    for round in 0..12 {
        let pid = await_child(machine.running.pid(), DISK, &known, SILENCE)?;
        machine.running.console.send(&format!("depth /dev/vda {}", among(32, &[]).join(" ")))?;
        send(pid, [Signal::SIGSEGV, Signal::SIGKILL, Signal::SIGABRT][round % 3]);
        known.push(pid);
        let text = machine.running.console.wait_for("all came back after ", SILENCE)?;
        assert!(!text.contains("error") && !text.contains("wrong"), "{text}");
    }
    assert_eq!((machine.inspect()?["quarantined"].as_u64(), machine.corpus()?.len()), (Some(0), 0));
    assert!(machine.told("a signal of another process") && !machine.told("given up"), "{}", machine.running.stderr());
    machine.power_off()
}
