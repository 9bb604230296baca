//! `cargo demo`: sets everything up and boots Debian's own i386 kernel to a shell on this terminal.

use std::error::Error;
use std::os::unix::process::CommandExt;

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

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let debian = Debian::open()?;
    eprintln!("Fetching Debian's kernel and busybox (kept in {}) ...", workspace::cache_dir()?.display());
    let kernel = debian.kernel(if arguments.pae { Flavour::I686Pae } else { Flavour::I686 })?;
    let contents = Contents { suite: arguments.full, python: arguments.full, ..Contents::default() };
    let dir = workspace::target_dir().join("demo");
    std::fs::create_dir_all(&dir)?;
    let initrd = image::build(&debian, contents, &dir)?;
    let monitor = if arguments.qemu { Monitor::Qemu } else { Monitor::Bulkhead { engine: arguments.engine } };
    let guest = Guest { memory: arguments.memory, options: arguments.options, ..Guest::linux(kernel, initrd) };
    if !arguments.qemu {
        eprintln!("Building bulkhead ...");
    }
    let mut command = monitor.command(&guest)?;
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    eprintln!("Starting: {} {}", command.get_program().to_string_lossy(), words.join(" "));
    eprintln!("Leave with `poweroff -f` in the guest, or Ctrl-A x.");
    Err(command.exec().into())
}
