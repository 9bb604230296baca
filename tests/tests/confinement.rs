//! The processes of a real guest are confined as the design says, by what /proc shows of them; they use every rule of their
//! profiles; and they do not outlive their broker.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use policy::profile::Profile;
use policy::verify::Verified;
use policy::{Layers, Role};
use tests::console::Console;
use tests::debian::{Debian, Flavour};
use tests::disks::create_qcow2;
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::processes::{alive, await_child, children, send};
use tests::trace::Traced;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);

/// Everything a vmm without disks holds while its guest runs: what it was started with, and kernel, initrd and console.
const HOLDS: [&str; 9] =
    ["/dev/null", "/dev/null", "pipe:", "socket:", "/memfd:guest-ram", "anon_inode:[eventfd]", "/", "/", "socket:"];

fn guest(dir: &Path) -> Result<Guest, Box<dyn Error>> {
    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir)?;
    Ok(Guest::linux(debian.kernel(Flavour::I686)?, initrd))
}

/// Everything a disk's process holds while it serves: what it was started with; image and listener; the connection, which
/// the vhost-user library keeps twice, and the channel for its own requests; the bounce region; of its one queue kick, which
/// is a socket, and call; and what its worker waits on, with two events that end it, each open twice.
fn disk_holds(image: &str) -> Vec<&str> {
    let mut holds = vec!["/dev/null", "/dev/null", "pipe:", image, "/memfd:bounce", "anon_inode:[eventpoll]"];
    holds.extend(["socket:"; 6]);
    holds.extend(["anon_inode:[eventfd]"; 5]);
    holds
}

fn vmm_of(broker: u32) -> Result<Pid, Box<dyn Error>> {
    Ok(await_child(broker, "bulkhead-vmm", &[], SILENCE)?)
}

/// A new image of 16 MiB, and the option that makes a disk of it.
fn disk(dir: &Path, name: &str, more: &str) -> Result<(PathBuf, String), Box<dyn Error>> {
    let image = dir.join(name);
    fs::File::create(&image)?.set_len(16 << 20)?;
    let option = format!("path={},{more}", image.display());
    Ok((image, option))
}

fn booted(engine: &str, disks: &[String], dir: &Path) -> Result<Running, Box<dyn Error>> {
    let mut guest = guest(dir)?;
    guest.options.extend(disks.iter().flat_map(|disk| ["--disk".to_owned(), disk.clone()]));
    let mut running = Monitor::bulkhead(engine).start(&guest)?;
    let shell = running.console.wait_for("bulkhead# ", SILENCE);
    shell.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    Ok(running)
}

/// On a guest that has booted, by either engine: nothing of it needed what is not allowed.
fn is_confined(engine: &str) -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut running = booted(engine, &[], dir.path())?;
    let seen = Verified::of(vmm_of(running.pid())?)?;
    seen.check(&Layers::new())?;
    seen.check_descriptors(&HOLDS)?;
    assert_eq!(seen.own_namespaces.len(), 7);
    assert!(seen.threads.len() >= 2, "the threads were made after the filter: {:?}", seen.threads);
    for (thread, status) in &seen.threads {
        assert_eq!((status.capabilities, status.seccomp, status.filters), ([0; 5], 2, 2), "thread {thread}");
    }
    assert!(seen.guest_ram >= 512 << 20, "guest RAM is mapped here, and nowhere else: {}", seen.guest_ram);
    let broker = Verified::of(Pid::from_raw(running.pid() as i32))?;
    assert_eq!(broker.guest_ram, 0, "the broker never maps guest RAM");
    let user = fs::metadata(format!("/proc/{}", seen.pid))?;
    if nix::unistd::geteuid().is_root() {
        assert_ne!(user.uid(), 0, "root's machines run as nobody in particular");
    }
    running.console.send("poweroff -f")?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    Ok(())
}

#[test]
fn the_vmm_is_confined_while_the_translator_runs() -> Outcome {
    is_confined("translate")
}

#[test]
fn the_vmm_is_confined_while_the_interpreter_runs() -> Outcome {
    is_confined("interp")
}

/// The design's first promise: a process that serves a disk has no byte of the guest's memory, no right, and nothing open
/// that it was not given.
#[test]
fn a_disks_process_is_confined_and_sees_no_guest_memory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (image, option) = disk(dir.path(), "disk", "format=raw,serial=BULKHEAD-1")?;
    let mut running = booted("translate", &[option], dir.path())?;
    running
        .console
        .send("dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync && echo wrote; cat /sys/block/vda/serial")?;
    running.console.wait_for("BULKHEAD-1", SILENCE)?;
    let pid = await_child(running.pid(), "bulkhead-dev-blk", &[], SILENCE)?;
    let seen = Verified::of(pid)?;
    seen.check(&Layers::new())?;
    seen.check_descriptors(&disk_holds(&image.display().to_string()))?;
    assert_eq!((seen.guest_ram, seen.own_namespaces.len()), (0, 7));
    for (thread, status) in &seen.threads {
        assert_eq!((status.capabilities, status.seccomp, status.filters), ([0; 5], 2, 2), "thread {thread}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let file_size = limits.lines().find_map(|line| line.strip_prefix("Max file size")).unwrap_or_default();
    let soft = file_size.split_whitespace().next();
    assert_eq!(soft, Some("16777216"), "it cannot make its image larger: {limits}");
    let vmm = Verified::of(vmm_of(running.pid())?)?;
    assert!(vmm.guest_ram >= 512 << 20, "the memory that is looked for is there: {}", vmm.guest_ram);
    let of = |pid, namespace| fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(of(pid, namespace)?, of(vmm.pid, namespace)?, "they share their {namespace} namespace");
    }
    if nix::unistd::geteuid().is_root() {
        let owner = |pid| fs::metadata(format!("/proc/{pid}")).map(|data| data.uid());
        assert!(owner(pid)? != 0 && owner(pid)? != owner(vmm.pid)?, "each is nobody in particular");
    }
    running.console.send("poweroff -f")?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    assert!(!alive(pid) && !alive(vmm.pid), "nothing is left");
    Ok(())
}

#[test]
fn no_process_outlives_its_broker() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_, option) = disk(dir.path(), "disk", "format=raw")?;
    let mut running = booted("translate", &[option], dir.path())?;
    let (vmm, disks) = (vmm_of(running.pid())?, children(running.pid(), "bulkhead-dev-blk"));
    assert_eq!(disks.len(), 1);
    send(Pid::from_raw(running.pid() as i32), Signal::SIGKILL);
    running.wait(SILENCE)?;
    let deadline = Instant::now() + SILENCE;
    while alive(vmm) || alive(disks[0]) {
        assert!(Instant::now() < deadline, "the vmm or the disk's process is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Has the guest fill 4 MiB of each of its disks and discard some of it, and then do as told.
fn writes_and(word: &str, console: &mut Console) -> Outcome {
    console.wait_for("bulkhead# ", SILENCE)?;
    let each = "dd if=/dev/zero of=$d bs=64k count=64 conv=fsync; dd if=$d of=/dev/null bs=4k count=256; blkdiscard -l 1048576 $d";
    console.send(&format!("for d in /dev/vd?; do {each}; done; {word}"))?;
    Ok(())
}

/// A guest with two disks boots, writes, resets, boots again, writes again and powers off, while one role is traced. Where
/// that fails, the guest is stopped by the end of its console.
fn every_rule_is_used(role: Role) -> Outcome {
    let dir = tempfile::tempdir()?;
    let profile = Profile::of(role)?;
    let (image, raw) = disk(dir.path(), "raw", "format=raw,cache=none")?;
    let qcow2 = dir.path().join("qcow2");
    create_qcow2(&qcow2)?;
    let mut guest = guest(dir.path())?;
    for option in [raw, format!("path={},format=qcow2", qcow2.display())] {
        guest.options.extend(["--disk".to_owned(), option]);
    }
    let command = Monitor::bulkhead("translate").command(&guest)?;
    let (code, used) = Traced::watch(command, &profile, |mut console| {
        for word in ["reboot -f", "poweroff -f"] {
            if let Err(error) = writes_and(word, &mut console) {
                eprintln!("{word}: {error}");
                return;
            }
        }
        // Keeps reading until the end.
        let _ = console.wait_for("never printed", SILENCE);
    })?;
    assert_eq!(code, 0);
    assert!(fs::metadata(&image)?.blocks() > 0, "the guest's writes reached the image");
    assert_eq!(used.unused(&profile), Vec::<String>::new(), "rules that nothing uses");
    Ok(())
}

/// A profile is no larger than it need be: each rule was used, or says why a run need not meet it.
#[test]
fn every_rule_of_the_vmm_profile_is_used() -> Outcome {
    every_rule_is_used(Role::Vmm)
}

#[test]
fn every_rule_of_the_disk_profile_is_used() -> Outcome {
    every_rule_is_used(Role::DevBlk)
}
