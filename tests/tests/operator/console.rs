//! `bulkhead console`: a terminal is attached to a machine that runs by itself, and is itself again afterwards.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};

use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use tests::console::Console;
use tests::operator::{bulkhead, command, echo_kernel, ended, stderr, wait_until};
use tests::processes::send;

use crate::{Outcome, SILENCE};

/// A machine called `lent` whose console is for whoever attaches. Ended when dropped.
struct Machine(Child);

impl Machine {
    fn start(dir: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let kernel = echo_kernel(dir)?.display().to_string();
        let arguments = ["run", "--name", "lent", "--console", "socket", "--memory", "16M", "--kernel", &kernel];
        let mut command = command(dir, &arguments)?;
        let machine = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        wait_until(SILENCE, || bulkhead(dir, &["inspect", "lent"]).is_ok_and(|output| output.status.success()))?;
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `bulkhead console lent` on a terminal of its own.
struct Attached {
    client: Child,
    /// The keys and the screen.
    screen: Console,
    terminal: OwnedFd,
    before: Termios,
}

impl Attached {
    fn start(dir: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let pty = openpty(None, None)?;
        let before = tcgetattr(&pty.slave)?;
        let (input, output) = (pty.slave.try_clone()?, pty.slave.try_clone()?);
        let mut command = command(dir, &["console", "lent"])?;
        let client = command.stdin(input).stdout(output).stderr(pty.slave.try_clone()?).spawn()?;
        let screen = Console::new(File::from(pty.master.try_clone()?), File::from(pty.master));
        let mut attached = Self { client, screen, terminal: pty.slave, before };
        attached.screen.wait_for("attached to lent", SILENCE)?;
        assert!(!tcgetattr(&attached.terminal)?.local_flags.contains(LocalFlags::ICANON), "keys are the guest's");
        Ok(attached)
    }

    /// The client ends by itself, well, and the terminal is what it was.
    fn ends_well(mut self) -> Outcome {
        assert_eq!(ended(&mut self.client, SILENCE)?.code(), Some(0), "{}", self.screen.text());
        let after = tcgetattr(self.terminal.as_fd())?;
        assert_eq!(after.local_flags, self.before.local_flags);
        assert_eq!(after.input_flags, self.before.input_flags);
        Ok(())
    }
}

#[test]
fn a_console_is_lent_to_one_at_a_time_and_comes_back_by_every_way_out() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let mut machine = Machine::start(dir)?;
    let mut first = Attached::start(dir)?;
    // Printed before, or now.
    first.screen.wait_for("ready", SILENCE)?;
    first.screen.type_keys("echoed\x01a")?;
    first.screen.wait_for("echoe", SILENCE)?;
    let second = bulkhead(dir, &["console", "lent"])?;
    assert_eq!(second.status.code(), Some(2), "{second:?}");
    assert!(stderr(&second).contains(&format!("process {} has the console", first.client.id())), "{second:?}");
    first.screen.type_keys("\x01h")?;
    first.screen.wait_for("detach: the machine runs on", SILENCE)?;
    // What this key has the guest print comes when nobody is there any more.
    first.screen.type_keys("d\x01x")?;
    first.screen.wait_for("detached: the machine runs on", SILENCE)?;
    first.ends_well()?;

    let mut third = Attached::start(dir)?;
    third.screen.wait_for("later", SILENCE)?;
    send(Pid::from_raw(third.client.id() as i32), Signal::SIGTERM);
    third.ends_well()?;

    // Nothing restores the terminal of one that is killed; the console comes back all the same.
    let mut fourth = Attached::start(dir)?;
    send(Pid::from_raw(fourth.client.id() as i32), Signal::SIGKILL);
    ended(&mut fourth.client, SILENCE)?;
    let mut last = Attached::start(dir)?;
    last.screen.type_keys("still here")?;
    last.screen.wait_for("still here", SILENCE)?;
    last.screen.type_keys("q")?;
    last.screen.wait_for("the machine has ended", SILENCE)?;
    last.ends_well()?;
    assert_eq!(ended(&mut machine.0, SILENCE)?.code(), Some(1), "the debug exit port's code");
    Ok(())
}

#[test]
fn a_console_that_is_elsewhere_is_not_lent() -> Outcome {
    let dir = tempfile::tempdir()?;
    let kernel = echo_kernel(dir.path())?.display().to_string();
    let arguments = ["run", "--name", "own", "--console", "none", "--memory", "16M", "--kernel", &kernel];
    let mut machine = Machine(command(dir.path(), &arguments)?.stdin(Stdio::null()).spawn()?);
    let mut refused = None;
    wait_until(SILENCE, || {
        refused = bulkhead(dir.path(), &["console", "own"]).ok().filter(|output| output.status.code() == Some(2));
        refused.is_some()
    })?;
    let said = refused.map(|output| stderr(&output)).unwrap_or_default();
    assert!(said.contains("--console socket"), "{said}");
    for _ in 0..2 {
        assert!(bulkhead(dir.path(), &["stop", "own"])?.status.success());
    }
    assert_eq!(ended(&mut machine.0, SILENCE)?.code(), Some(10));
    Ok(())
}
