//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipc::control::{MAX_MEMORY, MIN_MEMORY};
use policy::Layer;

use crate::config::{self, ConfigError};
use crate::disks::VhostUserBlk;
use crate::images::Disk;
use crate::limits::Limits;
use crate::nic::Nic;
use crate::quarantine::Quarantine;

const EXIT_CODES: &str = "\
Exit codes:
  0        the guest powered off
  odd      the guest wrote v to the ISA debug exit port 0xf4: (v << 1) | 1
  2        the command line is wrong
  4        the machine could not be started
  6        the guest needs something that is not supported; the message names it
  8        the guest reset under --no-reboot
  10       stopped by the operator
  12       the vmm process died: a bug, unless the message says that a limit of memory was reached
Other commands end with 0 (`console` also when the machine ends, or a signal detaches it), or with 2 for what is wrong with
the request, 4 for what failed or is missing.

Keys, with the console on a terminal:
  Ctrl-A x quits, Ctrl-A p presses the power button, Ctrl-A a sends Ctrl-A, Ctrl-A h helps.
  SIGTERM, SIGINT and SIGHUP press the power button; after 10 seconds, or at the second signal, the machine is stopped.";

/// Runs unmodified 32-bit x86 guests without kernel module or hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command line, with what the configuration says before what is said on it.
    pub fn read() -> Result<Self, ConfigError> {
        let given = Self::parse();
        let Command::Run(options) = &given.command else { return Ok(given) };
        let Some(config) = &options.config else { return Ok(given) };
        let mut own = std::env::args_os();
        // The program and `run`.
        let mut all: Vec<OsString> = own.by_ref().take(2).collect();
        all.extend(config::arguments(config)?);
        all.extend(own);
        Ok(Self::parse_from(all))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a virtual machine with its serial console on standard input and output.
    // What the configuration says comes first, and is overridden by what is said after it.
    #[command(after_help = EXIT_CODES, args_override_self = true)]
    Run(Box<RunOptions>),
    #[command(flatten)]
    Ask(Ask),
}

/// What is asked of a running machine, or of this host.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// List running machines and their processes.
    Ps {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the processes of a machine as /proc has them: confinement, descriptors, mapped guest RAM.
    Inspect {
        /// The machine, as `ps` calls it
        vm: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the process behind a device, under load if need be.
    Restart {
        /// The machine
        vm: String,
        /// The device: disk0, disk1, ..., nic0, ...
        device: String,
    },
    /// Tell a machine that the image of a disk has another size, after `truncate` for instance; its guest is told.
    Resize {
        /// The machine
        vm: String,
        /// The device: disk0, disk1, ...
        device: String,
    },
    /// Show a machine's recent events: time, level, who, what. Who follows sees its end, and ends with it.
    Logs {
        /// The machine
        vm: String,
        /// Go on with what comes
        #[arg(long, short)]
        follow: bool,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Attach to the serial console of a machine that was started with --console socket, one at a time. Ctrl-A x detaches,
    /// and the machine runs on; Ctrl-A p presses the power button, Ctrl-A a sends Ctrl-A, Ctrl-A h helps.
    Console {
        /// The machine
        vm: String,
    },
    /// Press the power button; asked again, stop the machine.
    Stop {
        /// The machine
        vm: String,
    },
    /// Try what of confinement this host offers, and say how to get what is missing.
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completions for this command: bash, zsh, fish, ...
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of this command, or write one of each command into a directory.
    Man {
        /// The directory, which must exist
        dir: Option<PathBuf>,
    },
    /// Print what a role may ask of the kernel, and why: vmm, dev-blk, dev-net
    #[command(name = "policy")]
    Policy {
        #[command(subcommand)]
        show: Show,
    },
}

#[derive(Debug, Subcommand)]
pub enum Show {
    /// Print the profile of a role
    Show {
        /// vmm, dev-blk or dev-net
        #[arg(value_parser = crate::commands::role)]
        role: policy::Role,
    },
}

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Configuration (TOML): its keys are the flags below, and disks and network cards are tables ([[disk]] with path, format, ...; [[net]] with mode, ...). Flags
    /// override it
    #[arg(value_name = "GUEST.TOML")]
    pub config: Option<PathBuf>,
    /// What `bulkhead ps` and the other commands call the machine; unless given, the configuration's name or the process's
    /// number
    #[arg(long, value_name = "NAME", value_parser = crate::runtime::name)]
    pub name: Option<String>,
    /// Kernel: a Linux bzImage (vmlinuz) or a multiboot image
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; a multiboot kernel gets it as a module
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Guest RAM in bytes, or with a suffix: K, M, G
    #[arg(long, short, value_name = "SIZE", default_value = "512M", value_parser = memory_size)]
    pub memory: u64,
    /// A disk image, served by a confined process of its own; may be given several times. The format is raw or qcow2, and
    /// never guessed; also readonly=on, cache=none|writeback|unsafe, serial=TEXT, bounce=SIZE
    #[arg(long, value_name = "path=FILE,format=FORMAT[,...]", value_parser = Disk::parse)]
    pub disk: Vec<Disk>,
    /// A disk served by a vhost-user-blk back end that listens at PATH; may be given several times. The back end
    /// sees none of the guest's RAM, only a bounce region. Also bounce=SIZE (8M unless given), queues=N, and timeout=SECONDS
    /// (60 unless given), after which requests that do not come back are given to another connection. These disks come after
    /// those of --disk
    #[arg(long, value_name = "socket=PATH[,...]", value_parser = VhostUserBlk::parse)]
    pub vhost_user_blk: Vec<VhostUserBlk>,
    /// A network card, served by a confined process of its own; may be given several times. With `user` the guest gets an
    /// address by DHCP, and reaches what this host reaches, but for this host itself and its links, unless allow= says so; dns=,
    /// mac=, deny= and bounce= may follow
    #[arg(long, value_name = "user[,...]", value_parser = Nic::parse)]
    pub net: Vec<Nic>,
    /// Where to keep requests that crash a disk's process, for its fuzzer: a directory, or none. They are guest data, and
    /// readable by you alone. Unless given: $XDG_STATE_HOME/bulkhead/quarantine, or that below ~/.local/state
    #[arg(long, value_name = "DIR|none")]
    pub quarantine: Option<Quarantine>,
    /// What executes guest code: auto, translate or interp
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = ["auto", "translate", "interp"])]
    pub engine: String,
    /// Guest processor: max, then features to leave out or put back: max,-avx2,-arch-capabilities
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// End instead of starting again when the guest resets
    #[arg(long)]
    pub no_reboot: bool,
    /// Print the machine's counters at the end
    #[arg(long)]
    pub stats: bool,
    /// Log as JSON lines rather than text
    #[arg(long)]
    pub json: bool,
    /// Go on without this layer of confinement where the host lacks it; may be given several times
    #[arg(long, value_name = "LAYER")]
    pub allow_missing: Vec<Layer>,
    /// What the machine may use of the host: memory=SIZE, guest RAM and all; pids=NUMBER, threads among them; cpu=NUMBER of
    /// processors; cpu-weight=1 to 10000; device-memory=SIZE for the process behind each device. Needs a control group that
    /// is delegated: `bulkhead doctor`
    #[arg(long, value_name = "KEY=VALUE[,...]", value_parser = Limits::parse)]
    pub limits: Option<Limits>,
    /// Where the first serial port goes: stdio, none, socket (for `bulkhead console`; the last 64 KiB of what nobody saw are
    /// kept), or a file to append to (with a / in it, if it has such a name)
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = console)]
    pub console: Console,
}

/// Where the first serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output, raw if that is a terminal.
    Stdio,
    /// Output is discarded, there is no input.
    None,
    /// Kept for whoever attaches.
    Socket,
    /// Output is appended to this file, there is no input.
    File(PathBuf),
}

/// Parses `stdio`, `none`, `socket` or a path.
fn console(text: &str) -> Result<Console, String> {
    match text {
        "" => Err("give stdio, none, socket or a file".into()),
        "stdio" => Ok(Console::Stdio),
        "none" => Ok(Console::None),
        "socket" => Ok(Console::Socket),
        path => Ok(Console::File(path.into())),
    }
}

/// Parses `512M`, `1G`, `65536K` or bytes as a size of guest RAM.
pub fn memory_size(text: &str) -> Result<u64, String> {
    let bytes = byte_count(text)?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err("between 1M and 63G, in steps of 4K".into());
    }
    Ok(bytes)
}

/// Parses a number of bytes with K, M or G after it.
pub fn byte_count(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "give a number, with K, M or G after it (for example 512M)")?;
    number.checked_mul(1 << shift).ok_or("too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn consoles() {
        assert_eq!(console("stdio"), Ok(Console::Stdio));
        assert_eq!(console("none"), Ok(Console::None));
        assert_eq!(console("socket"), Ok(Console::Socket));
        assert_eq!(console("./none"), Ok(Console::File("./none".into())));
        assert!(console("").is_err());
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(memory_size("512M"), Ok(512 << 20));
        assert_eq!(memory_size("3g"), Ok(3 << 30));
        assert_eq!(memory_size("1048576"), Ok(1 << 20));
        for wrong in ["", "M", "-1M", "12q", "512", "1T", "99999999999G", "18446744073709551615G"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
    }
}
