//! The `bulkhead` command: opens what a virtual machine needs, starts it, and stands between it and the operator.
//!
//! This process opens every file and hands descriptors over; it never maps guest memory and parses nothing that comes
//! from a guest. Exit codes are listed in [`ipc::outcome`] and by `bulkhead --help`.

mod attach;
mod cgroups;
mod cli;
mod commands;
mod config;
mod console;
mod control_api;
mod device;
mod devices;
mod disks;
mod doctor;
mod escape;
mod heart;
mod images;
mod inspect;
mod limits;
mod link;
mod logging;
mod manual;
mod nic;
mod notify;
mod process;
mod quarantine;
mod relay;
mod resources;
mod run;
mod runtime;
mod signals;
mod spawn;
mod supervise;
mod terminal;
mod words;

use std::process::ExitCode;

use ipc::outcome;

fn main() -> ExitCode {
    let cli = match cli::Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("error: {}", outcome::cause_chain(&error));
            return ExitCode::from(outcome::USAGE);
        }
    };
    match cli.command {
        cli::Command::Run(options) => {
            logging::start(options.json);
            ExitCode::from(run::run(&options))
        }
        cli::Command::Ask(ask) => answer(&ask),
    }
}

fn answer(ask: &cli::Ask) -> ExitCode {
    match commands::run(ask) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", outcome::cause_chain(&error));
            ExitCode::from(outcome::START_FAILED)
        }
    }
}
