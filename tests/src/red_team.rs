//! The red team: a process that is confined as a real one is, and then tries to get out.
//!
//! A *lead* process plays the broker: it starts a *member* for each attempt, as any role, verifies it from outside, lets
//! it go, and sees how it ended. It prints one [`Finding`] a line, which the test judges. Being a process of its own, a
//! lead can be run as another user. Each attempt is made twice: under the whole confinement, where the profile must end
//! the process; and without the filter, where the other layers must make the attempt fail.

mod attempts;
mod lead;
mod member;

use serde::{Deserialize, Serialize};

pub use attempts::{ATTEMPTS, Attempt, Full, Without};
pub use lead::lead;
pub use member::member;

/// How one attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name, or `syscall N` for a bare system call.
    pub attempt: String,
    /// What verification from outside complained of before the attempt: nothing, if all is well.
    pub lacks: Vec<String>,
    /// What the member said of Landlock.
    pub landlock_proved: bool,
    /// The error number that the attempt ended with, 0 for success; None if the process did not survive it.
    pub survived: Option<i32>,
    /// Exit code, if it exited.
    pub exit: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard error.
    pub words: String,
}

/// What the attempts aim at.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Process id of the lead, as the host has it.
    pub lead: i32,
    /// A TCP port of the lead on 127.0.0.1. The lead listens at an abstract socket of the same number too.
    pub port: u16,
}

/// How much confinement a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// All of it.
    Full,
    /// All but the filter.
    WithoutFilter,
}

impl Strength {
    /// The word for it on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::WithoutFilter => "without-filter",
        }
    }

    /// From that word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Full, Self::WithoutFilter].into_iter().find(|s| s.word() == word)
    }
}
