//! A disk process that some requests really crash, for the test of what becomes of them (see `dev_blk::faulty`). Only
//! `bulkhead run` starts it, in the place of `bulkhead-dev-blk`.
#![allow(unsafe_code)]

use std::process::ExitCode;

use back_end::inherit::Inherited;
use clap::Parser;
use dev_blk::confined;
use dev_blk::options::Options;

fn main() -> ExitCode {
    // SAFETY: this is the start of main, before anything else is opened, and the only such value.
    let inherited = unsafe { Inherited::new() };
    confined::main(inherited, Options::parse().allow_missing)
}
