//! The network card's process. See the library for what it does.
//!
//! Exit codes: 0 when the vmm has left; 2 when the command line is wrong; 4 when the card could not be served; 128 and a
//! signal's number when the process died of it.
#![allow(unsafe_code)]

use std::process::ExitCode;

use back_end::inherit::Inherited;
use clap::Parser;

/// Serves one network card to the vmm of a virtual machine.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-dev-net", version)]
struct Options {
    /// Started by `bulkhead run`: sheds every right, then takes everything else from its control channel, descriptor 3
    #[arg(long, required = true)]
    confined: bool,
    /// Go on without this layer of confinement
    #[arg(long, value_name = "LAYER")]
    allow_missing: Vec<policy::Layer>,
}

fn main() -> ExitCode {
    // SAFETY: this is the start of main, before anything else is opened, and the only such value.
    let inherited = unsafe { Inherited::new() };
    dev_net::confined::main(inherited, Options::parse().allow_missing)
}
