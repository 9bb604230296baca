//! Debian's own virtio driver uses disks of Bulkhead: one served by our disk process, one by QEMU's storage daemon, and one
//! by a process that is hostile. The images must hold afterwards what the guest was told that they hold.

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::debian::{Debian, Flavour};
use tests::disks::{Daemon, MIB, Traits, discarded, hash, pattern, report, written};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};
use tests::vhost::hostile::Hostile;
use tests::vhost::session::serve;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing printed for so long means stuck, even for an interpreter on a very busy machine.
const SILENCE: Duration = Duration::from_secs(1200);

/// What the guest finds out about a disk of 64 MiB with the default bounce region.
fn traits(serial: &str, physical: u32, discard: usize) -> Traits {
    vec![
        "size 131072".to_owned(),
        format!("serial {serial}"),
        "ro 0".to_owned(),
        "queue/logical_block_size 512".to_owned(),
        format!("queue/physical_block_size {physical}"),
        "queue/max_segments 254".to_owned(),
        "queue/max_segment_size 16384".to_owned(),
        format!("queue/discard_max_bytes {discard}"),
        format!("queue/write_zeroes_max_bytes {}", 16 * MIB),
        "queue/write_cache write back".to_owned(),
        "queues 1".to_owned(),
    ]
}

fn has_storage_daemon() -> bool {
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Boots with a disk behind each of `sockets`, runs `script`, and returns what the guest printed up to its end.
fn run(engine: &str, sockets: &[&Path], append: &str, script: &str) -> Result<String, Box<dyn Error>> {
    let (debian, dir) = (Debian::open()?, tempfile::tempdir()?);
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir.path())?;
    let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.append.push_str(append);
    for socket in sockets {
        guest.options.extend(["--vhost-user-blk".to_owned(), format!("socket={}", socket.display())]);
    }
    let monitor = Monitor::bulkhead(engine);
    let mut running = monitor.start(&guest)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.wait_for("bulkhead# ", SILENCE)?;
        running.console.send(&format!("{script}; echo all \"done\"; poweroff -n -f"))?;
        Ok(running.console.wait_for("all done", SILENCE)?)
    })();
    let output = ran.map_err(|error| format!("{monitor}: {error}\nstandard error:\n{}", running.stderr()))?;
    let status = running.wait(SILENCE)?;
    assert!(status.success(), "{monitor} ended with {status}:\n{}", running.stderr());
    Ok(output)
}

fn uses_its_disks(engine: &str, append: &str) -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut before = pattern(32 * MIB);
    before.resize(64 * MIB, 0);
    let names: &[&str] = if has_storage_daemon() { &["own", "qemu"] } else { &["own"] };
    for name in names {
        fs::write(dir.path().join(name), &before)?;
    }
    let own = Daemon::start(&dir.path().join("own"), &["--serial", "BULKHEAD-1"])?;
    let (mut sockets, mut script) = (vec![own.socket.clone()], "sh /suite/disk.sh vda".to_owned());
    let mut expected = report("vda", &traits("BULKHEAD-1", 4096, 2048 * MIB), &before);
    let qemu = if names.len() > 1 { Some(Daemon::start_qemu(&dir.path().join("qemu"), false)?) } else { None };
    if let Some(qemu) = &qemu {
        sockets.push(qemu.socket.clone());
        script.push_str("; sh /suite/disk.sh vdb");
        expected.push_str(&report("vdb", &traits("vhost_user_blk", 512, 16 * MIB), &before));
    } else {
        eprintln!("note: qemu-storage-daemon is not installed; only our own disk process is tried");
    }
    let sockets: Vec<&Path> = sockets.iter().map(|socket| socket.as_path()).collect();
    let output = run(engine, &sockets, append, &script)?;
    let said: String = output
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("vd"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(said, expected, "what the guest printed:\n{output}");
    let after = discarded(&written(&before));
    for name in names {
        assert!(fs::read(dir.path().join(name))? == after, "{name} differs from what the guest saw");
    }
    Ok(())
}

#[test]
fn disks_translated() -> Outcome {
    uses_its_disks("translate", "")
}

#[test]
fn disks_with_intx_translated() -> Outcome {
    uses_its_disks("translate", " pci=nomsi")
}

/// The interpreter is too slow for all that: some requests of several sizes, from all of the disk's driver there is.
#[test]
fn a_disk_interpreted() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("own");
    let mut expected = pattern(MIB);
    fs::write(&image, &expected)?;
    let own = Daemon::start(&image, &[])?;
    let script = "dd if=/bin/busybox of=/dev/vda bs=16k count=4 seek=3 oflag=direct conv=notrunc && \
                  dd if=/bin/busybox of=/dev/vda bs=512 count=5 seek=9 conv=notrunc,fsync && \
                  echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/vda";
    let output = run("interp", &[&own.socket], "", script)?;
    let written = fs::read(Debian::open()?.busybox()?)?;
    expected[3 * 16_384..][..4 * 16_384].copy_from_slice(&written[..4 * 16_384]);
    expected[9 * 512..][..5 * 512].copy_from_slice(&written[..5 * 512]);
    assert!(output.contains(&hash(&expected)), "the guest reads something else:\n{output}");
    assert!(fs::read(&image)? == expected, "the image holds something else:\n{output}");
    Ok(())
}

/// The guest suspends its devices twice while a program uses its disk: the driver resets it, and sets it up anew. (Linux's
/// test of suspension: it goes as far as the devices, and wakes up by itself after five seconds.)
#[test]
fn a_guest_that_suspends_finds_its_disk_as_it_was() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("own");
    fs::write(&image, vec![0; 16 * MIB])?;
    let own = Daemon::start(&image, &[])?;
    let script = "dd if=/bin/busybox of=/tmp/wanted bs=64k count=16 2>/dev/null; : > /tmp/bad; \
                  while [ ! -e /tmp/stop ]; do \
                  dd if=/tmp/wanted of=/dev/vda bs=64k oflag=direct conv=notrunc 2>/dev/null || echo write >> /tmp/bad; \
                  dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/wanted || echo read >> /tmp/bad; \
                  echo >> /tmp/rounds; done & \
                  echo devices > /sys/power/pm_test; \
                  for n in 1 2; do sleep 1; echo freeze > /sys/power/state && echo slept $n; done; sleep 1; \
                  touch /tmp/stop; wait; echo bad $(wc -l < /tmp/bad); echo rounds $(wc -l < /tmp/rounds)";
    let output = run("translate", &[&own.socket], "", script)?;
    for said in ["slept 1", "slept 2", "bad 0"] {
        assert!(output.lines().any(|line| line.trim_end() == said), "`{said}` is missing:\n{output}");
    }
    assert!(!output.lines().any(|line| line.trim_end() == "rounds 0"), "{output}");
    let wanted = &fs::read(Debian::open()?.busybox()?)?[..MIB];
    assert!(&fs::read(&image)?[..MIB] == wanted, "the image holds something else");
    Ok(())
}

/// The guest has an honest disk and a hostile one. Whatever it makes of the latter, the former serves it, and it powers
/// off in order: in the end the hostile one is given up, and what waits for it fails.
#[test]
fn a_hostile_disk_harms_itself_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut before = pattern(32 * MIB);
    before.resize(64 * MIB, 0);
    fs::write(dir.path().join("own"), &before)?;
    let own = Daemon::start(&dir.path().join("own"), &["--serial", "BULKHEAD-1"])?;
    let path = dir.path().join("hostile.sock");
    let listener = UnixListener::bind(&path)?;
    // It serves each connection until that ends, and the next with another seed.
    std::thread::spawn(move || {
        for seed in 7.. {
            let (stream, _) = listener.accept()?;
            // How it ends is the vmm's decision.
            let _ = serve(stream, &mut Hostile::honest_handshake(seed, u32::MAX));
        }
        std::io::Result::Ok(())
    });
    let script = "(dd if=/dev/vdb of=/dev/null bs=4k & dd if=/dev/zero of=/dev/vdb bs=64k count=64 &) >/dev/null 2>&1; \
                  sh /suite/disk.sh vda";
    let output = run("translate", &[&own.socket, &path], "", script)?;
    let said: String = output
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("vda"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(said, report("vda", &traits("BULKHEAD-1", 4096, 2048 * MIB), &before), "{output}");
    assert!(fs::read(dir.path().join("own"))? == discarded(&written(&before)));
    Ok(())
}
