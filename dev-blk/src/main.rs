//! The disk process: opens or takes over an image and a socket, then serves. See the library for what it does.
//!
//! Exit codes: 0 when a front end on `--fd`, or the vmm, has left; 2 when the command line is wrong; 4 when the disk could
//! not be served; 128 and a signal's number when the process died of it.
#![allow(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use back_end::inherit::Inherited;
use clap::Parser;
use dev_blk::announce::Announcer;
use dev_blk::confined;
use dev_blk::control;
use dev_blk::device::Device;
use dev_blk::disk::open::{self, Source};
use dev_blk::options::Options;
use dev_blk::server::{self, ServeError};

/// What vhost-user's back end conventions have a block back end print.
const CAPABILITIES: &str = r#"{"type": "block", "features": ["read-only", "blk-file"]}"#;
const FAILED: u8 = 4;

fn main() -> ExitCode {
    // SAFETY: this is the start of main, before anything else is opened, and the only such value.
    let inherited = unsafe { Inherited::new() };
    let options = Options::parse();
    if options.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if options.confined {
        return confined::main(inherited, options.allow_missing);
    }
    log_to_stderr(options.json);
    match run(options, inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", cause_chain(&*error));
            ExitCode::from(FAILED)
        }
    }
}

fn run(options: Options, mut inherited: Inherited) -> Result<(), Box<dyn Error>> {
    let source = match (options.path, options.disk_fd) {
        (_, Some(fd)) => Source::Descriptor(inherited.take(fd)?),
        (Some(path), None) => Source::Path(path),
        (None, None) => return Err("no image: give --path or --disk-fd".into()),
    };
    let format = options.format.ok_or("no format: give --format")?;
    let (cache, read_only, allow_backing) = (options.cache, options.read_only, options.allow_backing);
    let disk = open::open(open::Options { source, format, cache, read_only, allow_backing })?;
    let device = Arc::new(Device::new(disk, &options.serial, options.queues)?);
    let announcer = Arc::new(Announcer::default());
    if let Some(fd) = options.control_fd {
        control::start(inherited.take(fd)?, Arc::clone(&device), Arc::clone(&announcer))?;
    }
    let spin = Duration::from_micros(options.spin);
    match (options.fd, options.socket_path) {
        (Some(fd), _) => {
            let mut listener = server::inherited(inherited.take(fd)?)?;
            Ok(server::serve(&device, &mut listener, &announcer, spin)?)
        }
        (None, Some(path)) => {
            let mut listener = server::bind(&path)?;
            tracing::info!("listening on {}", path.display());
            loop {
                match server::serve(&device, &mut listener, &announcer, spin) {
                    Err(ServeError::Protocol(error)) => tracing::warn!("a front end was dropped: {error}"),
                    other => other?,
                }
            }
        }
        (None, None) => Err("no socket: give --socket-path or --fd".into()),
    }
}

/// An error with all that caused it, on one line.
fn cause_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BULKHEAD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match json {
        true => builder.json().init(),
        false => builder.with_ansi(false).without_time().init(),
    }
}
