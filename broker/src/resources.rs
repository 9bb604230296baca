//! Opens everything that the command line names, before anything is started.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli::{Console, RunOptions};
use crate::device::Source;
use crate::images::ImageError;

/// The files of a machine: images open, and where its serial port's output goes.
#[derive(Debug)]
pub struct Resources {
    pub kernel: File,
    pub initrd: Option<File>,
    pub output: Option<OwnedFd>,
    /// Disks and network cards, in order.
    pub devices: Vec<Source>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ResourceError {
    #[error("no kernel: give --kernel FILE, or kernel = \"FILE\" in the configuration")]
    NoKernel,
    #[error("opening the {role} {}: check the path and that you may read it", path.display())]
    Open { role: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the {role} {} is not a regular file: give the image's own path", path.display())]
    NotRegular { role: &'static str, path: PathBuf },
    #[error("opening {} for the console's output: check the path and that you may write it", path.display())]
    Output { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("using standard output for the console")]
    Stdout(#[source] std::io::Error),
}

impl Resources {
    /// Opens kernel, initrd and the console's output, and opens and locks the disks' images.
    pub fn open(options: &RunOptions) -> Result<Self, ResourceError> {
        let kernel = open("kernel", options.kernel.as_deref().ok_or(ResourceError::NoKernel)?)?;
        let initrd = options.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let own = options.disk.iter().map(|disk| Ok(Source::Own(disk.open()?)));
        let foreign = options.vhost_user_blk.iter().map(|disk| Ok(Source::Foreign(disk.clone())));
        let nics = options.net.iter().map(|nic| Ok(Source::Nic(nic.clone().with_resolver())));
        let devices = own.chain(foreign).chain(nics).collect::<Result<_, ResourceError>>()?;
        Ok(Self { kernel, initrd, output: output(&options.console)?, devices })
    }
}

/// What the guest prints is appended: a log of an earlier run, or a wrong path, costs nothing.
fn output(console: &Console) -> Result<Option<OwnedFd>, ResourceError> {
    match console {
        Console::None | Console::Socket => Ok(None),
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
