//! Opens everything that the command line names, before anything is started.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::cli::{Console, RunOptions};
use crate::disks::VhostUserBlk;

/// The files of a machine: images open for reading, and where its serial port's output goes.
#[derive(Debug)]
pub struct Resources {
    pub kernel: File,
    pub initrd: Option<File>,
    pub output: Option<OwnedFd>,
    /// Disks in order: what they are, and a connection to their back end.
    pub disks: Vec<(VhostUserBlk, UnixStream)>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ResourceError {
    #[error("opening the {role} {}: check the path and that you may read it", path.display())]
    Open { role: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the {role} {} is not a regular file: give the image's own path", path.display())]
    NotRegular { role: &'static str, path: PathBuf },
    #[error("opening {} for the console's output: check the path and that you may write it", path.display())]
    Output { path: PathBuf, source: std::io::Error },
    #[error("connecting to the vhost-user back end at {}: is it running, and may you connect?", path.display())]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("using standard output for the console")]
    Stdout(#[source] std::io::Error),
}

impl Resources {
    /// Opens kernel, initrd and the console's output, and connects to the disks' back ends.
    pub fn open(options: &RunOptions) -> Result<Self, ResourceError> {
        let kernel = open("kernel", &options.kernel)?;
        let initrd = options.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let disks = options.vhost_user_blk.iter().map(connect).collect::<Result<_, _>>()?;
        Ok(Self { kernel, initrd, output: output(&options.console)?, disks })
    }
}

fn connect(disk: &VhostUserBlk) -> Result<(VhostUserBlk, UnixStream), ResourceError> {
    let error = |source| ResourceError::Connect { path: disk.socket.clone(), source };
    Ok((disk.clone(), disk.connect().map_err(error)?))
}

/// What the guest prints is appended: a log of an earlier run, or a wrong path, costs nothing.
fn output(console: &Console) -> Result<Option<OwnedFd>, ResourceError> {
    match console {
        Console::None => Ok(None),
        Console::Stdio => std::io::stdout().as_fd().try_clone_to_owned().map(Some).map_err(ResourceError::Stdout),
        Console::File(path) => {
            let error = |source| ResourceError::Output { path: path.clone(), source };
            // A FIFO without a reader is an error rather than a wait.
            let mut options = OpenOptions::new();
            let file = options.append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
            Ok(Some(file.into()))
        }
    }
}

fn open(role: &'static str, path: &Path) -> Result<File, ResourceError> {
    let error = |source| ResourceError::Open { role, path: path.into(), source };
    // A FIFO without a writer must not hang us.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
    if file.metadata().map_err(error)?.is_file() {
        Ok(file)
    } else {
        Err(ResourceError::NotRegular { role, path: path.into() })
    }
}
