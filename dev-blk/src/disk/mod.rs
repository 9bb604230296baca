//! Disks: what is behind a virtqueue. The image format is stated by whoever starts the device and never guessed from
//! content, which a guest can write.
//!
//! [`open`] turns a path or an inherited descriptor into a [`Disk`], with every error saying what to do. After it no
//! file is opened. An image holds whole sectors; the rest of a file's last sector is not part of the disk.

mod alignment;
pub mod buffers;
pub mod lock;
pub mod open;
pub mod qcow2;
pub mod raw;
pub mod scratch;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::BitmapSlice;

use buffers::Buffers;
use qcow2::Qcow2;
use raw::Raw;
use scratch::Scratch;

use crate::request::SECTOR;

/// How far a completed write has come, and what a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// Past the host's page cache (O_DIRECT); a flush also empties the medium's own cache.
    None,
    /// In the host's page cache; a flush brings it to the medium.
    Writeback,
    /// In the host's page cache; a flush does nothing, and a host crash may lose everything.
    Unsafe,
}

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's own, versions 2 and 3.
    Qcow2,
}

/// An open image of some format.
#[derive(Debug)]
enum Image {
    Raw(Raw),
    Qcow2(Qcow2),
}

/// A disk, used by all workers at once.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    cache: Cache,
    read_only: bool,
    /// A sync failed. The kernel has then dropped the pages that it could not write and would call the next sync a
    /// success, so none is believed until the image is opened again.
    lost: AtomicBool,
}

impl Disk {
    fn new(image: Image, cache: Cache, read_only: bool) -> Self {
        Self { image, cache, read_only, lost: AtomicBool::new(false) }
    }

    /// Size in sectors, as last measured.
    pub fn capacity(&self) -> u64 {
        let bytes = match &self.image {
            Image::Raw(raw) => raw.bytes(),
            Image::Qcow2(qcow2) => qcow2.bytes(),
        };
        bytes / SECTOR
    }

    /// The smallest unit that the image reads and writes without reading more, in bytes.
    pub fn block(&self) -> u32 {
        match &self.image {
            Image::Raw(raw) => raw.block(),
            Image::Qcow2(_) => SECTOR as u32,
        }
    }

    /// Whether writing is refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Measures the image again, after somebody resized it; its size in sectors. A qcow2 image has its size within
    /// itself, where nobody else may change it while it is in use.
    pub fn measure(&self) -> io::Result<u64> {
        if let Image::Raw(raw) = &self.image {
            raw.measure()?;
        }
        Ok(self.capacity())
    }

    /// Fills `buffers` with the disk's bytes from `offset` on.
    pub fn read<B: BitmapSlice>(&self, buffers: &Buffers<'_, B>, offset: u64, scratch: &mut Scratch) -> io::Result<()> {
        match &self.image {
            Image::Raw(raw) => raw.read(buffers, offset, scratch),
            Image::Qcow2(qcow2) => qcow2.read(buffers, offset, scratch),
        }
    }

    /// Stores `buffers` at `offset`. The data survives this process; it survives the host after a flush.
    pub fn write<B: BitmapSlice>(
        &self,
        buffers: &Buffers<'_, B>,
        offset: u64,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        match &self.image {
            Image::Raw(raw) => raw.write(buffers, offset, scratch),
            Image::Qcow2(qcow2) => qcow2.write(buffers, offset, scratch),
        }
    }

    /// Returns when all completed writes are on stable storage, unless the cache mode is unsafe.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only || self.cache == Cache::Unsafe {
            return Ok(());
        }
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync failed, so data was lost; the image must be opened again"));
        }
        let synced = match &self.image {
            Image::Raw(raw) => raw.sync(),
            Image::Qcow2(qcow2) => qcow2.sync(),
        };
        if synced.is_err() {
            self.lost.store(true, Ordering::Release);
        }
        synced
    }

    /// Tells the host that the range's content is no longer needed. What it reads as afterwards is not said.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match &self.image {
            Image::Raw(raw) => raw.discard(offset, length),
            Image::Qcow2(qcow2) => qcow2.discard(offset, length),
        }
    }

    /// Makes the range read as zero.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool, scratch: &mut Scratch) -> io::Result<()> {
        match &self.image {
            Image::Raw(raw) => raw.write_zeroes(offset, length, unmap, scratch),
            Image::Qcow2(qcow2) => qcow2.write_zeroes(offset, length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_failed_sync_is_not_followed_by_a_successful_one() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = |file| Image::Raw(Raw::over(file));
        let mut disk = Disk::new(open(image.reopen().unwrap()), Cache::Writeback, false);
        assert!(disk.flush().is_ok());
        // A pipe cannot be synced, which stands for a medium's error; a good file afterwards changes nothing.
        disk.image = open(File::from(std::os::fd::OwnedFd::from(std::io::pipe().unwrap().1)));
        assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        disk.image = open(image.reopen().unwrap());
        assert!(disk.flush().is_err());
    }
}
