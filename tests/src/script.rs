//! The work whose output must be the same in a guest and natively (`tests/scripts/suite.sh`), and its comparison.
//!
//! Natively the very same binaries run on the host's own kernel, which runs i386 programs beside its own: busybox's
//! applets by links, the guest programs, and Debian's i386 python3 through its own dynamic linker, without a chroot.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{debian, guests, workspace};

/// A shell with the guest's programs, on the host.
pub struct Native {
    dir: tempfile::TempDir,
    path: String,
}

impl Native {
    /// Lays the programs out in a temporary directory.
    pub fn new(debian: &debian::Debian) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bulkhead-native-").tempdir()?;
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin)?;
        let busybox = debian.busybox().map_err(io::Error::other)?;
        let programs = guests::build()?;
        check(Command::new(&busybox).args(["--install", "-s"]).arg(&bin).output())?;
        // Applets find each other through the running binary's path, which must be this busybox.
        symlink(&busybox, bin.join("busybox.i386"))?;
        python(&debian.python().map_err(io::Error::other)?, &bin.join("python3"))?;
        let path = format!("{}:{}", bin.display(), programs.display());
        Ok(Self { dir, path })
    }

    /// Runs a shell command in an empty directory below the temporary one; its standard output.
    pub fn run(&self, command: &str) -> io::Result<String> {
        let work = tempfile::Builder::new().prefix("work-").tempdir_in(self.dir.path())?;
        let shell = self.dir.path().join("bin/sh");
        let output = Command::new(shell)
            .args(["-c", command])
            .current_dir(work.path())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", work.path())
            .env("SUITE_DIR", workspace::root().join("tests/scripts"))
            .env("BENCH_DIR", self.dir.path().join("bench"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()?;
        check(Ok(output))
    }

    /// Runs the suite natively.
    pub fn suite(&self, scale: u32) -> io::Result<String> {
        let script = workspace::root().join("tests/scripts/suite.sh");
        self.run(&format!("sh '{}' {scale}", script.display()))
    }
}

/// A wrapper that starts an unpacked python3 by the dynamic linker of the same tree.
fn python(root: &Path, wrapper: &Path) -> io::Result<()> {
    let root = root.display();
    let text = format!(
        "#!/bin/sh\nexport PYTHONHOME='{root}/usr'\nexec '{root}/lib/i386-linux-gnu/ld-linux.so.2' \
         --library-path '{root}/lib/i386-linux-gnu:{root}/usr/lib/i386-linux-gnu' '{root}/usr/bin/python3.11' \"$@\"\n"
    );
    fs::write(wrapper, text)?;
    fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))
}

fn check(output: io::Result<std::process::Output>) -> io::Result<String> {
    let output = output?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("native run failed ({}):\n{text}", output.status)))
}

/// Where the suite lies in the guest.
pub fn guest_dir() -> PathBuf {
    PathBuf::from("/suite")
}

/// The `=== name` sections of a run, in order.
pub fn sections(text: &str) -> Vec<(String, String)> {
    let text = text.replace('\r', "");
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("=== "), sections.last_mut()) {
            (Some("end"), _) => break,
            (Some(name), _) => sections.push((name.to_owned(), String::new())),
            (None, Some((_, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    sections
}

/// Every difference between the native run and the guest's, as text; empty if there is none.
pub fn differences(native: &str, guest: &str) -> Vec<String> {
    let (native, guest) = (sections(native), sections(guest));
    let mut different: Vec<String> = native
        .iter()
        .filter_map(|(name, wanted)| match guest.iter().find(|(other, _)| other == name) {
            Some((_, got)) if got == wanted => None,
            Some((_, got)) => Some(format!("{name}:\n--- native\n{wanted}--- guest\n{got}")),
            None => Some(format!("{name}: not in the guest's output")),
        })
        .collect();
    if native.len() < 10 {
        different.push(format!("the native run has only {} sections", native.len()));
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_and_a_missing_section_are_named() {
        let native: String = (0..12).map(|n| format!("=== s{n}\nvalue {n}\nstatus 0\n")).collect();
        let guest = native.replace("value 3\n", "value 4\r\n").replace("=== s5\nvalue 5\nstatus 0\n", "");
        let found = differences(&native, &format!("noise\r\n{guest}=== end"));
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("s3:") && found[1].starts_with("s5:"));
        assert!(differences(&native, &native).is_empty());
    }
}
