//! Memory to share: memfds sealed against every change of size, so that no one who maps one can be made to fault.

use std::fs::File;

use memfd::{FileSeal, MemfdOptions};

/// Why memory to share could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ShmError {
    #[error("making the memfd {name}")]
    Create { name: &'static str, source: memfd::Error },
    #[error("setting the memfd {name} to {size} bytes")]
    Resize { name: &'static str, size: u64, source: std::io::Error },
}

/// A zeroed memfd of `size` bytes. `name` shows in /proc, by which whoever verifies a process finds it.
pub fn sealed(name: &'static str, size: u64) -> Result<File, ShmError> {
    let create = |source| ShmError::Create { name, source };
    let memfd = MemfdOptions::default().close_on_exec(true).allow_sealing(true).create(name).map_err(create)?;
    memfd.as_file().set_len(size).map_err(|source| ShmError::Resize { name, size, source })?;
    memfd.add_seals(&[FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal]).map_err(create)?;
    Ok(memfd.into_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_size_is_final() {
        let file = sealed("a-test", 8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        for size in [0, 4096, 8193, 1 << 20] {
            assert_eq!(file.set_len(size).unwrap_err().raw_os_error(), Some(libc::EPERM), "{size}");
        }
    }
}
