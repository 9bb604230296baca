//! Opening an image: by path, with a lock, when standing alone; from a descriptor that the broker opened and locked
//! otherwise. The last moment at which anything is opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::qcow2::{Qcow2, Qcow2Error};
use super::raw::{Alignment, Raw};
use super::{Cache, Disk, Format, Image, alignment, lock};

/// Where the image is.
#[derive(Debug)]
pub enum Source {
    /// A file or block device, which is opened and locked.
    Path(PathBuf),
    /// An inherited descriptor; whoever opened it holds the lock.
    Descriptor(OwnedFd),
}

/// What to open, and how.
#[derive(Debug)]
pub struct Options {
    /// Where.
    pub source: Source,
    /// What its bytes mean.
    pub format: Format,
    /// How far a write goes.
    pub cache: Cache,
    /// Refuse writing.
    pub read_only: bool,
    /// Open what a qcow2 image names as its backing file.
    pub allow_backing: bool,
}

/// Why an image cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system said no.
    #[error("cannot open {name}{hint}")]
    Open {
        /// The image.
        name: String,
        /// What to do, if there is something to say.
        hint: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{0} is neither a regular file nor a block device")]
    Kind(String),
    /// Somebody else has it.
    #[error(
        "{0} is in use: another process writes it{for_writing}; stop that process, or use a copy",
        for_writing = if *.1 { "" } else { " or reads it" }
    )]
    Locked(String, bool),
    /// The lock itself failed.
    #[error("cannot lock {name}: its file system must support fcntl locks")]
    Lock {
        /// The image.
        name: String,
        /// What the system said.
        source: Errno,
    },
    /// A descriptor that does not fit the options.
    #[error("the image's descriptor {0}")]
    Descriptor(&'static str),
    /// A qcow2 image is not as it should be.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// imago could do it, but a guest's small writes would become unpredictable.
    #[error("cache=none is not supported for qcow2; use writeback, which is as safe after a flush")]
    Qcow2Direct,
    /// Not whole blocks.
    #[error(
        "{name} has {bytes} bytes, which cache=none cannot use: a multiple of {block} is needed; extend it with \
         `truncate -s %{block}`, or use another cache mode"
    )]
    Size {
        /// The image.
        name: String,
        /// Its size.
        bytes: u64,
        /// What its file system demands.
        block: u32,
    },
}

/// Opens an image.
pub fn open(options: Options) -> Result<Disk, OpenError> {
    let direct = options.cache == Cache::None;
    let (file, path) = match options.source {
        Source::Path(path) => {
            let name = path.display().to_string();
            let file = open_path(&path, &name, direct, options.read_only)?;
            take_lock(&file, &name, options.read_only)?;
            (file, Some(path))
        }
        Source::Descriptor(fd) => {
            check_flags(&fd, direct, options.read_only)?;
            (File::from(fd), None)
        }
    };
    let name = path.as_ref().map_or_else(|| "the image".to_owned(), |path| path.display().to_string());
    if !holds_bytes(&file).map_err(|source| failed(&name, source))? {
        return Err(OpenError::Kind(name));
    }
    let image = match options.format {
        Format::Raw => Image::Raw(raw(file, &name, direct)?),
        Format::Qcow2 if direct => return Err(OpenError::Qcow2Direct),
        Format::Qcow2 => Image::Qcow2(Qcow2::new(file, path.as_deref(), !options.read_only, options.allow_backing)?),
    };
    Ok(Disk::new(image, options.cache, options.read_only))
}

/// Whether a file is a regular one or a block device.
pub(super) fn holds_bytes(file: &File) -> io::Result<bool> {
    let kind = file.metadata()?.file_type();
    Ok(kind.is_file() || kind.is_block_device())
}

fn raw(file: File, name: &str, direct: bool) -> Result<Raw, OpenError> {
    let alignment = if direct { Some(alignment::of(&file).map_err(|source| failed(name, source))?) } else { None };
    let raw = Raw::new(file, alignment).map_err(|source| failed(name, source))?;
    check_size(&raw, alignment, name)?;
    Ok(raw)
}

fn failed(name: &str, source: io::Error) -> OpenError {
    OpenError::Open { name: name.to_owned(), hint: "", source }
}

fn open_path(path: &std::path::Path, name: &str, direct: bool, read_only: bool) -> Result<File, OpenError> {
    let mut flags = if direct { libc::O_DIRECT } else { 0 };
    let device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    if device && !read_only {
        // For block devices without O_CREAT this means: unless it is mounted or otherwise in use.
        flags |= libc::O_EXCL;
    }
    // O_NONBLOCK, so that a FIFO given by mistake is refused instead of waited for.
    let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags | libc::O_NONBLOCK).open(path);
    opened.map_err(|source| {
        let hint = match source.raw_os_error() {
            Some(libc::EINVAL) if direct => ": its file system has no O_DIRECT; use cache=writeback",
            Some(libc::EBUSY) => ": the device is mounted or otherwise in use",
            Some(libc::EACCES | libc::EROFS) if !read_only => {
                ": it cannot be written; use read-only, or its permissions"
            }
            _ => "",
        };
        OpenError::Open { name: name.to_owned(), hint, source }
    })
}

fn take_lock(file: &File, name: &str, read_only: bool) -> Result<(), OpenError> {
    lock::lock(file, !read_only).map_err(|source| match source {
        Errno::EAGAIN => OpenError::Locked(name.to_owned(), read_only),
        source => OpenError::Lock { name: name.to_owned(), source },
    })
}

/// A descriptor's flags cannot be changed without widening what the device may do, so they must be right.
fn check_flags(fd: &impl AsFd, direct: bool, read_only: bool) -> Result<(), OpenError> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|_| OpenError::Descriptor("is not open"))?;
    let flags = OFlag::from_bits_retain(flags);
    if flags.contains(OFlag::O_PATH) || flags & OFlag::O_ACCMODE == OFlag::O_WRONLY {
        return Err(OpenError::Descriptor("cannot be read"));
    }
    if !read_only && flags & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(OpenError::Descriptor("cannot be written: open it so, or use read-only"));
    }
    if flags.contains(OFlag::O_DIRECT) != direct {
        return Err(OpenError::Descriptor("must have O_DIRECT for cache=none, and for no other cache mode"));
    }
    Ok(())
}

fn check_size(raw: &Raw, alignment: Option<Alignment>, name: &str) -> Result<(), OpenError> {
    let block = alignment.map_or(1, |alignment| alignment.offset);
    if raw.bytes().is_multiple_of(block.into()) {
        return Ok(());
    }
    Err(OpenError::Size { name: name.to_owned(), bytes: raw.bytes(), block })
}
