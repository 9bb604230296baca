//! The `bulkhead` command: opens what a virtual machine needs, starts it, and stands between it and the operator.
//!
//! This process opens every file and hands descriptors over; it never maps guest memory and parses nothing that comes
//! from a guest. `run` is the one subcommand so far. Exit codes are listed in [`ipc::outcome`] and by `bulkhead --help`.

mod cli;
mod device;
mod devices;
mod disks;
mod escape;
mod heart;
mod images;
mod link;
mod logging;
mod process;
mod relay;
mod resources;
mod run;
mod signals;
mod spawn;
mod supervise;
mod terminal;
mod words;

use std::process::ExitCode;

use clap::Parser;
use ipc::outcome;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let cli::Command::Run(options) = cli.command;
    logging::start(options.json);
    match run::run(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{}", outcome::cause_chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
