//! Disk images: what the operator says of one, and its opening and locking. After this no process opens an image again: a
//! device that is replaced gets the same open file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use ipc::control::{Cache, DeviceConfig, DeviceKind, DmaMode, Format, MAX_SERIAL, Serve};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::disks::{DEFAULT_BOUNCE, bounce_size, queue_count};

/// What is said of a disk on the command line.
const FORM: &str = "give path=FILE,format=raw|qcow2 and, if you like, readonly=on|off, cache=none|writeback|unsafe, \
                    serial=TEXT, bounce=SIZE, queues=N, dma=bounce|shared; a comma in a path is written twice";

/// A disk that a process of ours serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// What its bytes mean.
    pub format: Format,
    /// Refuse writing.
    pub read_only: bool,
    /// How far a write goes.
    pub cache: Cache,
    /// What the guest reads as its serial number.
    pub serial: String,
    /// Bytes of bounce region.
    pub bounce: u64,
    /// Virtqueues that the guest is offered.
    pub queues: u16,
    /// Which memory its process is given.
    pub dma: DmaMode,
}

/// An image, open and locked for as long as the value lives.
#[derive(Debug)]
pub struct Image {
    pub disk: Disk,
    /// For the device.
    pub file: File,
    /// An open of our own, which holds the lock: a device cannot let go of it.
    _lock: File,
}

impl Image {
    /// Its size in bytes, if it is a file that has all of its size from the start. A disk grows with it otherwise.
    pub fn fixed_size(&self) -> io::Result<Option<u64>> {
        let data = self.file.metadata()?;
        Ok((self.disk.format == Format::Raw && data.is_file()).then_some(data.len()))
    }
}

/// An image that cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error("opening the disk image {}{hint}", path.display())]
    Open { path: PathBuf, hint: &'static str, source: io::Error },
    #[error("the disk image {} is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    #[error(
        "the disk image {} is in use: another process {by}; stop that process, or use a copy", path.display(),
        by = if *read_only { "writes it" } else { "writes or reads it" }
    )]
    Locked { path: PathBuf, read_only: bool },
    #[error("locking the disk image {}: its file system must support fcntl locks", path.display())]
    Lock { path: PathBuf, source: Errno },
    #[error("cache=none is not supported for qcow2: use cache=writeback, which is as safe after a flush")]
    Qcow2Direct,
}

impl Disk {
    /// Parses [`FORM`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut path, mut format) = (None, None);
        let (mut read_only, mut cache, mut serial, mut bounce) =
            (false, Cache::Writeback, String::new(), DEFAULT_BOUNCE);
        let (mut queues, mut dma) = (1, DmaMode::Bounce);
        for item in split(text) {
            match item.split_once('=').ok_or_else(|| format!("`{item}`: {FORM}"))? {
                ("path", value) if !value.is_empty() => path = Some(PathBuf::from(value)),
                ("format", value) => format = Some(named(&item, value, &FORMATS)?),
                ("readonly", value) => read_only = named(&item, value, &[("on", true), ("off", false)])?,
                ("cache", value) => cache = named(&item, value, &CACHES)?,
                ("serial", value) => serial = serial_number(value)?,
                ("bounce", value) => bounce = bounce_size(value)?,
                ("queues", value) => queues = queue_count(value)?,
                ("dma", value) => dma = named(&item, value, &DMA_MODES)?,
                _ => return Err(format!("`{item}`: {FORM}")),
            }
        }
        let path = path.ok_or("path=FILE is missing")?;
        let format = format.ok_or("format=raw or format=qcow2 is missing: it is never guessed")?;
        Ok(Self { path, format, read_only, cache, serial, bounce, queues, dma })
    }

    /// What the vmm is told of it.
    pub fn config(&self, name: &str) -> DeviceConfig {
        let (kind, name) = (DeviceKind::Disk, name.into());
        DeviceConfig { name, kind, bounce: self.bounce, queues: self.queues, dma: self.dma }
    }

    /// What its process is told of it.
    pub fn serve(&self) -> Serve {
        let (format, cache, serial) = (self.format, self.cache, self.serial.clone());
        Serve { format, cache, read_only: self.read_only, serial, queues: self.queues }
    }

    /// Opens and locks the image.
    pub fn open(&self) -> Result<Image, ImageError> {
        if self.format == Format::Qcow2 && self.cache == Cache::None {
            return Err(ImageError::Qcow2Direct);
        }
        let lock = self.open_with(0)?;
        let kind = lock.metadata().map_err(|source| self.failed("", source))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind(self.path.clone()));
        }
        self.lock(&lock)?;
        let mut flags = if self.cache == Cache::None { libc::O_DIRECT } else { 0 };
        if kind.is_block_device() && !self.read_only {
            // Without O_CREAT this means: unless it is mounted or otherwise in use (open(2)).
            flags |= libc::O_EXCL;
        }
        Ok(Image { disk: self.clone(), file: self.open_with(flags)?, _lock: lock })
    }

    fn open_with(&self, flags: i32) -> Result<File, ImageError> {
        let mut options = OpenOptions::new();
        // A FIFO given by mistake is refused instead of waited for.
        options.read(true).write(!self.read_only).custom_flags(flags | libc::O_NONBLOCK);
        options.open(&self.path).map_err(|source| {
            let hint = match source.raw_os_error() {
                Some(libc::EINVAL) if flags & libc::O_DIRECT != 0 => {
                    ": its file system has no O_DIRECT; use cache=writeback"
                }
                Some(libc::EBUSY) => ": the device is mounted or otherwise in use",
                Some(libc::EACCES | libc::EROFS) if !self.read_only => {
                    ": it cannot be written; use readonly=on, or change its permissions"
                }
                _ => "",
            };
            self.failed(hint, source)
        })
    }

    fn failed(&self, hint: &'static str, source: io::Error) -> ImageError {
        ImageError::Open { path: self.path.clone(), hint, source }
    }

    /// One writer, or any number of readers: an open file description lock over the whole file, which QEMU's own locks
    /// conflict with.
    fn lock(&self, file: &File) -> Result<(), ImageError> {
        let kind = if self.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        // A length of 0 reaches to the end of the file, however long it grows.
        let whole =
            libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => {
                Err(ImageError::Locked { path: self.path.clone(), read_only: self.read_only })
            }
            Err(source) => Err(ImageError::Lock { path: self.path.clone(), source }),
        }
    }
}

/// The image as messages call it.
pub fn describe(disk: &Disk) -> String {
    let mode = if disk.read_only { ", read-only" } else { "" };
    let format = FORMATS.iter().find(|(_, format)| *format == disk.format).map_or("", |(name, _)| name);
    let shared = if disk.dma == DmaMode::Shared { ", which may write all of guest RAM" } else { "" };
    format!("{} ({format}{mode}{shared})", disk.path.display())
}

const FORMATS: [(&str, Format); 2] = [("raw", Format::Raw), ("qcow2", Format::Qcow2)];
const CACHES: [(&str, Cache); 3] = [("none", Cache::None), ("writeback", Cache::Writeback), ("unsafe", Cache::Unsafe)];

const DMA_MODES: [(&str, DmaMode); 2] = [("bounce", DmaMode::Bounce), ("shared", DmaMode::Shared)];

fn named<T: Copy>(item: &str, value: &str, names: &[(&str, T)]) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| *name == value).map(|(_, named)| *named);
    found.ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("`{item}`: give one of {}", known.join(", "))
    })
}

fn serial_number(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if text.len() <= MAX_SERIAL && printable {
        Ok(text.into())
    } else {
        Err(format!("serial: at most {MAX_SERIAL} printable ASCII characters"))
    }
}

/// Splits at commas; two of them stand for one.
fn split(text: &str) -> Vec<String> {
    let whole = text.replace(",,", "\0");
    whole.split(',').map(|item| item.replace('\0', ",")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> Disk {
        Disk::parse(text).unwrap()
    }

    #[test]
    fn what_is_given_is_what_is_meant() {
        let plain = disk("path=/a,format=raw");
        assert_eq!((plain.read_only, plain.cache, plain.format), (false, Cache::Writeback, Format::Raw));
        assert_eq!((plain.queues, plain.dma), (1, DmaMode::Bounce));
        let other = disk("path=/a,format=raw,queues=4,dma=shared").config("d");
        assert_eq!((other.queues, other.dma), (4, DmaMode::Shared));
        let full = disk("format=qcow2,path=/a,,b=c,readonly=on,cache=unsafe,serial=S 1,bounce=1M");
        assert_eq!((full.path.to_str().unwrap(), full.bounce, &full.serial[..]), ("/a,b=c", 1 << 20, "S 1"));
        assert_eq!((full.format, full.read_only, full.cache), (Format::Qcow2, true, Cache::Unsafe));
        for (wrong, says) in [
            ("path=/a", "never guessed"),
            ("format=raw", "path=FILE is missing"),
            ("path=/a,format=vmdk", "raw, qcow2"),
            ("path=/a,format=raw,cache=on", "none, writeback, unsafe"),
            ("path=/a,format=raw,ro", "readonly=on|off"),
            ("path=/a,format=raw,colour=red", "colour"),
            ("path=/a,format=raw,serial=012345678901234567890", "20"),
            ("path=/a,format=raw,queues=17", "1 to 16"),
            ("path=/a,format=raw,dma=log", "bounce, shared"),
            ("", "path=FILE"),
        ] {
            let error = Disk::parse(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_second_writer_is_told_so_and_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let text = format!("path={},format=raw", path.display());
        let (writer, reader) = (disk(&text), disk(&format!("{text},readonly=on")));
        let first = writer.open().unwrap();
        let error = writer.open().unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("stop that process"), "{error}");
        assert!(matches!(reader.open(), Err(ImageError::Locked { .. })));
        // A copy of the device's descriptor does not hold the lock.
        let copy = first.file.try_clone().unwrap();
        drop(first);
        let _readers = (reader.open().unwrap(), reader.open().unwrap());
        assert!(matches!(writer.open(), Err(ImageError::Locked { .. })));
        drop(copy);
    }

    #[test]
    fn what_cannot_be_an_image_is_refused() {
        let of = |path: &str, more: &str| disk(&format!("path={path},format=raw{more}")).open().unwrap_err();
        assert!(matches!(of("/dev/null", ""), ImageError::Kind(_)));
        assert!(matches!(of("/", ",readonly=on"), ImageError::Kind(_)));
        assert!(of("/nothing/there", "").to_string().contains("/nothing/there"));
        let qcow2 = disk("path=/x,format=qcow2,cache=none").open().unwrap_err();
        assert!(matches!(qcow2, ImageError::Qcow2Direct));
    }
}
