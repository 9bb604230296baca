//! Opens everything that the command line names, before anything is started.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli::RunOptions;

/// The files of a machine, open for reading.
#[derive(Debug)]
pub struct Resources {
    pub kernel: File,
    pub initrd: Option<File>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ResourceError {
    #[error("opening the {role} {}: check the path and that you may read it", path.display())]
    Open { role: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the {role} {} is not a regular file: give the image's own path", path.display())]
    NotRegular { role: &'static str, path: PathBuf },
}

impl Resources {
    /// Opens kernel and initrd.
    pub fn open(options: &RunOptions) -> Result<Self, ResourceError> {
        let kernel = open("kernel", &options.kernel)?;
        let initrd = options.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        Ok(Self { kernel, initrd })
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
