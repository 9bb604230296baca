//! Debian 12's own i386 packages, fetched by the machine's own apt client.
//!
//! Nothing is installed and no root is needed: apt runs with private state, and packages are unpacked into a cache
//! outside the repository. The suite is pinned to bookworm, the last Debian with i386 kernels; versions are resolved
//! when fetching. What is in the cache is used without a network; delete the directory to fetch it anew. Several
//! processes may ask at once: one fetches, under a lock, and an entry appears by one rename, complete or not at all.

mod apt;
mod libraries;
mod sources;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lock::Lock;
use crate::workspace;
use apt::Apt;

/// Why a package is not there. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No apt or dpkg, or no Debian mirror in its sources.
    #[error("{0}; Bulkhead's guests come from Debian's packages: use a Debian machine, or copy a filled cache to {1}")]
    NotDebian(String, PathBuf),
    /// apt failed: no network, no such package, a bad checksum.
    #[error(
        "`{command}` failed:\n{output}\nCheck the network and the mirror in /etc/apt (bookworm must have i386), then retry"
    )]
    Apt {
        /// The command as typed.
        command: String,
        /// What it said on standard error.
        output: String,
    },
    /// The metapackage does not name a kernel image, as in releases after bookworm.
    #[error(
        "Debian's {package} for i386 names no kernel image; only bookworm and older have them: check the mirror in /etc/apt"
    )]
    NoKernel {
        /// The metapackage.
        package: String,
    },
    /// A package does not hold what it should.
    #[error("{package} holds no {path}")]
    Missing {
        /// The package.
        package: String,
        /// The path that was expected.
        path: String,
    },
    /// The cache could not be used.
    #[error("package cache {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// What is kept of a kernel's modules, which would be half a gigabyte: patterns of paths in its package.
const MODULES: &[&str] = &[
    "./lib/modules/*/kernel/drivers/virtio/*.ko",
    "./lib/modules/*/kernel/drivers/block/virtio_blk.ko",
    "./lib/modules/*/kernel/drivers/net/virtio_net.ko",
    "./lib/modules/*/kernel/drivers/net/net_failover.ko",
    "./lib/modules/*/kernel/net/core/failover.ko",
];

/// Where fio is, from the root of a file system.
pub const FIO: &str = "usr/bin/fio";

/// Debian's two i386 kernel flavours that Bulkhead is tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-686`: two-level page tables.
    I686,
    /// `linux-image-686-pae`: three-level page tables and no-execute.
    I686Pae,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::I686, Self::I686Pae];

    /// The metapackage that names the current kernel.
    pub fn package(self) -> &'static str {
        match self {
            Self::I686 => "linux-image-686",
            Self::I686Pae => "linux-image-686-pae",
        }
    }
}

/// The package cache.
#[derive(Debug)]
pub struct Debian {
    cache: PathBuf,
}

impl Debian {
    /// Opens the user's cache.
    pub fn open() -> Result<Self, Error> {
        let cache = workspace::cache_dir().map_err(|error| Error::Io { path: "~/.cache".into(), error })?;
        Ok(Self { cache: cache.join("debian") })
    }

    /// The current kernel image (`vmlinuz`) of a flavour.
    pub fn kernel(&self, flavour: Flavour) -> Result<PathBuf, Error> {
        Ok(self.kernel_entry(flavour)?.join("vmlinuz"))
    }

    /// A directory with the modules of that kernel that a virtual machine may want.
    pub fn modules(&self, flavour: Flavour) -> Result<PathBuf, Error> {
        Ok(self.kernel_entry(flavour)?.join("modules"))
    }

    /// Kernel and modules come from one package, so that they fit each other.
    fn kernel_entry(&self, flavour: Flavour) -> Result<PathBuf, Error> {
        self.entry(&format!("{}-devices", flavour.package()), |apt, into| {
            let package = apt.kernel_package(flavour.package())?;
            let deb = apt.download(&package, into)?;
            extract(&deb, into, &[&["./boot", "--wildcards"], MODULES].concat())?;
            let moved = |from: &Path, to: &str| fs::rename(from, into.join(to)).map_err(|error| io_error(from, error));
            let images = files(&into.join("boot"))?;
            let image = images.into_iter().find(|path| has_prefix(path, "vmlinuz-"));
            moved(&image.ok_or_else(|| Error::Missing { package, path: "boot/vmlinuz-*".into() })?, "vmlinuz")?;
            let modules = into.join("modules");
            fs::create_dir(&modules).map_err(|error| io_error(&modules, error))?;
            for module in files(&into.join("lib/modules"))? {
                let name = module.file_name().unwrap_or_default();
                moved(&module, &format!("modules/{}", name.to_string_lossy()))?;
            }
            for rest in ["boot", "lib"] {
                fs::remove_dir_all(into.join(rest)).map_err(|error| io_error(into, error))?;
            }
            fs::remove_file(&deb).map_err(|error| io_error(&deb, error))
        })
    }

    /// The static busybox.
    pub fn busybox(&self) -> Result<PathBuf, Error> {
        let entry = self.entry("busybox-static", |apt, into| {
            let deb = apt.download("busybox-static", into)?;
            extract(&deb, into, &["./bin/busybox"])
        })?;
        Ok(entry.join("bin/busybox"))
    }

    /// A directory with python3 and the libraries it needs, laid out as in a root file system.
    pub fn python(&self) -> Result<PathBuf, Error> {
        self.entry("python3-minimal", |apt, into| unpack_closure(apt, "python3-minimal", into))
    }

    /// A directory with fio and the libraries that it is linked to, laid out as in a root file system. What else its
    /// packages hold is ten times as much.
    pub fn fio(&self) -> Result<PathBuf, Error> {
        self.entry("fio", |apt, into| {
            let whole = tempfile::tempdir_in(into).map_err(|error| io_error(into, error))?;
            unpack_closure(apt, "fio", whole.path())?;
            libraries::copy_with_program(whole.path(), FIO, into)
        })
    }

    /// The directory of a cache entry, which `fill` makes if it is not there yet.
    fn entry(&self, name: &str, fill: impl FnOnce(&Apt, &Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        let entry = self.cache.join(name);
        if entry.is_dir() {
            return Ok(entry);
        }
        let _lock = Lock::on(&self.cache).map_err(|error| io_error(&self.cache, error))?;
        if entry.is_dir() {
            return Ok(entry);
        }
        let apt = Apt::open(&self.cache)?;
        let parts = tempfile::Builder::new().prefix(".partial-").tempdir_in(&self.cache);
        let parts = parts.map_err(|error| io_error(&self.cache, error))?;
        fill(&apt, parts.path())?;
        let parts = parts.keep();
        fs::rename(&parts, &entry).map_err(|error| io_error(&entry, error))?;
        Ok(entry)
    }
}

fn has_prefix(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

/// All files below a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, error))?.flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)?),
            path => found.push(path),
        }
    }
    Ok(found)
}

fn io_error(path: &Path, error: io::Error) -> Error {
    Error::Io { path: path.into(), error }
}

/// Unpacks a whole package.
fn unpack(deb: &Path, into: &Path) -> Result<(), Error> {
    apt::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into)).map(drop)
}

/// Unpacks a package and all that it depends on.
fn unpack_closure(apt: &Apt, package: &str, into: &Path) -> Result<(), Error> {
    let archives = tempfile::tempdir_in(into).map_err(|error| io_error(into, error))?;
    apt.download_closure(package, archives.path())?.iter().try_for_each(|deb| unpack(deb, into))
}

/// Unpacks only `members` of a package; after `--wildcards` these are patterns.
fn extract(deb: &Path, into: &Path, members: &[&str]) -> Result<(), Error> {
    let script = r#"set -e; deb=$1; into=$2; shift 2; dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$into" "$@""#;
    apt::run(Command::new("sh").args(["-c", script, "extract"]).arg(deb).arg(into).args(members)).map(drop)
}
