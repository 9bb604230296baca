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
    /// The back end of one network card.
    DevNet,
}

/// No role has this name.
#[derive(Debug, thiserror::Error)]
#[error("no role is called `{0}`: vmm, dev-blk, dev-net")]
pub struct UnknownRole(String);

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Vmm, Self::DevBlk, Self::DevNet];

    /// The name in messages and in the profile itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::DevBlk => "dev-blk",
            Self::DevNet => "dev-net",
        }
    }

    /// Where the profile is in the source tree: what messages point to.
    pub fn file(self) -> &'static str {
        match self {
            Self::Vmm => "policy/profiles/vmm.toml",
            Self::DevBlk => "policy/profiles/dev-blk.toml",
            Self::DevNet => "policy/profiles/dev-net.toml",
        }
    }

    /// The text of the profile, built into the program: a confined process opens no file.
    pub fn text(self) -> &'static str {
        match self {
            Self::Vmm => include_str!("../profiles/vmm.toml"),
            Self::DevBlk => include_str!("../profiles/dev-blk.toml"),
            Self::DevNet => include_str!("../profiles/dev-net.toml"),
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
