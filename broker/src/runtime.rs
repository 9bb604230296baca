//! Where running machines are found: a directory that only this user can enter, with a socket for each machine.
//!
//! The directory is `$XDG_RUNTIME_DIR/bulkhead`, else `/tmp/bulkhead-UID`. In /tmp anybody could have made it first, so it
//! must be ours, and closed to all others, or it is not used.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Longest name of a machine in bytes: with its directory it must fit into a socket's address.
const MAX_NAME: usize = 40;

/// Why a machine cannot be found, or made findable.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RuntimeError {
    #[error("making the directory of running machines, {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("{} is not a directory of yours alone: remove it, or set XDG_RUNTIME_DIR", .0.display())]
    NotOurs(PathBuf),
    #[error("a machine called {0} is running: give another --name, or stop it with `bulkhead stop {0}`")]
    Taken(String),
    #[error("listening at {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("no machine called {0} is running: `bulkhead ps` lists those that are")]
    Unknown(String),
    #[error("talking to the machine {name}")]
    Talk { name: String, source: io::Error },
    #[error("writing {}: does the directory exist, and may you write there?", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A machine's socket, removed when it is done with.
#[derive(Debug)]
pub struct Socket {
    pub listener: UnixListener,
    pub name: String,
    path: PathBuf,
}

/// Checks a name given for a machine: it becomes a file's name.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let good = !text.is_empty() && text.len() <= MAX_NAME && !text.starts_with('.') && text.bytes().all(plain);
    if good { Ok(text.into()) } else { Err(format!("1 to {MAX_NAME} letters, digits, - _ and ., no . first")) }
}

impl Socket {
    /// Makes the machine called `name` findable. Only this user can connect.
    pub fn open(name: &str) -> Result<Self, RuntimeError> {
        let path = directory()?.join(format!("{name}.sock"));
        if UnixStream::connect(&path).is_ok() {
            return Err(RuntimeError::Taken(name.into()));
        }
        // What a machine that was killed left behind.
        let _ = fs::remove_file(&path);
        let failed = |source| RuntimeError::Listen { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // Nobody else enters the directory meanwhile.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, name: name.into(), path })
    }
}

#[cfg(test)]
impl Socket {
    /// A socket that was made elsewhere.
    pub fn of(listener: UnixListener, name: &str, path: PathBuf) -> Self {
        Self { listener, name: name.into(), path }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Its absence is what is wanted.
        let _ = fs::remove_file(&self.path);
    }
}

/// Names of all machines that have a socket, in order.
pub fn names() -> Result<Vec<String>, RuntimeError> {
    let path = directory()?;
    let entries = fs::read_dir(&path).map_err(|source| RuntimeError::Make { path: path.clone(), source })?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Connects to a machine.
pub fn connect(name: &str) -> Result<UnixStream, RuntimeError> {
    let path = directory()?.join(format!("{name}.sock"));
    UnixStream::connect(path).map_err(|_| RuntimeError::Unknown(name.into()))
}

fn directory() -> Result<PathBuf, RuntimeError> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let path = match own {
        Some(dir) => dir.join("bulkhead"),
        None => PathBuf::from(format!("/tmp/bulkhead-{}", geteuid())),
    };
    private(&path)?;
    Ok(path)
}

/// Makes a directory for us alone, or sees that it is one.
fn private(path: &Path) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Make { path: path.into(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // Not followed: a link of somebody else's is not ours.
    let found = fs::symlink_metadata(path).map_err(failed)?;
    let ours = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0;
    if ours { Ok(()) } else { Err(RuntimeError::NotOurs(path.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files_and_nothing_else() {
        assert_eq!(name("guest-1.test_A"), Ok("guest-1.test_A".into()));
        for wrong in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(41)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        private(&path).unwrap();
        private(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private(&path), Err(RuntimeError::NotOurs(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(matches!(private(&link), Err(RuntimeError::NotOurs(_))));
    }
}
