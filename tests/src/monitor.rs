//! Starting a guest: on Bulkhead with either engine, or on QEMU's translator for comparison.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::console::Console;
use crate::workspace;

/// The engines that every guest is run on.
pub const ENGINES: &[&str] = &["interp", "translate"];

/// Who runs the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// This repository's `bulkhead run`.
    Bulkhead {
        /// The argument of `--engine`; none leaves the choice to bulkhead.
        engine: Option<String>,
    },
    /// `qemu-system-i386 -accel tcg -cpu max`.
    Qemu,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulkhead { engine } => write!(f, "bulkhead ({})", engine.as_deref().unwrap_or("default engine")),
            Self::Qemu => write!(f, "qemu (tcg)"),
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Guest {
    /// A bzImage, or a multiboot ELF image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    pub append: String,
    /// RAM in MiB.
    pub memory: u32,
    /// More arguments for `bulkhead run`, such as `--stats`; QEMU does not get them.
    pub options: Vec<String>,
}

impl Guest {
    /// A Linux guest with its console on the serial line and 512 MiB.
    pub fn linux(kernel: PathBuf, initrd: PathBuf) -> Self {
        Self { kernel, initrd: Some(initrd), append: "console=ttyS0".into(), memory: 512, options: Vec::new() }
    }
}

/// A guest under way. Dropping it kills it.
pub struct Running {
    child: Child,
    /// Its serial line.
    pub console: Console,
    /// When the monitor was started.
    pub started: Instant,
    stderr: tempfile::NamedTempFile,
}

impl Monitor {
    /// Bulkhead with a named engine.
    pub fn bulkhead(engine: &str) -> Self {
        Self::Bulkhead { engine: Some(engine.to_owned()) }
    }

    /// Whether QEMU is installed.
    pub fn qemu_available() -> bool {
        Command::new("qemu-system-i386").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Starts a guest with pipes as its serial line. A reset ends it.
    pub fn start(&self, guest: &Guest) -> io::Result<Running> {
        let mut command = self.command(guest)?;
        if let Self::Bulkhead { .. } = self {
            command.arg("--no-reboot");
        }
        self.launch(command)
    }

    /// As [`Self::start`]; waits for the guest's shell, unless nothing is printed for `silence`.
    pub fn start_to_prompt(&self, guest: &Guest, silence: Duration) -> io::Result<Running> {
        let mut running = self.start(guest)?;
        match running.console.wait_for("bulkhead# ", silence) {
            Ok(_) => Ok(running),
            Err(error) => Err(io::Error::other(format!("{error}\nstandard error:\n{}", running.stderr()))),
        }
    }

    /// Starts a guest by a command line of [`Monitor::command`] that may have been extended.
    pub fn launch(&self, mut command: Command) -> io::Result<Running> {
        let stderr = tempfile::NamedTempFile::new()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.reopen()?);
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| io::Error::other(format!("cannot start {self}: {error}")))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Running { child, console: Console::new(stdin, stdout), started, stderr }),
            _ => Err(io::Error::other("no pipes to the monitor")),
        }
    }

    /// The command line, ready to be given a serial line on stdin and stdout.
    pub fn command(&self, guest: &Guest) -> io::Result<Command> {
        let mut command = match self {
            Self::Bulkhead { engine } => {
                let mut command = Command::new(workspace::bulkhead()?);
                command.arg("run").args(&guest.options);
                if let Some(engine) = engine {
                    command.arg("--engine").arg(engine);
                }
                command.arg("--memory").arg(format!("{}M", guest.memory));
                command
            }
            Self::Qemu => {
                let mut command = Command::new("qemu-system-i386");
                command.args(["-accel", "tcg", "-cpu", "max", "-nodefaults", "-display", "none", "-serial", "stdio"]);
                command.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
                command.arg("-m").arg(format!("{}M", guest.memory));
                command
            }
        };
        // Both monitors know these three, with one dash or two.
        let dash = if *self == Self::Qemu { "-" } else { "--" };
        command.arg(format!("{dash}kernel")).arg(&guest.kernel);
        if let Some(initrd) = &guest.initrd {
            command.arg(format!("{dash}initrd")).arg(initrd);
        }
        if !guest.append.is_empty() {
            command.arg(format!("{dash}append")).arg(&guest.append);
        }
        Ok(command)
    }
}

impl Running {
    /// Waits for the monitor to end by itself.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the monitor did not end within {limit:.0?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The monitor's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the monitor wrote to standard error so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already: both calls may fail then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
