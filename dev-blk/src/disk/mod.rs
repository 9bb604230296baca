//! Disks: what is behind a virtqueue. The image format is stated by whoever starts the device and never guessed from
//! content, which a guest can write.
//!
//! [`open`] turns a path or an inherited descriptor into a [`Disk`], with every error saying what to do. After it no
//! file is opened. An image holds whole sectors; the rest of a file's last sector is not part of the disk.

mod alignment;
pub mod buffers;
pub mod lock;
pub mod open;
pub mod raw;
pub mod scratch;

use std::io;

use vm_memory::bitmap::BitmapSlice;

use buffers::Buffers;
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
}

/// An open image of some format.
#[derive(Debug)]
enum Image {
    Raw(Raw),
}

/// A disk, used by all workers at once.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    cache: Cache,
    read_only: bool,
}

impl Disk {
    /// Size in sectors, as last measured.
    pub fn capacity(&self) -> u64 {
        let Image::Raw(raw) = &self.image;
        raw.bytes() / SECTOR
    }

    /// The smallest unit that the image reads and writes without reading more, in bytes.
    pub fn block(&self) -> u32 {
        let Image::Raw(raw) = &self.image;
        raw.block()
    }

    /// Whether writing is refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Measures the image again, after somebody resized it; its size in sectors.
    pub fn measure(&self) -> io::Result<u64> {
        let Image::Raw(raw) = &self.image;
        Ok(raw.measure()? / SECTOR)
    }

    /// Fills `buffers` with the disk's bytes from `offset` on.
    pub fn read<B: BitmapSlice>(&self, buffers: &Buffers<'_, B>, offset: u64, scratch: &mut Scratch) -> io::Result<()> {
        let Image::Raw(raw) = &self.image;
        raw.read(buffers, offset, scratch)
    }

    /// Stores `buffers` at `offset`. The data survives this process; it survives the host after a flush.
    pub fn write<B: BitmapSlice>(
        &self,
        buffers: &Buffers<'_, B>,
        offset: u64,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let Image::Raw(raw) = &self.image;
        raw.write(buffers, offset, scratch)
    }

    /// Returns when all completed writes are on stable storage, unless the cache mode is unsafe.
    pub fn flush(&self) -> io::Result<()> {
        let Image::Raw(raw) = &self.image;
        match self.cache {
            Cache::Unsafe => Ok(()),
            Cache::None | Cache::Writeback if self.read_only => Ok(()),
            Cache::None | Cache::Writeback => raw.sync(),
        }
    }

    /// Tells the host that the range's content is no longer needed. What it reads as afterwards is not said.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let Image::Raw(raw) = &self.image;
        raw.discard(offset, length)
    }

    /// Makes the range read as zero.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool, scratch: &mut Scratch) -> io::Result<()> {
        let Image::Raw(raw) = &self.image;
        raw.write_zeroes(offset, length, unmap, scratch)
    }
}
