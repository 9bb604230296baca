//! `cargo demo`: sets everything up and boots Debian's own i386 kernel to a shell on this terminal, with a disk whose
//! process may be killed from another terminal.

use std::error::Error;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;

use clap::Parser;
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};
use tests::workspace;

/// Boot Debian 12's i386 kernel on Bulkhead, with a busybox shell on this terminal.
#[derive(Parser)]
struct Arguments {
    /// Boot the PAE flavour of the kernel.
    #[arg(long)]
    pae: bool,
    /// Add python3 and the guest test programs to the image.
    #[arg(long)]
    full: bool,
    /// Run on QEMU's translator instead, for comparison.
    #[arg(long)]
    qemu: bool,
    /// The engine: translate or interp; by default bulkhead's own choice.
    #[arg(long)]
    engine: Option<String>,
    /// The guest's RAM in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// More arguments for `bulkhead run`, after `--`.
    #[arg(last = true)]
    options: Vec<String>,
}

/// Bytes of the disk.
const DISK: u64 = 64 << 20;

/// The guest's disk: what was written stays for the next time.
fn disk(dir: &Path) -> std::io::Result<[String; 4]> {
    let path = dir.join("disk.raw");
    File::options().create(true).truncate(false).write(true).open(&path)?.set_len(DISK)?;
    let disk = format!("path={},format=raw,serial=DEMO", path.display().to_string().replace(',', ",,"));
    Ok(["--name".into(), "demo".into(), "--disk".into(), disk])
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let debian = Debian::open()?;
    eprintln!("Fetching Debian's kernel and busybox (kept in {}) ...", workspace::cache_dir()?.display());
    let kernel = debian.kernel(if arguments.pae { Flavour::I686Pae } else { Flavour::I686 })?;
    let flavour = if arguments.pae { Flavour::I686Pae } else { Flavour::I686 };
    let contents =
        Contents { suite: arguments.full, python: arguments.full, disk: Some(flavour), ..Contents::default() };
    let dir = workspace::target_dir().join("demo");
    std::fs::create_dir_all(&dir)?;
    let initrd = image::build(&debian, contents, &dir)?;
    let monitor = if arguments.qemu { Monitor::Qemu } else { Monitor::Bulkhead { engine: arguments.engine } };
    let mut options = disk(&dir)?.to_vec();
    options.extend(arguments.options);
    let guest = Guest { memory: arguments.memory, options, ..Guest::linux(kernel, initrd) };
    if !arguments.qemu {
        eprintln!("Building bulkhead ...");
    }
    let mut command = monitor.command(&guest)?;
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    eprintln!("Starting: {} {}", command.get_program().to_string_lossy(), words.join(" "));
    if !arguments.qemu {
        let program = command.get_program().to_string_lossy();
        eprintln!("The guest's /dev/vda is served by a confined process of its own. From another terminal:");
        eprintln!("  {program} ps; {program} inspect demo     what runs, and what it may do");
        eprintln!("  {program} restart demo disk0     or kill -9 that process: the guest carries on");
    }
    eprintln!("Leave with `poweroff -f` in the guest, or Ctrl-A x.");
    Err(command.exec().into())
}
