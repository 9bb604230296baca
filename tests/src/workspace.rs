//! Where the repository, its build output and its cache are, and how tests get the real binaries.
//!
//! Cargo tells a test where the binaries of its own package are, but not those of others, so the harness builds them:
//! once per process, under a lock, by the cargo that started it. Whole guests always run on release builds.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::lock::Lock;

/// Those with the programs of a machine. Built together, whatever is built of them: their dependencies then have one form.
const PACKAGES: [&str; 8] =
    ["--package", "bulkhead", "--package", "vmm", "--package", "dev-blk", "--package", "dev-net"];

/// The repository's top directory.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Cargo's build output directory: the marked one above this executable, else where cargo puts it by default.
pub fn target_dir() -> PathBuf {
    let marked = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    let exe = env::current_exe().unwrap_or_default();
    match exe.ancestors().skip(1).find(marked) {
        Some(dir) => dir.to_path_buf(),
        None => root().join("target"),
    }
}

/// What was downloaded is kept here, outside the repository: `$XDG_CACHE_HOME/bulkhead`, else `~/.cache/bulkhead`.
pub fn cache_dir() -> io::Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|dir| dir.join("bulkhead"))
        .ok_or_else(|| io::Error::other("neither XDG_CACHE_HOME nor HOME is set: no place for a cache; set one"))
}

/// The path of the release build of `bulkhead`, with everything that it starts built beside it.
pub fn bulkhead() -> io::Result<PathBuf> {
    Ok(built()?.join("bulkhead"))
}

/// The path of the release build of the disk process.
pub fn dev_blk() -> io::Result<PathBuf> {
    Ok(built()?.join("bulkhead-dev-blk"))
}

/// Puts the programs into `dir`, with a disk process that some requests really crash (`dev-blk/src/faulty.rs`); the path of
/// `bulkhead` there, which starts those beside it.
pub fn with_faulty_disk(dir: &Path) -> io::Result<PathBuf> {
    let release = built()?;
    cargo_build(&[&PACKAGES[..], &["--features", "dev-blk/faulty", "--bin", "faulty-dev-blk"]].concat())?;
    let programs = [("bulkhead", "bulkhead"), ("bulkhead-vmm", "bulkhead-vmm"), ("faulty-dev-blk", "bulkhead-dev-blk")];
    for (from, to) in programs {
        std::fs::copy(release.join(from), dir.join(to))?;
    }
    Ok(dir.join("bulkhead"))
}

/// The directory of the release build, which is made once per process.
fn built() -> io::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || cargo_build(&[&PACKAGES[..], &["--bins"]].concat());
    BUILT.get_or_init(|| build().map_err(|error| error.to_string())).clone().map_err(io::Error::other)
}

/// Brings what `what` names up to date in the release build, and returns that one's directory.
fn cargo_build(what: &[&str]) -> io::Result<PathBuf> {
    let target = target_dir();
    let _lock = Lock::on(&target.join("harness"))?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Past the test harness's capture: from a clean tree this takes a minute or two, during which tests seem stuck.
    let _ = writeln!(io::stderr(), "note: bringing the release build of bulkhead up to date");
    let output = Command::new(&cargo)
        .args(["build", "--release", "--quiet"])
        .args(what)
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("cargo build of bulkhead failed:\n{text}")));
    }
    Ok(target.join("release"))
}
