//! What an operator types beside a running machine, and a guest small enough to be asked about.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use serde_json::Value;

use crate::bare::Bare;
use crate::workspace;

/// A bulkhead command that finds its machines in `dir`.
pub fn command(dir: &Path, arguments: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(workspace::bulkhead()?);
    command.args(arguments).env("XDG_RUNTIME_DIR", dir);
    Ok(command)
}

/// Does it.
pub fn bulkhead(dir: &Path, arguments: &[&str]) -> io::Result<Output> {
    command(dir, arguments)?.stdin(Stdio::null()).output()
}

/// What it printed, as JSON.
pub fn json(output: &Output) -> Result<Value, Box<dyn Error>> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}\n{}", stderr(output)).into())
}

/// What it said is wrong.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A kernel that prints "ready" and sends back what is typed, but for two letters: d has it print "later", q ends it, with
/// exit code 1.
pub fn echo_kernel(dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut bare = Bare::new()?;
    bare.print("ready\n")?;
    let (mut again, mut later, mut echo) = (bare.asm.create_label(), bare.asm.create_label(), bare.asm.create_label());
    bare.asm.set_label(&mut again)?;
    bare.asm.mov(edx, 0x3fd_u32)?;
    bare.asm.in_(al, dx)?;
    bare.asm.test(al, 1)?;
    bare.asm.jz(again)?;
    bare.asm.mov(edx, 0x3f8_u32)?;
    bare.asm.in_(al, dx)?;
    bare.asm.cmp(al, i32::from(b'd'))?;
    bare.asm.je(later)?;
    bare.asm.cmp(al, i32::from(b'q'))?;
    bare.asm.jne(echo)?;
    bare.jump_to_end()?;
    bare.asm.set_label(&mut echo)?;
    bare.asm.out(dx, al)?;
    bare.asm.jmp(again)?;
    bare.asm.set_label(&mut later)?;
    bare.print("later\n")?;
    bare.asm.jmp(again)?;
    let kernel = dir.join("echo.elf");
    fs::write(&kernel, bare.finish()?)?;
    Ok(kernel)
}

/// Waits for the end of a process, for so long.
pub fn ended(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("process {} has not ended after {limit:.0?}", child.id())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `what` holds.
pub fn wait_until(limit: Duration, mut what: impl FnMut() -> bool) -> io::Result<()> {
    let until = Instant::now() + limit;
    while !what() {
        if Instant::now() > until {
            return Err(io::Error::other(format!("not after {limit:.0?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
