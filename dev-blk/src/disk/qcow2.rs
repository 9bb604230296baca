//! qcow2 images, by the imago crate.
//!
//! imago keeps changed metadata in memory: a write that it calls complete would read as zeroes after a SIGKILL. So every
//! operation that changes the image ends by writing the metadata back, refcounts before the tables that use them, and
//! only then is the request complete. What a guest was told to be written thus survives the death of this process, at
//! worst with a few clusters that are allocated and not used, which `qemu-img check` calls leaks. A crash of the *host*
//! between two flushes is another matter: the host may write data and metadata in any order, and qcow2's structure then
//! is not promised to be whole. After a flush it is.
//!
//! An image may name other files, which a guest that once had the image raw could have chosen. They are refused unless
//! the operator allows them; then the format of each must be stated in the image that names it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use imago::qcow2::Qcow2 as Driver;
use imago::raw::Raw as RawDriver;
use imago::{FormatAccess, StorageOpenOptions};
use vm_memory::bitmap::BitmapSlice;

use super::buffers::Buffers;
use super::lock;
use super::open::holds_bytes;
use super::scratch::Scratch;

/// Images behind an image; more is a loop or an attack.
const DEEPEST: u32 = 8;

type Storage = imago::file::File;

/// An open qcow2 image. Discarding excludes everything else, since it takes clusters away.
#[derive(Debug)]
pub struct Qcow2 {
    access: RwLock<FormatAccess<Storage>>,
}

/// Why it is not opened.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Broken, or with features that imago does not know.
    #[error("{name} cannot be used as qcow2")]
    Image {
        /// The image.
        name: String,
        /// What imago said.
        source: io::Error,
    },
    /// Backing files are off.
    #[error("{name} has the backing file {backing:?}, which is not allowed: see --allow-backing")]
    Backing {
        /// The image.
        name: String,
        /// What it names.
        backing: String,
    },
    /// A FIFO, a terminal, a directory.
    #[error("the backing file {0} is neither a regular file nor a block device")]
    BackingKind(String),
    /// It cannot be told what the backing file's bytes mean.
    #[error(
        "{name} does not state its backing file's format (raw or qcow2), which is never guessed: \
         `qemu-img rebase -u -F FORMAT` states it"
    )]
    BackingFormat {
        /// The image.
        name: String,
    },
    /// Data elsewhere.
    #[error("{0} keeps its data in another file, which is not supported")]
    DataFile(String),
    /// Somebody writes a backing file.
    #[error("the backing file {0} is in use: another process writes it")]
    Locked(String),
    /// Nothing says which clusters are in use.
    #[error(
        "{0} does not count its own header as used, so nothing can be written to it: `qemu-img check -r all` repairs it"
    )]
    Refcounts(String),
    /// Too many layers.
    #[error("{0} is the end of a chain of more than {DEEPEST} images")]
    Deep(String),
}

impl Qcow2 {
    /// Takes over an open image. `path` is where it came from, to find backing files beside it; without it, or without
    /// `allow_backing`, an image that has one is refused.
    pub fn new(file: File, path: Option<&Path>, writable: bool, allow_backing: bool) -> Result<Self, Qcow2Error> {
        let allowed = path.filter(|_| allow_backing);
        let name = path.map_or_else(|| "the image".to_owned(), |path| path.display().to_string());
        let access = layer(file, &name, allowed, writable, 0)?;
        Ok(Self { access: RwLock::new(access) })
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.shared().size()
    }

    /// Fills `buffers` from the disk.
    pub fn read<B: BitmapSlice>(&self, buffers: &Buffers<'_, B>, offset: u64, scratch: &mut Scratch) -> io::Result<()> {
        let access = self.shared();
        in_pieces(buffers.length(), scratch.len(), |done, count| {
            let bytes = scratch.bytes(count);
            access.read(&mut *bytes, offset + done)?;
            buffers.copy_in(done, bytes);
            Ok(())
        })
    }

    /// Stores `buffers` on the disk.
    pub fn write<B: BitmapSlice>(
        &self,
        buffers: &Buffers<'_, B>,
        offset: u64,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let access = self.shared();
        in_pieces(buffers.length(), scratch.len(), |done, count| {
            let bytes = scratch.bytes(count);
            buffers.copy_out(done, bytes);
            access.write(&*bytes, offset + done)
        })?;
        access.flush()
    }

    /// Waits until all completed writes are on stable storage.
    pub fn sync(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }

    /// Takes the range's whole clusters out of the image.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        match access.discard_to_any(offset, length) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other.and_then(|()| access.flush()),
        }
    }

    /// Makes the range read as zero.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let access = self.shared();
        access.write_zeroes(offset, length)?;
        access.flush()
    }

    fn shared(&self) -> std::sync::RwLockReadGuard<'_, FormatAccess<Storage>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_pieces(length: u64, room: usize, mut step: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let count = (length - done).min(room as u64);
        step(done, count as usize)?;
        done += count;
    }
    Ok(())
}

/// Opens one image of a chain, with all behind it. `beside` is its path if backing files are allowed.
fn layer(
    file: File,
    name: &str,
    beside: Option<&Path>,
    writable: bool,
    depth: u32,
) -> Result<FormatAccess<Storage>, Qcow2Error> {
    let failed = |source| Qcow2Error::Image { name: name.to_owned(), source };
    if depth > DEEPEST {
        return Err(Qcow2Error::Deep(name.to_owned()));
    }
    if writable && !counts_its_header(&file).map_err(failed)? {
        return Err(Qcow2Error::Refcounts(name.to_owned()));
    }
    let storage = Storage::from_open_file(file, StorageOpenOptions::new().write(writable)).map_err(failed)?;
    let mut driver = Driver::<Storage, FormatAccess<Storage>>::open_image(storage, writable).map_err(failed)?;
    if driver.requires_external_data_file() {
        return Err(Qcow2Error::DataFile(name.to_owned()));
    }
    driver.set_data_file(None);
    let backing = match (driver.implicit_backing_file().cloned(), beside) {
        (None, _) => None,
        (Some(backing), None) => return Err(Qcow2Error::Backing { name: name.to_owned(), backing }),
        (Some(backing), Some(beside)) => {
            let format = driver.implicit_backing_format().cloned();
            Some(backing_layer(&beside.with_file_name("").join(backing), format.as_deref(), name, depth)?)
        }
    };
    driver.set_backing(backing);
    Ok(FormatAccess::new(driver))
}

/// Whether the first entry of the refcount table is there (qcow2 specification, "Header" and "Host cluster management").
/// Without it imago would put a refcount block over the header, not find it there, and try again until its stack is full.
fn counts_its_header(file: &File) -> io::Result<bool> {
    let (mut place, mut clusters, mut entry) = ([0; 8], [0; 4], [0; 8]);
    file.read_exact_at(&mut place, 48)?;
    file.read_exact_at(&mut clusters, 56)?;
    if u32::from_be_bytes(clusters) == 0 {
        return Ok(false);
    }
    match file.read_exact_at(&mut entry, u64::from_be_bytes(place)) {
        Ok(()) => Ok(u64::from_be_bytes(entry) >> 9 != 0),
        // A table that lies behind the end is a table of zeroes.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a backing file for reading, and keeps writers away from it.
fn backing_layer(
    path: &PathBuf,
    format: Option<&str>,
    owner: &str,
    depth: u32,
) -> Result<FormatAccess<Storage>, Qcow2Error> {
    let name = path.display().to_string();
    let failed = |source| Qcow2Error::Image { name: name.clone(), source };
    // As for an image itself: a FIFO is refused instead of waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !holds_bytes(&file).map_err(failed)? {
        return Err(Qcow2Error::BackingKind(name));
    }
    lock::lock(&file, false).map_err(|_| Qcow2Error::Locked(name.clone()))?;
    match format {
        Some("qcow2") => layer(file, &name, Some(path), false, depth + 1),
        Some("raw") => {
            let storage = Storage::from_open_file(file, StorageOpenOptions::new()).map_err(failed)?;
            Ok(FormatAccess::new(RawDriver::open_image(storage, false).map_err(failed)?))
        }
        _ => Err(Qcow2Error::BackingFormat { name: owner.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
