//! A real guest's vmm is confined as the design says, by what /proc shows of it; it uses every rule of its profile; and it
//! does not outlive its broker.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use policy::profile::Profile;
use policy::verify::Verified;
use policy::{Layers, Role};
use tests::console::Console;
use tests::debian::{Debian, Flavour};
use tests::disks::Daemon;
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::trace::Traced;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);

/// Everything a vmm holds while its guest runs: what it was started with, and kernel, initrd and console.
const HOLDS: [&str; 9] =
    ["/dev/null", "/dev/null", "pipe:", "socket:", "/memfd:guest-ram", "anon_inode:[eventfd]", "/", "/", "socket:"];

fn guest(dir: &std::path::Path) -> Result<Guest, Box<dyn Error>> {
    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir)?;
    Ok(Guest::linux(debian.kernel(Flavour::I686)?, initrd))
}

/// The one child of a broker.
fn vmm_of(broker: u32) -> Result<Pid, Box<dyn Error>> {
    let children = fs::read_to_string(format!("/proc/{broker}/task/{broker}/children"))?;
    match children.split_whitespace().collect::<Vec<_>>()[..] {
        [only] => Ok(Pid::from_raw(only.parse()?)),
        _ => Err(format!("the broker's children are: {children}").into()),
    }
}

fn booted(engine: &str, dir: &std::path::Path) -> Result<Running, Box<dyn Error>> {
    let mut running = Monitor::bulkhead(engine).start(&guest(dir)?)?;
    let shell = running.console.wait_for("bulkhead# ", SILENCE);
    shell.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    Ok(running)
}

/// On a guest that has booted, by either engine: nothing of it needed what is not allowed.
fn is_confined(engine: &str) -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut running = booted(engine, dir.path())?;
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

#[test]
fn no_vmm_outlives_its_broker() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut running = booted("translate", dir.path())?;
    let vmm = vmm_of(running.pid())?;
    kill(Pid::from_raw(running.pid() as i32), Signal::SIGKILL)?;
    running.wait(SILENCE)?;
    let deadline = Instant::now() + SILENCE;
    while alive(vmm) {
        assert!(Instant::now() < deadline, "the vmm is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A process that has ended may wait long for whoever inherited it.
fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()).is_some_and(|state| state != 'Z')
}

/// Has the guest fill 4 MiB of its disk, and then do as told.
fn writes_and(word: &str, console: &mut Console) -> Outcome {
    console.wait_for("bulkhead# ", SILENCE)?;
    console.send(&format!("dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync; {word}"))?;
    Ok(())
}

/// A profile is no larger than it need be: each rule was used by a guest that booted, wrote to its disk, reset, and powered
/// off, or says why a run need not meet it.
#[test]
fn every_rule_of_the_vmm_profile_is_used() -> Outcome {
    let dir = tempfile::tempdir()?;
    let profile = Profile::of(Role::Vmm)?;
    let image = dir.path().join("disk");
    fs::File::create(&image)?.set_len(16 << 20)?;
    let disk = Daemon::start(&image, &[])?;
    let mut guest = guest(dir.path())?;
    guest.options.extend(["--vhost-user-blk".to_owned(), format!("socket={}", disk.socket.display())]);
    let command = Monitor::bulkhead("translate").command(&guest)?;
    // It boots, writes, resets, boots again, writes again and powers off. Where that fails, the guest is stopped by the end of its console.
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
    let unused: Vec<String> = profile
        .rules
        .iter()
        .filter(|rule| rule.rare.is_none() && !used.lines.contains_key(&rule.line))
        .map(|rule| format!("{} line {}: {}", profile.role.file(), rule.line, rule.syscall))
        .collect();
    assert!(unused.is_empty(), "rules that nothing uses: {unused:#?}");
    Ok(())
}
