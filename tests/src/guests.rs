//! The guest test programs under `tests/guests`, compiled once per build directory by the machine's gcc.
//!
//! They are freestanding 32-bit programs (see `rt.h`), so no 32-bit libc is needed, and the same file runs natively.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lock::Lock;
use crate::workspace;

/// Flags for every program: static, at fixed addresses, without anything from a hosted environment.
const FLAGS: &[&str] = &[
    "-m32",
    "-std=gnu11",
    "-O2",
    "-march=i686",
    "-mtune=generic",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-function",
    "-nostdlib",
    "-ffreestanding",
    "-static",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-Wl,--build-id=none",
];

/// Compiles what is out of date; the directory with the programs, each under its own name.
pub fn build() -> io::Result<PathBuf> {
    let sources = workspace::root().join("tests/guests");
    let into = workspace::target_dir().join("guests");
    let _lock = Lock::on(&into)?;
    let header = modified(&sources.join("rt.h"))?;
    for entry in fs::read_dir(&sources)? {
        let source = entry?.path();
        if source.extension().is_none_or(|ext| ext != "c") {
            continue;
        }
        let program = into.join(source.file_stem().unwrap_or_default());
        let newest = modified(&source)?.max(header);
        if modified(&program).is_ok_and(|built| built > newest) {
            continue;
        }
        compile(&source, &program)?;
    }
    Ok(into)
}

fn modified(path: &Path) -> io::Result<std::time::SystemTime> {
    fs::metadata(path)?.modified()
}

fn compile(source: &Path, program: &Path) -> io::Result<()> {
    let fresh = program.with_extension("new");
    let unit: &[&str] = match source.file_stem().is_some_and(|name| name == "sse") {
        true => &["-msse2", "-mfpmath=sse"],
        false => &["-mno-sse", "-mfpmath=387"],
    };
    let output = Command::new("gcc").args(FLAGS).args(unit).arg("-o").arg(&fresh).arg(source).output();
    let output = output.map_err(|error| io::Error::other(format!("cannot run gcc: {error}; apt-get install gcc")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("gcc could not compile {}:\n{text}", source.display())));
    }
    fs::rename(fresh, program)
}
