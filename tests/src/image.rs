//! The guest's initial RAM disk: busybox and, if asked for, the guest programs, the suite, python3 and kernel modules.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::debian::{Debian, Flavour};
use crate::initramfs::Initramfs;
use crate::{guests, modules, workspace};

/// What the image holds besides busybox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The guest programs and the suite's scripts.
    pub suite: bool,
    /// Debian's python3 with its libraries and its standard library: some 25 MiB.
    pub python: bool,
    /// The modules that a virtio disk needs, of this kernel; they are loaded before the shell starts.
    pub disk: Option<Flavour>,
    /// The modules that a virtio network card needs, of this kernel.
    pub net: Option<Flavour>,
    /// Debian's fio with its libraries, some 80 MiB, and what it is to verify.
    pub fio: bool,
}

/// Builds an image into `dir` and returns its path.
pub fn build(debian: &Debian, contents: Contents, dir: &Path) -> io::Result<PathBuf> {
    let mut image = Initramfs::new();
    let scripts = workspace::root().join("tests/scripts");
    for name in ["proc", "sys", "dev", "tmp", "root", "etc", "sbin"] {
        image.directory(name)?;
    }
    image.character_device("dev/console", 5, 1)?;
    image.character_device("dev/null", 1, 3)?;
    image.file("init", 0o755, &fs::read(scripts.join("init.sh"))?)?;
    let busybox = debian.busybox().map_err(io::Error::other)?;
    image.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
    if contents.suite {
        add_suite(&mut image, &scripts)?;
    }
    if contents.python {
        let root = debian.python().map_err(io::Error::other)?;
        image.tree(&root, &is_python)?;
    }
    if let Some(flavour) = contents.disk.or(contents.net) {
        let objects = debian.modules(flavour).map_err(io::Error::other)?;
        let drivers = [("virtio_blk", contents.disk.is_some()), ("virtio_net", contents.net.is_some())];
        let drivers = drivers.into_iter().filter_map(|(name, wanted)| wanted.then_some(name));
        modules::add(&mut image, &objects, &["virtio_pci"].into_iter().chain(drivers).collect::<Vec<_>>())?;
    }
    if contents.disk.is_some() {
        for name in ["disk.sh", "fixed.sh"] {
            image.file(&format!("suite/{name}"), 0o644, &fs::read(scripts.join(name))?)?;
        }
    }
    if contents.net.is_some() {
        for name in ["udhcpc.sh", "net.sh"] {
            image.file(&format!("suite/{name}"), 0o755, &fs::read(scripts.join(name))?)?;
        }
    }
    if contents.fio {
        image.tree(&debian.fio().map_err(io::Error::other)?, &|_| true)?;
        for name in ["verify.sh", "verify.fio"] {
            image.file(&format!("suite/{name}"), 0o644, &fs::read(scripts.join(name))?)?;
        }
    }
    let path = dir.join("initrd.gz");
    fs::write(&path, image.finish()?)?;
    Ok(path)
}

fn add_suite(image: &mut Initramfs, scripts: &Path) -> io::Result<()> {
    let programs = guests::build()?;
    for program in fs::read_dir(programs)? {
        let program = program?;
        let name = program.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            image.file(&format!("guests/{name}"), 0o755, &fs::read(program.path())?)?;
        }
    }
    for name in ["suite.sh", "suite.py", "bench.sh"] {
        image.file(&format!("suite/{name}"), 0o644, &fs::read(scripts.join(name))?)?;
    }
    Ok(())
}

/// What of the unpacked packages python needs to run.
fn is_python(path: &str) -> bool {
    let wanted = ["lib/", "usr/lib/python3", "usr/lib/i386-linux-gnu/", "usr/bin/python3"];
    let unwanted = ["/gconv/", "__pycache__", "usr/lib/i386-linux-gnu/perl"];
    wanted.iter().any(|prefix| path.starts_with(prefix)) && !unwanted.iter().any(|part| path.contains(part))
}
