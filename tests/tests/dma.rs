//! Disks of several queues, and disks whose process maps guest RAM: by a driver at register level with the real disk
//! process, and by Debian's driver on a whole machine.

use std::error::Error;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use policy::verify::Verified;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::debian::{Debian, Flavour};
use tests::disks::Daemon;
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::processes::{await_child, send};
use tests::vhost::driver::{DATA, Driver, SLOTS};
use vmm::virtio::DeviceEvent;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);
const DISK: &str = "bulkhead-dev-blk";
const QUEUES: u16 = 4;

/// The real process behind an image of 1 MiB, and a connection to it.
fn served(dir: &Path, queues: u16) -> Result<(Daemon, OwnedFd), Box<dyn Error>> {
    let image = dir.join("disk");
    if !image.exists() {
        fs::write(&image, vec![0; 1 << 20])?;
    }
    let daemon = Daemon::start(&image, &["--queues", &queues.to_string()])?;
    let socket = daemon.connect()?;
    Ok((daemon, socket.into()))
}

/// Every queue has its own vector, and requests of all of them survive the process. In both modes.
#[test]
fn several_queues_are_served_and_survive_their_process() -> Outcome {
    for shared in [false, true] {
        let (dir, mut rng) = (tempfile::tempdir()?, SmallRng::seed_from_u64(1));
        let (mut daemon, socket) = served(dir.path(), QUEUES)?;
        let mut driver = Driver::with(socket, QUEUES, shared)?;
        driver.start(true);
        (0..SLOTS).for_each(|slot| assert!(driver.submit(slot, Some(slot as u8))));
        assert!(driver.finish().iter().all(|(_, status, _)| *status == 0));
        let mut vectors = driver.messages();
        vectors.sort_unstable();
        vectors.dedup();
        assert_eq!(vectors, [101, 102, 103, 104]);
        let mut content: Vec<u8> = (0..SLOTS as u8).collect();
        for _ in 0..20 {
            let slots: Vec<u16> = (0..SLOTS).filter(|_| rng.random()).collect();
            for slot in &slots {
                let fill = rng.random::<bool>().then(|| rng.random());
                assert!(driver.submit(*slot, fill));
                content[usize::from(*slot)] = fill.unwrap_or(content[usize::from(*slot)]);
            }
            driver.serve(Duration::from_millis(rng.random_range(0..3)));
            drop(daemon);
            driver.until(|driver, _| matches!(driver.events().last(), Some(DeviceEvent::Lost(_))));
            let next = served(dir.path(), QUEUES)?;
            daemon = next.0;
            driver.device.replace(next.1, false);
            driver.finish();
            for slot in 0..SLOTS {
                assert!(driver.submit(slot, None));
            }
            for (slot, status, data) in driver.finish() {
                assert_eq!((status, data), (0, content[usize::from(slot)]), "slot {slot}, shared {shared}");
            }
        }
        assert_eq!(driver.status() & 0x40, 0, "no reset is needed");
    }
    Ok(())
}

/// A reset is complete when nobody writes for the old life any more: the driver may have given its buffers away.
#[test]
fn a_reset_waits_for_a_process_that_may_still_write() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (daemon, socket) = served(dir.path(), 1)?;
    let mut driver = Driver::with(socket, 1, true)?;
    driver.start(true);
    driver.submit(0, Some(7));
    driver.finish();
    // Stopped in the middle, and going on later.
    send(daemon.pid(), Signal::SIGSTOP);
    (1..10).for_each(|slot| assert!(driver.submit(slot, None)));
    driver.serve(Duration::from_millis(20));
    driver.set_status(0);
    assert_ne!(driver.status(), 0, "it may still write");
    assert!(driver.device.is_resetting());
    send(daemon.pid(), Signal::SIGCONT);
    driver.reset_slowly();
    let before = driver.snapshot();
    while driver.serve(Duration::from_millis(50)) {}
    assert!(driver.snapshot() == before);
    driver.start(true);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 7)]);
    // Lost in the middle: whether it has ended is known when another is there, and what it wrote not before.
    send(daemon.pid(), Signal::SIGSTOP);
    driver.submit(1, None);
    driver.ram.mark_code(Driver::data(1));
    driver.written_code();
    driver.serve(Duration::from_millis(20));
    drop(daemon);
    driver.until(|driver, _| matches!(driver.events().last(), Some(DeviceEvent::Lost(_))));
    driver.set_status(0);
    while driver.serve(Duration::from_millis(20)) {}
    assert_ne!(driver.status(), 0, "nobody said that it has ended");
    assert!(driver.written_code().is_empty(), "it may write on");
    let (_daemon, socket) = served(dir.path(), 1)?;
    driver.device.replace(socket, false);
    driver.reset_slowly();
    assert_eq!(driver.written_code(), [Driver::data(1)]);
    driver.ram.clear_code(Driver::data(1));
    driver.start(true);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 7)]);
    // No process to be had is as good as one that has ended.
    driver.submit(2, None);
    driver.device.abandon();
    driver.finish();
    driver.reset_slowly();
    Ok(())
}

/// What the driver wants written is all that changes.
#[test]
fn a_process_that_maps_ram_writes_what_it_is_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_daemon, socket) = served(dir.path(), QUEUES)?;
    let mut driver = Driver::with(socket, QUEUES, true)?;
    driver.start(true);
    (0..SLOTS).for_each(|slot| assert!(driver.submit(slot, None)));
    let (before, waiting) = (driver.snapshot(), driver.waiting.clone());
    driver.finish();
    driver.assert_only_changed(&before, &waiting);
    for slot in 0..SLOTS {
        let mut data = [1; DATA];
        assert!(driver.ram.read(Driver::data(slot), &mut data) && data == [0; DATA], "slot {slot}");
    }
    Ok(())
}

/// A machine whose disk's sector n holds a function that returns n.
fn booted(dir: &Path, options: &str) -> Result<Running, Box<dyn Error>> {
    let image = dir.join("code");
    let sector = |number: u32| {
        let mut bytes = [0; 512];
        bytes[0] = 0xb8;
        bytes[1..5].copy_from_slice(&number.to_le_bytes());
        bytes[5] = 0xc3;
        bytes
    };
    fs::write(&image, (0..4096).flat_map(sector).collect::<Vec<u8>>())?;
    let debian = Debian::open()?;
    let contents = Contents { suite: true, disk: Some(Flavour::I686), ..Contents::default() };
    let initrd = image::build(&debian, contents, dir)?;
    let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.options.extend(["--disk".into(), format!("path={},format=raw,{options}", image.display())]);
    let mut command = Monitor::bulkhead("translate").command(&guest)?;
    command.env("XDG_RUNTIME_DIR", dir);
    let mut running = Monitor::bulkhead("translate").launch(command)?;
    let shell = running.console.wait_for("bulkhead# ", SILENCE);
    shell.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    Ok(running)
}

/// Code that a disk writes is what is executed from the moment that the read is complete, also while the process dies.
#[test]
fn code_that_a_disk_writes_is_what_is_executed() -> Outcome {
    for options in ["dma=bounce", "dma=shared", "dma=shared,queues=4"] {
        let dir = tempfile::tempdir()?;
        let mut running = booted(dir.path(), options)?;
        running
            .console
            .send("ls /sys/block/vda/mq; dmacode /dev/vda 4096 20000; dmacode /dev/vda 4096 3000000; echo \"ended\"")?;
        let said = running.console.wait_for("dmacode: all right", SILENCE)?;
        assert!(said.lines().any(|line| line.trim() == "0"), "the driver uses a queue of its own: {said}");
        let mut known = Vec::new();
        for _ in 0..5 {
            let pid = await_child(running.pid(), DISK, &known, SILENCE)?;
            let seen = Verified::of(pid)?;
            std::thread::sleep(Duration::from_millis(200));
            let mapped = Verified::of(pid)?.guest_ram;
            let expected = if options == "dma=bounce" { 0 } else { 256 << 20 };
            assert!(mapped == expected || seen.guest_ram == expected, "{options}: {mapped} bytes of guest RAM");
            send(pid, Signal::SIGKILL);
            known.push(pid);
        }
        await_child(running.pid(), DISK, &known, SILENCE)?;
        // The longer run goes on or is over; what matters is that it finds no fault.
        running.console.send("")?;
        let text = running.console.text();
        let mut words = text.lines().filter_map(|line| line.trim().strip_prefix("dmacode: "));
        assert!(words.all(|word| word == "all right"), "{options}: {text}");
        assert_eq!(running.stderr().matches("SIGKILL").count(), 5, "{options}: {}", running.stderr());
    }
    Ok(())
}

/// The guest starts again from nothing while its disk writes into what was its memory.
#[test]
fn a_machine_that_resets_under_load_finds_its_memory_its_own() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut running = booted(dir.path(), "dma=shared")?;
    for _ in 0..3 {
        running
            .console
            .send("for n in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct & done; reboot -f")?;
        running.console.wait_for("init reached", SILENCE)?;
        running.console.wait_for("bulkhead# ", SILENCE)?;
    }
    running.console.send("dmacode /dev/vda 4096 100; poweroff -f")?;
    running.console.wait_for("dmacode: all right", SILENCE)?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    Ok(())
}
