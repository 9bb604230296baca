//! What of unpacked packages a program needs to run: itself, its interpreter, and the libraries that it is linked to.
//!
//! The packages' own dynamic linker is asked, natively, as the suite's programs are run natively for comparison.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, apt, io_error};

/// Debian's program interpreter for i386, from the root of a file system.
const LINKER: &str = "lib/ld-linux.so.2";
/// Where Debian's i386 libraries are, and those that only programs with a path of their own find.
const DIRECTORIES: [&str; 3] = ["lib/i386-linux-gnu", "usr/lib/i386-linux-gnu", "usr/lib/i386-linux-gnu/ceph"];

/// Copies `program` and what it needs from the root `from` to the root `to`.
pub fn copy_with_program(from: &Path, program: &str, to: &Path) -> Result<(), Error> {
    for path in [program.into(), LINKER.into()].into_iter().chain(needed(from, program)?) {
        let into = to.join(&path);
        let parent = into.parent().unwrap_or(to);
        let copied = fs::create_dir_all(parent).and_then(|()| fs::copy(from.join(&path), &into));
        copied.map_err(|error| io_error(&into, error))?;
    }
    Ok(())
}

/// The libraries that `program` is linked to, directly or by another, from the root on.
fn needed(root: &Path, program: &str) -> Result<Vec<PathBuf>, Error> {
    let root = fs::canonicalize(root).map_err(|error| io_error(root, error))?;
    let directories: Vec<_> = DIRECTORIES.iter().map(|name| root.join(name).display().to_string()).collect();
    let mut linker = Command::new(root.join(LINKER));
    linker.args(["--library-path", &directories.join(":"), "--list"]).arg(root.join(program));
    // "libc.so.6 => /path/libc.so.6 (0x...)"; what is not a file of ours is the kernel's or the linker.
    let list = apt::run(&mut linker)?;
    if list.contains("not found") {
        return Err(io_error(&root.join(program), io::Error::other(format!("libraries are missing:\n{list}"))));
    }
    let paths = list.lines().filter_map(|line| line.split_once(" => ")?.1.split(' ').next().map(PathBuf::from));
    Ok(paths
        .filter_map(|path| Some(path.strip_prefix(&root).ok()?.to_owned()))
        .filter(|p| p != Path::new(LINKER))
        .collect())
}
