//! The disk process alone, with QEMU as its front end: Debian's own kernel and virtio driver use it, and the image must
//! hold afterwards what the guest was told that it holds.
//!
//! Where QEMU is not installed this says so and proves nothing: `.ci/run` installs it.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};
use tests::workspace;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing printed for so long means stuck, even for a translator on a busy machine.
const SILENCE: Duration = Duration::from_secs(900);
const MIB: usize = 1 << 20;

/// A running disk process; dropping it kills it.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(image: &Path, more: &[&str]) -> Result<Self, Box<dyn Error>> {
        let socket = image.with_extension("sock");
        let mut command = Command::new(workspace::dev_blk()?);
        command.args(["--format", "raw", "--socket-path"]).arg(&socket).arg("--path").arg(image).args(more);
        let mut daemon = Self { child: command.spawn()?, socket };
        while !daemon.socket.exists() {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(format!("the disk process ended at once: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// QEMU's arguments for this disk.
    fn attach(&self, command: &mut Command, name: &str, options: &str) {
        command.args(["-chardev", &format!("socket,id={name},path={}", self.socket.display())]);
        command.args(["-device", &format!("vhost-user-blk-pci,chardev={name},{options}")]);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ from sector to sector.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (at >> 9) as u8).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers() -> Vec<u8> {
    (1..=2_000_000).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

/// What the disk holds after the guest's writes.
fn written(before: &[u8]) -> Vec<u8> {
    let (mut disk, numbers) = (before.to_vec(), numbers());
    disk[32 * MIB..][..8 * MIB].copy_from_slice(&numbers[..8 * MIB]);
    disk[90_000 * 512..][..500 * 512].copy_from_slice(&numbers[..500 * 512]);
    disk[11_300 * 4096..][..7 * 4096].copy_from_slice(&numbers[3 * 4096..10 * 4096]);
    disk
}

/// What the disk holds after the guest has discarded a part of it.
fn discarded(written: &[u8]) -> Vec<u8> {
    let mut disk = written.to_vec();
    disk[8 * MIB..16 * MIB].fill(0);
    disk
}

/// What `disk.sh` must print for a disk.
fn report(name: &str, serial: &str, queues: u32, before: &[u8]) -> String {
    let after = written(before);
    let parts: String = discarded(&after)[..32 * MIB].chunks(8 * MIB).map(|part| format!("{}\n", hash(part))).collect();
    let lines = [
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
        format!("content {}", hash(&before[..32 * MIB])),
        format!("direct {}", hash(&before[77 * 512..377 * 512])),
        "written large".to_owned(),
        "written small".to_owned(),
        "written over".to_owned(),
        format!("tail {}", hash(&after[32 * MIB..])),
        "discarded".to_owned(),
        format!("parts {}", hash(parts.as_bytes())),
    ];
    lines.iter().map(|line| format!("{name}: {line}\n")).collect()
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
    buffered.attach(&mut command, "buffered", "num-queues=2,queue-size=256");
    direct.attach(&mut command, "direct", "num-queues=1");
    fixed.attach(&mut command, "fixed", "num-queues=1");
    let mut running = Monitor::Qemu.launch(command)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.wait_for("bulkhead# ", SILENCE)?;
        running.console.send("sh /suite/disk.sh vda; sh /suite/disk.sh vdb; sh /suite/fixed.sh vdc; poweroff -f")?;
        Ok(running.console.wait_for("vdc: end", SILENCE)?)
    })();
    let output = ran.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    running.wait(SILENCE)?;

    let expected = [
        report("vda", "BULKHEAD-1", 2, &before),
        report("vdb", "no other 20 letters!", 1, &before),
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
