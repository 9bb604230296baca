//! A kernel or initrd file: a descriptor handed in, its size, and bounded reads.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::BootError;
use crate::mmu::GuestRam;

/// Bytes copied at a time: small enough to stay in the cache between file and RAM.
const CHUNK: usize = 128 << 10;

/// An opened file that is to be put into guest RAM. Its size is taken once; a file that shrinks later gives an error.
#[derive(Debug)]
pub struct Image {
    role: &'static str,
    file: File,
    size: u64,
}

impl Image {
    /// Wraps `file`; `role` names it in messages (`kernel` or `initrd`).
    pub fn new(role: &'static str, file: File) -> Result<Self, BootError> {
        let meta = file.metadata().map_err(|source| BootError::Metadata { role, source })?;
        if !meta.is_file() {
            return Err(BootError::NotRegular { role });
        }
        if meta.len() == 0 {
            return Err(BootError::Empty { role });
        }
        Ok(Self { role, file, size: meta.len() })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first `limit` bytes, or the whole file if it is shorter.
    pub fn head(&self, limit: usize) -> Result<Vec<u8>, BootError> {
        let length = self.size.min(limit as u64) as usize;
        let mut bytes = vec![0; length];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `to` from `offset`.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), BootError> {
        let length = to.len() as u64;
        self.file.read_exact_at(to, offset).map_err(|source| BootError::Read {
            role: self.role,
            offset,
            length,
            source,
        })
    }

    /// Copies `length` bytes at `offset` of the file to `gpa`. The caller has checked both ranges; a range outside RAM
    /// is refused all the same.
    pub fn copy_to(&self, ram: &GuestRam, offset: u64, length: u64, gpa: u64) -> Result<(), BootError> {
        let mut buffer = vec![0; CHUNK.min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(CHUNK as u64) as usize;
            self.read(offset.saturating_add(done), &mut buffer[..part])?;
            if !ram.write(gpa.saturating_add(done), &buffer[..part]) {
                return Err(BootError::NoRoom {
                    what: self.role,
                    start: gpa,
                    end: gpa.saturating_add(length),
                    limit: ram.low_size(),
                });
            }
            done += part as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod test_files {
    use super::*;
    use std::io::Write;

    /// An image with these bytes, in a memfd.
    pub(crate) fn image(role: &'static str, bytes: &[u8]) -> Image {
        let mut file = memfd::MemfdOptions::default().create(role).unwrap().into_file();
        file.write_all(bytes).unwrap();
        Image::new(role, file).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_empty_files_are_refused() {
        let (read, _write) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(read));
        assert!(matches!(Image::new("kernel", file), Err(BootError::NotRegular { .. })));
        let empty = memfd::MemfdOptions::default().create("x").unwrap().into_file();
        assert!(matches!(Image::new("kernel", empty), Err(BootError::Empty { .. })));
    }

    #[test]
    fn a_file_that_shrank_is_an_error_and_not_a_short_copy() {
        let image = test_files::image("initrd", &[7; 5000]);
        image.file.set_len(100).unwrap();
        let ram = GuestRam::new(1 << 20).unwrap();
        assert!(matches!(image.copy_to(&ram, 0, 5000, 0), Err(BootError::Read { .. })));
    }
}
