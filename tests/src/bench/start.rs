//! From `bulkhead run` to the guest's first instruction, with everything that belongs to it: the broker's own start,
//! confinement and verification of the vmm and of a disk's process.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::bare::Bare;
use crate::monitor::{Guest, Monitor};
use crate::workspace;

/// Starts a machine `times` times, without what the last one left in the page cache: times to the first byte that a guest
/// prints, which it does with its first few hundred
/// instructions.
pub fn measure(times: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (kernel, disk) = (dir.path().join("kernel"), dir.path().join("disk"));
    fs::write(&kernel, Bare::new()?.finish()?)?;
    fs::write(&disk, vec![0; 1 << 20])?;
    let guest = Guest {
        kernel: kernel.clone(),
        initrd: None,
        append: String::new(),
        memory: 512,
        options: vec!["--disk".into(), format!("path={},format=raw", disk.display())],
    };
    let programs = workspace::bulkhead()?;
    let beside = |name: &str| programs.with_file_name(name);
    let files = [programs.clone(), beside("bulkhead-vmm"), beside("bulkhead-dev-blk"), kernel, disk];
    (0..times)
        .map(|_| {
            files.iter().try_for_each(|file| evict(file))?;
            once(&guest)
        })
        .collect()
}

fn once(guest: &Guest) -> Result<Duration, Box<dyn Error>> {
    let mut command = Monitor::Bulkhead { engine: None }.command(guest)?;
    let started = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no pipe")?;
    stdout.read_exact(&mut [0])?;
    let time = started.elapsed();
    child.wait()?;
    Ok(time)
}

/// Has the kernel forget what it holds of a file in memory. What it cannot forget, since somebody maps it, stays.
fn evict(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}
