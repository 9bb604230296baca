//! The kinds of process that are confined, and the profile of each.

use std::fmt;
use std::str::FromStr;

/// A kind of confined process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Executes the guest and holds its memory.
    Vmm,
    /// The back end of one disk.
    DevBlk,
}

/// No role has this name.
#[derive(Debug, thiserror::Error)]
#[error("no role is called `{0}`: vmm, dev-blk")]
pub struct UnknownRole(String);

impl Role {
    /// Every role.
    pub const ALL: [Self; 2] = [Self::Vmm, Self::DevBlk];

    /// The name in messages and in the profile itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::DevBlk => "dev-blk",
        }
    }

    /// Where the profile is in the source tree: what messages point to.
    pub fn file(self) -> &'static str {
        match self {
            Self::Vmm => "policy/profiles/vmm.toml",
            Self::DevBlk => "policy/profiles/dev-blk.toml",
        }
    }

    /// The text of the profile, built into the program: a confined process opens no file.
    pub fn text(self) -> &'static str {
        match self {
            Self::Vmm => include_str!("../profiles/vmm.toml"),
            Self::DevBlk => include_str!("../profiles/dev-blk.toml"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|r| r.name() == name).ok_or_else(|| UnknownRole(name.into()))
    }
}
