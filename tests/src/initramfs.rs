//! A writer for Linux's initramfs: a cpio archive in the "newc" format, compressed by gzip.
//!
//! Format: kernel documentation, `driver-api/early-userspace/buffer-format`. Written here so that device nodes and
//! owners need neither root nor a fakeroot, and the same input gives the same bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An image in the making. Paths are relative to the guest's root, without a leading slash.
pub struct Initramfs {
    out: GzEncoder<Vec<u8>>,
    length: usize,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Initramfs {
    /// An empty image.
    pub fn new() -> Self {
        let out = GzEncoder::new(Vec::new(), Compression::fast());
        Self { out, length: 0, inode: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory, with its parents, unless it is there.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | (mode & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER | 0o600, (major, minor), &[])
    }

    /// Adds what is below `from`, except paths for which `keep` says no; directories appear as needed.
    pub fn tree(&mut self, from: &Path, keep: &dyn Fn(&str) -> bool) -> io::Result<()> {
        self.subtree(from, "", keep)
    }

    fn subtree(&mut self, from: &Path, prefix: &str, keep: &dyn Fn(&str) -> bool) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.subtree(&entry.path(), &format!("{path}/"), keep)?;
            } else if !keep(&path) {
                continue;
            } else if kind.is_symlink() {
                self.symlink(&path, &fs::read_link(entry.path())?.to_string_lossy())?;
            } else if kind.is_file() {
                let mode = entry.metadata()?.permissions().mode();
                self.file(&path, mode, &fs::read(entry.path())?)?;
            }
        }
        Ok(())
    }

    /// The finished, compressed image.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.finish()
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    /// One header of thirteen hexadecimal fields, the name, the content; name and content end on multiples of four.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size =
            u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{path} is too large for cpio")))?;
        self.inode += 1;
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.put(b"070701")?;
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        self.put(&[0; 3][..self.length.wrapping_neg() % 4])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len();
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_a_trailer() {
        let mut image = Initramfs::new();
        image.file("a/b", 0o755, b"hello").unwrap();
        image.symlink("a/c", "b").unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&image.finish().unwrap()[..]).read_to_end(&mut bytes).unwrap();
        let magics = bytes.chunks(4).filter(|chunk| *chunk == b"0707").count();
        assert_eq!((bytes.len() % 4, magics), (0, 4), "a, a/b, a/c and the trailer, each on a multiple of four");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
