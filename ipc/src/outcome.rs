//! How a virtual machine ends, and the exit code of each end. This is the one list; both processes use it.
//!
//! The ISA debug exit device turns a guest's byte `v` into `(v << 1) | 1`, as QEMU does, so odd codes belong to guests.
//! Bulkhead's own codes are even.

use serde::{Deserialize, Serialize};

/// The guest powered off.
pub const POWER_OFF: u8 = 0;
/// The command line is wrong (clap's own code too).
pub const USAGE: u8 = 2;
/// The machine could not be started: a file, a kernel image, memory, or the vmm program.
pub const START_FAILED: u8 = 4;
/// The guest needs something that is not supported; the message names it.
pub const UNSUPPORTED: u8 = 6;
/// The guest reset itself (or its processor shut down) under `--no-reboot`.
pub const RESET: u8 = 8;
/// The operator stopped the machine before the guest powered off.
pub const STOPPED: u8 = 10;
/// The vmm process died or broke its protocol: a bug, unless its limit of memory was reached.
pub const VMM_DIED: u8 = 12;

/// Why a machine that was started ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// ACPI soft-off.
    PowerOff,
    /// Port 0xf4 was written with this value.
    DebugExit(u8),
    /// Reset or triple fault under `--no-reboot`; what caused it.
    Reset(String),
    /// The operator's stop.
    Stopped,
    /// What the guest asked for and is not done, with instruction and address.
    Unsupported(String),
    /// The machine could not be started, or not started again; the whole cause chain.
    StartFailed(String),
}

impl Outcome {
    /// The exit code of this end.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => POWER_OFF,
            Self::DebugExit(value) => value << 1 | 1,
            Self::Reset(_) => RESET,
            Self::Stopped => STOPPED,
            Self::Unsupported(_) => UNSUPPORTED,
            Self::StartFailed(_) => START_FAILED,
        }
    }

    /// What it says beyond its kind: the vmm's own text.
    pub fn text(&mut self) -> Option<&mut String> {
        match self {
            Self::Reset(text) | Self::Unsupported(text) | Self::StartFailed(text) => Some(text),
            Self::PowerOff | Self::DebugExit(_) | Self::Stopped => None,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::DebugExit(value) => write!(f, "the guest wrote {value:#x} to the debug exit port"),
            Self::Reset(cause) => write!(f, "the guest reset: {cause}"),
            Self::Stopped => f.write_str("stopped by the operator"),
            Self::Unsupported(what) => write!(f, "the guest needs what is not supported: {what}"),
            Self::StartFailed(why) => write!(f, "the machine could not be started: {why}"),
        }
    }
}

/// An error and all its causes, outermost first.
pub fn cause_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_codes_are_even_and_guest_codes_odd() {
        let own = [POWER_OFF, USAGE, START_FAILED, UNSUPPORTED, RESET, STOPPED, VMM_DIED];
        assert!(own.iter().all(|c| c % 2 == 0));
        assert!((0..=255).all(|v| Outcome::DebugExit(v).exit_code() % 2 == 1));
        assert_eq!(Outcome::DebugExit(0x10).exit_code(), 0x21);
    }
}
