//! Raw images: a file or block device whose bytes are the disk's.
//!
//! Buffered modes move data straight between guest memory and the page cache. `cache = none` opens with O_DIRECT, which
//! demands aligned memory, offsets and lengths; what a guest sends mostly is, and what is not goes through the worker's
//! aligned scratch buffer. Where the file demands more than 512 bytes, a smaller write replaces a part of a block: no
//! other write may run meanwhile, or it would be undone.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::bitmap::BitmapSlice;

use super::buffers::Buffers;
use super::scratch::Scratch;
use crate::request::SECTOR;

/// Gives a range back. Mode 3, which never allocates anything.
const HOLE: FallocateFlags = FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
/// Makes a range read as zero, inside the file. With KEEP_SIZE the kernel would not mind one beyond its end either, which the
/// profile therefore does not allow: whoever takes this process over is to find no way to fill the host's disk.
const ZEROES: FallocateFlags = FallocateFlags::FALLOC_FL_ZERO_RANGE;

/// An open raw image.
#[derive(Debug)]
pub struct Raw {
    file: File,
    /// What O_DIRECT demands; none for buffered modes.
    direct: Option<Alignment>,
    bytes: AtomicU64,
    /// Held for writing by whoever replaces a part of a block; used only if blocks are larger than sectors.
    partial: RwLock<()>,
}

/// What O_DIRECT demands of a file, in bytes: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffers in memory.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

impl Raw {
    /// Takes over an open file. `direct` says that it was opened with O_DIRECT.
    pub fn new(file: File, direct: Option<Alignment>) -> io::Result<Self> {
        let raw = Self { direct, ..Self::over(file) };
        raw.measure()?;
        Ok(raw)
    }

    /// An image that was not measured: its size is 0.
    pub(super) fn over(file: File) -> Self {
        Self { file, direct: None, bytes: AtomicU64::new(0), partial: RwLock::default() }
    }

    /// Size in bytes, as last measured.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Measures the file again, after somebody resized it. Works for files and block devices.
    pub fn measure(&self) -> io::Result<u64> {
        let bytes = (&self.file).seek(SeekFrom::End(0))?;
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// The smallest unit that the file reads and writes.
    pub fn block(&self) -> u32 {
        self.direct.map_or(SECTOR as u32, |alignment| alignment.offset.max(SECTOR as u32))
    }

    /// Fills `buffers` from the disk.
    pub fn read<B: BitmapSlice>(&self, buffers: &Buffers<'_, B>, offset: u64, scratch: &mut Scratch) -> io::Result<()> {
        if self.fits(buffers, offset) {
            return buffers.read_from(&self.file, offset);
        }
        let mut done = 0;
        while done < buffers.length() {
            let piece = Piece::at(offset + done, buffers.length() - done, self.block(), scratch.len());
            let bytes = scratch.bytes(piece.span);
            self.file.read_exact_at(bytes, piece.start)?;
            buffers.copy_in(done, &bytes[piece.skip..piece.skip + piece.used]);
            done += piece.used as u64;
        }
        Ok(())
    }

    /// Stores `buffers` on the disk.
    pub fn write<B: BitmapSlice>(
        &self,
        buffers: &Buffers<'_, B>,
        offset: u64,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        if self.direct.is_none() {
            return buffers.write_to(&self.file, offset);
        }
        if self.fits(buffers, offset) {
            let _others = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            return buffers.write_to(&self.file, offset);
        }
        self.write_pieces(offset, buffers.length(), scratch, |at, bytes| buffers.copy_out(at, bytes))
    }

    /// Writes `length` bytes that `fill` provides, through the scratch buffer.
    fn write_pieces(
        &self,
        offset: u64,
        length: u64,
        scratch: &mut Scratch,
        fill: impl Fn(u64, &mut [u8]),
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let piece = Piece::at(offset + done, length - done, self.block(), scratch.len());
            let bytes = scratch.bytes(piece.span);
            let used = piece.skip..piece.skip + piece.used;
            if piece.used == piece.span {
                let _others = self.partial.read().unwrap_or_else(PoisonError::into_inner);
                fill(done, bytes);
                self.file.write_all_at(bytes, piece.start)?;
            } else {
                let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
                self.file.read_exact_at(bytes, piece.start)?;
                fill(done, &mut bytes[used]);
                self.file.write_all_at(bytes, piece.start)?;
            }
            done += piece.used as u64;
        }
        Ok(())
    }

    /// Waits until all completed writes are on stable storage.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the range back to the host, if it takes it: discard is advice (virtio 1.2 §5.2.6).
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.allocate(HOLE, offset, length) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Makes the range read as zero; with `unmap` it may be given back to the host.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool, scratch: &mut Scratch) -> io::Result<()> {
        for flag in &[HOLE, ZEROES][usize::from(!unmap)..] {
            match self.allocate(*flag, offset, length) {
                // Not every file system and device knows both, or this alignment.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => {}
                other => return Ok(other?),
            }
        }
        self.write_pieces(offset, length, scratch, |_, bytes| bytes.fill(0))
    }

    fn allocate(&self, flag: FallocateFlags, offset: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        let as_signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
        let (offset, length) = (as_signed(offset)?, as_signed(length)?);
        let _others = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        loop {
            match fallocate(&self.file, flag, offset, length) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Whether the kernel takes the request as it is.
    fn fits<B: BitmapSlice>(&self, buffers: &Buffers<'_, B>, offset: u64) -> bool {
        let Some(alignment) = self.direct else { return true };
        let block = u64::from(self.block());
        (offset | buffers.length()).is_multiple_of(block) && buffers.aligned(alignment.memory as usize)
    }
}

/// A part of a request, widened to whole blocks, that fits the scratch buffer.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// First byte of the first block.
    start: u64,
    /// Bytes of whole blocks.
    span: usize,
    /// Bytes of the first block that are not asked for.
    skip: usize,
    /// Bytes that are asked for.
    used: usize,
}

impl Piece {
    fn at(offset: u64, left: u64, block: u32, room: usize) -> Self {
        let block = u64::from(block);
        let skip = offset % block;
        let used = left.min(room as u64 - skip);
        let span = (skip + used).next_multiple_of(block);
        Self { start: offset - skip, span: span as usize, skip: skip as usize, used: used as usize }
    }
}

/// Whether an error means that the host ran out of space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
