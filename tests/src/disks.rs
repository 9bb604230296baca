//! What a guest's `disk.sh` does to a disk, computed again: what it must print, and what the image must hold afterwards.
//! And the disk process that serves an image.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use sha2::{Digest, Sha256};

use crate::workspace;

/// 1 MiB.
pub const MIB: usize = 1 << 20;

/// A running disk process; dropping it kills it.
pub struct Daemon {
    child: Child,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Daemon {
    /// Serves a raw image, with more arguments.
    pub fn start(image: &Path, more: &[&str]) -> Result<Self, Box<dyn Error>> {
        let socket = image.with_extension("sock");
        let mut command = Command::new(workspace::dev_blk()?);
        command.args(["--format", "raw", "--socket-path"]).arg(&socket).arg("--path").arg(image).args(more);
        Self::spawn(command, socket)
    }

    /// Serves a raw image by QEMU's storage daemon.
    pub fn start_qemu(image: &Path) -> Result<Self, Box<dyn Error>> {
        let socket = image.with_extension("sock");
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={},discard=unmap", image.display()));
        let export = "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=";
        command.arg("--export").arg(format!("{export}{}", socket.display()));
        Self::spawn(command, socket)
    }

    fn spawn(mut command: Command, socket: PathBuf) -> Result<Self, Box<dyn Error>> {
        let mut daemon = Self { child: command.spawn()?, socket };
        while !daemon.socket.exists() {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(format!("the disk process ended at once: {status}").into());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an empty qcow2 image of 16 MiB, which needs no tool of QEMU's: header, refcount table, one refcount block and an
/// L1 table, a cluster of 64 KiB each (QEMU's docs/interop/qcow2.txt).
pub fn create_qcow2(path: &Path) -> std::io::Result<()> {
    const CLUSTER: u64 = 1 << 16;
    let header: [&[u8]; 18] = [
        b"QFI\xfb",
        &3_u32.to_be_bytes(),
        // No backing file: its offset and length.
        &0_u64.to_be_bytes(),
        &0_u32.to_be_bytes(),
        &CLUSTER.trailing_zeros().to_be_bytes(),
        &(16 * MIB as u64).to_be_bytes(),
        // Not encrypted.
        &0_u32.to_be_bytes(),
        // The L1 table: entries, and where.
        &1_u32.to_be_bytes(),
        &(3 * CLUSTER).to_be_bytes(),
        // The refcount table: where, and clusters.
        &CLUSTER.to_be_bytes(),
        &1_u32.to_be_bytes(),
        // No snapshots: how many, and where.
        &0_u32.to_be_bytes(),
        &0_u64.to_be_bytes(),
        // Features: none that a reader must know, may know, or clears.
        &0_u64.to_be_bytes(),
        &0_u64.to_be_bytes(),
        &0_u64.to_be_bytes(),
        // Refcounts of 16 bits, and the header's length.
        &4_u32.to_be_bytes(),
        &104_u32.to_be_bytes(),
    ];
    let image = File::create(path)?;
    image.set_len(4 * CLUSTER)?;
    image.write_all_at(&header.concat(), 0)?;
    image.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    image.write_all_at(&1_u16.to_be_bytes().repeat(4), 2 * CLUSTER)
}

/// Bytes that differ from sector to sector.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (at >> 9) as u8).collect()
}

/// SHA-256, in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers() -> Vec<u8> {
    (1..=2_000_000).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

/// What the disk holds after the guest's writes.
pub fn written(before: &[u8]) -> Vec<u8> {
    let (mut disk, numbers) = (before.to_vec(), numbers());
    disk[32 * MIB..][..8 * MIB].copy_from_slice(&numbers[..8 * MIB]);
    disk[90_000 * 512..][..500 * 512].copy_from_slice(&numbers[..500 * 512]);
    disk[11_300 * 4096..][..7 * 4096].copy_from_slice(&numbers[3 * 4096..10 * 4096]);
    disk
}

/// What the disk holds after the guest has discarded a part of it.
pub fn discarded(written: &[u8]) -> Vec<u8> {
    let mut disk = written.to_vec();
    disk[8 * MIB..16 * MIB].fill(0);
    disk
}

/// What the guest finds out about a disk besides what it holds: lines of `disk.sh`, without the disk's name.
pub type Traits = Vec<String>;

/// What `disk.sh` must print for the disk `name`, whose first lines are `traits`.
pub fn report(name: &str, traits: &Traits, before: &[u8]) -> String {
    let after = written(before);
    let parts: String = discarded(&after)[..32 * MIB].chunks(8 * MIB).map(|part| format!("{}\n", hash(part))).collect();
    let lines = [
        format!("content {}", hash(&before[..32 * MIB])),
        format!("direct {}", hash(&before[77 * 512..377 * 512])),
        "written large".to_owned(),
        "written small".to_owned(),
        "written over".to_owned(),
        format!("tail {}", hash(&after[32 * MIB..])),
        "discarded".to_owned(),
        format!("parts {}", hash(parts.as_bytes())),
    ];
    traits.iter().chain(&lines).map(|line| format!("{name}: {line}\n")).collect()
}
