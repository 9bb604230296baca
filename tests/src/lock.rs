//! One lock file per shared directory: test binaries run side by side, and only one of them may fill a cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// Holds a lock file exclusively until dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held for its Drop")] Flock<File>);

impl Lock {
    /// Waits for `dir/.lock`, creating the directory and the file as needed.
    pub fn on(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(".lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map(Self).map_err(|(_, errno)| errno.into())
    }
}
