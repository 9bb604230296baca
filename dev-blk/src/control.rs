//! Commands from whoever started the process, on a descriptor that it passed: a socket or a pair of pipes' end.
//!
//! One command a line, one line of answer. `resize` measures the image again and announces the new size; `ping` answers,
//! from a thread that does no I/O on the disk, so that silence means a stuck process.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::announce::Announcer;
use crate::device::Device;

/// No command is longer.
const LONGEST: u64 = 64;

/// Starts the thread that answers commands until `fd` is closed at the other end.
pub fn start(fd: OwnedFd, device: Arc<Device>, announcer: Arc<Announcer>) -> io::Result<()> {
    let input = File::from(fd);
    let output = input.try_clone()?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        if let Err(error) = answer_all(BufReader::new(input), output, &device, &announcer) {
            tracing::warn!("the control channel failed: {error}");
        }
    })?;
    Ok(())
}

fn answer_all(
    mut input: impl BufRead,
    mut output: impl Write,
    device: &Device,
    announcer: &Announcer,
) -> io::Result<()> {
    let mut line = String::new();
    while input.by_ref().take(LONGEST).read_line(&mut line)? > 0 {
        let answer = match line.trim_end() {
            "ping" => "pong\n".to_owned(),
            "resize" => resize(device, announcer).unwrap_or_else(|error| format!("error {error}\n")),
            _ => "error unknown command\n".to_owned(),
        };
        output.write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn resize(device: &Device, announcer: &Announcer) -> io::Result<String> {
    let sectors = device.measure()?;
    let announced = announcer.config_changed()?;
    tracing::info!(sectors, announced, "the image was measured again");
    Ok(format!("sectors {sectors} announced {announced}\n"))
}
