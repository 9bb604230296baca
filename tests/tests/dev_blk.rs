//! The disk process alone, with QEMU as its front end: Debian's own kernel and virtio driver use it, and the image must
//! hold afterwards what the guest was told that it holds.
//!
//! Where QEMU is not installed this says so and proves nothing: `.ci/run` installs it.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use tests::debian::{Debian, Flavour};
use tests::disks::{Daemon, MIB, Traits, discarded, hash, pattern, report, written};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing printed for so long means stuck, even for a translator on a busy machine.
const SILENCE: Duration = Duration::from_secs(900);

/// QEMU's arguments for a disk.
fn attach(daemon: &Daemon, command: &mut Command, name: &str, options: &str) {
    command.args(["-chardev", &format!("socket,id={name},path={}", daemon.socket.display())]);
    command.args(["-device", &format!("vhost-user-blk-pci,chardev={name},{options}")]);
}

/// What the guest finds out about a disk of 64 MiB.
fn traits(serial: &str, queues: u32) -> Traits {
    vec![
        "size 131072".to_owned(),
        format!("serial {serial}"),
        "ro 0".to_owned(),
        "queue/logical_block_size 512".to_owned(),
        "queue/physical_block_size 4096".to_owned(),
        "queue/max_segments 126".to_owned(),
        "queue/max_segment_size 1048576".to_owned(),
        format!("queue/discard_max_bytes {}", 2048 * MIB),
        format!("queue/write_zeroes_max_bytes {}", 16 * MIB),
        "queue/write_cache write back".to_owned(),
        format!("queues {queues}"),
    ]
}

/// Two disks in different cache modes, one of them with two queues, and one that is read-only.
#[test]
fn a_guest_uses_its_disks() -> Outcome {
    if !Monitor::qemu_available() {
        eprintln!("skipped: qemu-system-i386 is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = |name: &str| dir.path().join(name);
    let mut before = pattern(32 * MIB);
    before.resize(64 * MIB, 0);
    for name in ["buffered", "direct"] {
        fs::write(image(name), &before[..32 * MIB])?;
        fs::File::options().write(true).open(image(name))?.set_len(before.len() as u64)?;
    }
    fs::write(image("fixed"), pattern(MIB))?;
    let buffered = Daemon::start(&image("buffered"), &["--queues", "2", "--serial", "BULKHEAD-1"])?;
    let direct = Daemon::start(&image("direct"), &["--cache", "none", "--serial", "no other 20 letters!"])?;
    let fixed = Daemon::start(&image("fixed"), &["--read-only"])?;

    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir.path())?;
    let guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    let mut command = Monitor::Qemu.command(&guest)?;
    command.args(["-smp", "2", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"]);
    command.args(["-machine", "pc,memory-backend=ram"]);
    attach(&buffered, &mut command, "buffered", "num-queues=2,queue-size=256");
    attach(&direct, &mut command, "direct", "num-queues=1");
    attach(&fixed, &mut command, "fixed", "num-queues=1");
    let mut running = Monitor::Qemu.launch(command)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.wait_for("bulkhead# ", SILENCE)?;
        running.console.send("sh /suite/disk.sh vda; sh /suite/disk.sh vdb; sh /suite/fixed.sh vdc; poweroff -f")?;
        Ok(running.console.wait_for("vdc: end", SILENCE)?)
    })();
    let output = ran.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    running.wait(SILENCE)?;

    let expected = [
        report("vda", &traits("BULKHEAD-1", 2), &before),
        report("vdb", &traits("no other 20 letters!", 1), &before),
        format!("vdc: ro 1\nvdc: writing fails\nvdc: content {}\nvdc: end", hash(&pattern(MIB))),
    ];
    let said: Vec<_> = output.lines().map(str::trim_end).filter(|line| line.starts_with("vd")).collect();
    assert_eq!(said.join("\n"), expected.concat(), "what the guest printed:\n{output}");
    let gone = discarded(&written(&before));
    for name in ["buffered", "direct"] {
        let found = fs::read(image(name))?;
        let difference = found.iter().zip(&gone).position(|(left, right)| left != right);
        assert!(found == gone, "{name} differs from what the guest saw, first at {difference:?}");
        // 32 MiB were filled and 8 written; 8 were discarded: what the host still stores says that it was told.
        let stored = fs::metadata(image(name))?.blocks() * 512;
        assert!(stored < 36 * MIB as u64, "{name} still takes {stored} bytes");
    }
    assert!(fs::read(image("fixed"))? == pattern(MIB), "a read-only image was written");
    Ok(())
}
