//! Where requests that crashed a device's process are kept, for that device's fuzzer: a directory with a file for each.
//!
//! They are guest data, so they are readable by this user alone. What comes here is as untrusted as the vmm: names are made of
//! the content's hash, so that one request has one file however often it comes; there are so many files and no more, whoever
//! made them; none is larger than the message it came in allows. Nothing of the content is looked at.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What names begin with, after the fuzzer's target.
const PREFIX: &str = "dev-blk-queue-";
/// Most files.
const MOST: usize = 64;

/// Where to keep them; see the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Quarantine {
    /// `$XDG_STATE_HOME/bulkhead/quarantine`, else that below `~/.local/state`.
    #[default]
    Default,
    /// This directory.
    Directory(PathBuf),
    /// Nowhere.
    None,
}

/// What became of a request that was to be kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is in this file.
    New(PathBuf),
    /// It was in this file already.
    Known(PathBuf),
    /// The operator does not want that.
    Unwanted,
}

/// Why a request is not kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum QuarantineError {
    #[error("neither XDG_STATE_HOME nor HOME is set: give --quarantine DIR")]
    NoPlace,
    #[error("making the directory {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("{} holds {MOST} requests, which is enough: look into them, and remove them", .0.display())]
    Full(PathBuf),
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl FromStr for Quarantine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("give a directory, or none".into()),
            "none" => Ok(Self::None),
            path => Ok(Self::Directory(path.into())),
        }
    }
}

impl Quarantine {
    /// Sees early that a directory that was asked for can be had.
    pub fn prepare(&self) -> Result<(), QuarantineError> {
        if let Self::Directory(path) = self { make(path) } else { Ok(()) }
    }

    /// Keeps `input`, an input of the fuzzer.
    pub fn keep(&self, input: &[u8]) -> Result<Kept, QuarantineError> {
        let directory = match self {
            Self::None => return Ok(Kept::Unwanted),
            Self::Directory(path) => path.clone(),
            Self::Default => default_place().ok_or(QuarantineError::NoPlace)?,
        };
        make(&directory)?;
        let path = directory.join(format!("{PREFIX}{:016x}", hash(input)));
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(Kept::Known(path));
        }
        if full(&directory).map_err(|source| QuarantineError::Make { path: directory.clone(), source })? {
            return Err(QuarantineError::Full(directory));
        }
        match write(&path, input) {
            Ok(()) => Ok(Kept::New(path)),
            Err(source) => {
                // Half a request is none.
                let _ = fs::remove_file(&path);
                Err(QuarantineError::Write { path, source })
            }
        }
    }
}

fn default_place() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("bulkhead/quarantine"))
}

/// What is made is for this user alone; what is there is as its owner wants it.
fn make(path: &Path) -> Result<(), QuarantineError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| QuarantineError::Make { path: path.into(), source })
}

fn full(directory: &Path) -> io::Result<bool> {
    let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PREFIX);
    Ok(fs::read_dir(directory)?.flatten().filter(ours).count() >= MOST)
}

fn write(path: &Path, input: &[u8]) -> io::Result<()> {
    // A link in its place is not followed: `create_new` refuses whatever is there.
    let made: io::Result<File> = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        // Another machine was faster with the same request.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made?.write_all(input),
    }
}

/// FNV-1a: stable, which is all that is asked of it.
fn hash(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_request_has_one_file_that_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        let quarantine: Quarantine = place.to_str().unwrap().parse().unwrap();
        quarantine.prepare().unwrap();
        let Kept::New(path) = quarantine.keep(b"request").unwrap() else { panic!("it is new") };
        assert_eq!(fs::read(&path).unwrap(), b"request");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&place)), (0o600, 0o700));
        assert_eq!(quarantine.keep(b"request").unwrap(), Kept::Known(path));
        assert_eq!("none".parse::<Quarantine>().unwrap().keep(b"x").unwrap(), Kept::Unwanted);
        assert!("".parse::<Quarantine>().is_err());
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::Directory(dir.path().into());
        for number in 0..MOST as u32 {
            assert!(matches!(quarantine.keep(&number.to_le_bytes()), Ok(Kept::New(_))), "{number}");
        }
        let error = quarantine.keep(b"one more").unwrap_err().to_string();
        assert!(error.contains("64 requests") && error.contains("remove"), "{error}");
        assert!(matches!(quarantine.keep(&[0; 4]), Ok(Kept::Known(_))));
    }

    #[test]
    fn a_place_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Quarantine::Directory(dir.path().join("file/below")).prepare().unwrap_err().to_string();
        assert!(error.contains("file/below"), "{error}");
        // What somebody has put in a file's place stays as it is.
        let target = dir.path().join("target");
        let path = dir.path().join(format!("{PREFIX}{:016x}", hash(b"x")));
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert_eq!(Quarantine::Directory(dir.path().into()).keep(b"x").unwrap(), Kept::Known(path));
        assert!(!target.exists());
    }
}
